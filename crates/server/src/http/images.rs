//! Images: list, remove, verify. They are built by the CLI.

use super::{
    error::{ApiError, ImageErrors},
    extract::{ImagePath, Query},
    request::Call,
};
use axum::{Json, http::StatusCode};
use offshoot_api::v1;
use offshoot_types::{Actor, Command};

/// All images, tagged ones first.
#[utoipa::path(get, path = "/v1/images", tag = "images", operation_id = "list_images",
    params(v1::PageQuery), responses((status = 200, body = v1::ImageList), ImageErrors))]
pub async fn list(call: Call, Query(page): Query<v1::PageQuery>) -> Result<Json<v1::ImageList>, ApiError> {
    let _read = call.permit(Command::Inspect { vm: None }).await?;
    let (images, next_cursor) = page.of(call.app.images.list().await?, |image| image.digest.to_string())?;
    Ok(Json(v1::ImageList { images, next_cursor }))
}

/// Remove a tag, and the image with its last tag, unless a VM uses it.
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images", operation_id = "remove_image",
    params(("image" = String, Path, description = "Tag or `sha256:` digest")),
    responses((status = 204, description = "Removed"), ImageErrors))]
pub async fn remove(call: Call, ImagePath(image): ImagePath) -> Result<StatusCode, ApiError> {
    let manage = call.permit(Command::ManageImage { image: image.to_string() }).await?;
    // Also those that the caller may not know of.
    let daemon = Call::new(&call.app, Actor::Daemon, call.id);
    let vms = daemon.engine.vms(daemon.permit(Command::Inspect { vm: None }).await?)?;
    let in_use = vms.into_iter().map(|vm| vm.image_digest).collect();
    for gone in call.app.images.remove(image, in_use).await? {
        call.engine.release_image(&manage, &gone).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Read every part of an image in full and compare it with its digest.
#[utoipa::path(post, path = "/v1/images/{image}/verify", tag = "images", operation_id = "verify_image",
    params(("image" = String, Path, description = "Tag or `sha256:` digest")),
    responses((status = 200, body = v1::ImageVerified), ImageErrors))]
pub async fn verify(call: Call, ImagePath(image): ImagePath) -> Result<Json<v1::ImageVerified>, ApiError> {
    let _manage = call.permit(Command::ManageImage { image: image.to_string() }).await?;
    Ok(Json(call.app.images.verify(image).await?))
}
