//! How the router itself says no. The texts are what clients look for.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use offshoot_types::Failure;
use serde_json::json;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such sandbox, or it does not run.
    Gone { sandbox: String },
    /// It runs, but nothing in it listens there.
    PortClosed { sandbox: String, port: u16 },
    /// The token is missing or another's.
    Unauthorized,
    /// Programs in it are for those who have its traffic token.
    Private { sandbox: String, port: u16 },
    /// The signature is right, and its time is up.
    Expired,
    /// The link to a preview is over, or another's.
    LinkOver { sandbox: String, port: u16 },
    /// A browser's cookie, in a request that a page of another origin makes.
    Foreign { sandbox: String, port: u16 },
    /// An API key that may not, or may not now.
    Key(Failure),
    /// It has no room for more now.
    Busy(Failure),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Gone { .. } | Self::PortClosed { .. } => StatusCode::BAD_GATEWAY,
            Self::Unauthorized | Self::Expired => StatusCode::UNAUTHORIZED,
            Self::Private { .. } | Self::LinkOver { .. } | Self::Foreign { .. } => StatusCode::FORBIDDEN,
            Self::Key(failure) | Self::Busy(failure) => {
                StatusCode::from_u16(failure.code.http_status()).unwrap_or(StatusCode::FORBIDDEN)
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status();
        let code = status.as_u16();
        let body = match self {
            Self::Gone { sandbox } => {
                json!({ "sandboxId": sandbox, "message": "The sandbox was not found", "code": code })
            }
            Self::PortClosed { sandbox, port } => json!({
                "sandboxId": sandbox,
                "message": "The sandbox is running but port is not open",
                "port": port,
                "code": code,
            }),
            Self::Private { sandbox, port } => json!({
                "sandboxId": sandbox,
                "message": "Sandbox is secured with traffic access token. \
                            Token header 'e2b-traffic-access-token' is missing or wrong",
                "port": port,
                "code": code,
            }),
            Self::LinkOver { sandbox, port } => json!({
                "sandboxId": sandbox,
                "message": format!("This link is over. `offshoot port {sandbox} {port} --preview` prints another"),
                "port": port,
                "code": code,
            }),
            Self::Foreign { sandbox, port } => json!({
                "sandboxId": sandbox,
                "message": "The cookie of a preview is good for its own pages, and a page of another origin asked",
                "port": port,
                "code": code,
            }),
            Self::Key(failure) | Self::Busy(failure) => json!({ "code": code, "message": failure.message }),
            Self::Expired => json!({ "code": code, "message": "signature is already expired" }),
            Self::Unauthorized => json!({
                "code": code,
                "message": "unauthorized access, please provide a valid access token or method signing if supported",
            }),
        };
        let mut response = (status, Json(body)).into_response();
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_types::ErrorCode;

    #[test]
    fn who_finds_no_room_is_told_to_come_again() {
        let full = Failure::new(ErrorCode::NoResource, "204 connections are open");
        let response = Refusal::Busy(full).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let closed = Refusal::PortClosed { sandbox: "s".into(), port: 80 }.into_response();
        assert_eq!(closed.status(), StatusCode::BAD_GATEWAY);
        assert!(!closed.headers().contains_key(header::RETRY_AFTER));
    }
}
