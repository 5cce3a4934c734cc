//! Programs in a VM by path: whatever is asked below `/v1/vms/{vm}/ports/{port}/` is asked of the program. What it answers is its
//! own, so the OpenAPI document does not describe it; nor does an `Idempotency-Key` mean anything to us there.

use super::{
    App,
    error::ApiError,
    extract::{Vm, path_parameter},
    key_ends::KeyEnds,
    request::{Call, Caller},
};
use crate::preview::{Dress, Front, Origin, Way, forward};
use axum::{
    Router,
    extract::{FromRequestParts, Request},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
    routing::any,
};
use offshoot_api::v1::{InvalidField, TcpQuery};
use offshoot_types::VmRef;

/// Every method, with and without a path of the program's.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/vms/{vm}/ports/{port}", any(to_root))
        .route("/v1/vms/{vm}/ports/{port}/", any(ask))
        .route("/v1/vms/{vm}/ports/{port}/{*path}", any(ask))
}

/// What a program answers is relative to its root, which ends in a slash.
async fn to_root(uri: Uri) -> Response {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let location = HeaderValue::from_str(&format!("{}/{query}", uri.path()));
    let location = location.unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, location)]).into_response()
}

/// The port of the path, checked.
struct Port(u16);

impl<S: Send + Sync> FromRequestParts<S> for Port {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let port = path_parameter(parts, state, "port").await?;
        Ok(Self(TcpQuery { port }.port()?))
    }
}

async fn ask(call: Call, Vm(vm): Vm, Port(port): Port, request: Request) -> Result<Response, ApiError> {
    let tls = matches!(request.extensions().get(), Some(Caller::Network { tls: true, .. }));
    let ends = request.extensions().get::<KeyEnds>().cloned();
    let front = front(tls, &vm, port, request.uri(), request.headers())?;
    let way = Way { call: &call, vm, port, dress: &Dress::Preview(front), ends };
    Ok(forward(way, request).await.map_err(offshoot_types::Failure::from)?)
}

fn front(tls: bool, vm: &VmRef, port: u16, uri: &Uri, headers: &HeaderMap) -> Result<Front, InvalidField> {
    let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(|authority| authority.as_str()).or(named).unwrap_or("localhost");
    let origin = Origin::of_host(tls, host).ok_or_else(|| InvalidField::new("host", "it is no host"))?;
    let prefix = format!("/v1/vms/{vm}/ports/{port}");
    // As it was sent: names that need no escapes may have them.
    let prefix = match uri.path().starts_with(&prefix) {
        true => prefix,
        false => uri.path().split('/').take(6).collect::<Vec<_>>().join("/"),
    };
    Ok(Front { origin, prefix })
}
