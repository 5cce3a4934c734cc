//! Links to programs in a VM, for browsers.

use super::{
    error::{ApiError, GuestErrors},
    extract::{Json, Vm},
    once::Secret,
    request::Call,
};
use crate::preview::{self, Origin, SESSION_HOLDS};
use axum::Extension;
use jiff::Timestamp;
use offshoot_api::v1::{CreatePreview, InvalidField, NewPreview, Preview};
use offshoot_types::{Command, ErrorCode, Failure};

/// Make a link by which a browser sees a program in a VM. Whoever visits it may do so for a while, with the authority of whoever made
/// it, and nothing else.
#[utoipa::path(post, path = "/v1/vms/{vm}/previews", tag = "vms", operation_id = "create_preview",
    params(("vm" = String, Path, description = "Name or id")), request_body = CreatePreview,
    responses((status = 200, body = Preview), GuestErrors))]
pub async fn create(
    call: Call,
    Vm(vm): Vm,
    Json(request): Json<CreatePreview>,
) -> Result<(Extension<Secret>, axum::Json<Preview>), ApiError> {
    let NewPreview { port, path, origin } = request.try_into()?;
    let named = origin.map(|text| Origin::parse(&text)).transpose();
    let named = named.map_err(|error| InvalidField::new("origin", error))?;
    let command = Command::Connect { vm, port };
    let name = call.named(&command);
    let permit = call.permit(command).await?;
    let front = named.or_else(|| call.app.front.clone()).ok_or_else(no_front)?;
    let origin = front.of_port(port, &name);
    let (link, expires) = preview::link(&call.app.tokens, &permit, &origin, Timestamp::now())?;
    let joint = if path.contains('?') { '&' } else { '?' };
    let url = format!("{origin}{path}{joint}{}={link}", preview::PARAMETER);
    let session_ms = u64::try_from(SESSION_HOLDS.as_millis()).unwrap_or(u64::MAX);
    let made = Preview { url, origin: origin.to_string(), expires, session_ms };
    Ok((Extension(Secret), axum::Json(made)))
}

fn no_front() -> Failure {
    Failure::new(ErrorCode::Unavailable, "browsers do not reach this daemon: it listens at no port of this host")
        .hint(
            "`offshoot serve --listen 127.0.0.1:3000` does; `offshoot port VM PORT` needs none. If another host name \
             leads to it, say which: `origin`",
        )
}
