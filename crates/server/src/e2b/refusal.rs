//! How the router itself says no. The texts are what clients look for.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
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
}

impl Refusal {
    const fn status(&self) -> StatusCode {
        match self {
            Self::Gone { .. } | Self::PortClosed { .. } => StatusCode::BAD_GATEWAY,
            Self::Unauthorized | Self::Expired => StatusCode::UNAUTHORIZED,
            Self::Private { .. } => StatusCode::FORBIDDEN,
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
            Self::Expired => json!({ "code": code, "message": "signature is already expired" }),
            Self::Unauthorized => json!({
                "code": code,
                "message": "unauthorized access, please provide a valid access token or method signing if supported",
            }),
        };
        (status, Json(body)).into_response()
    }
}
