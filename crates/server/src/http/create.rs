//! Defining VMs.

use super::{
    changes::{changed, settle},
    error::{ApiError, CreateErrors},
    extract::Json,
    request::Call,
};
use axum::response::Response;
use offshoot_api::v1::{Changed, CreateVm, NewVm, VmSettings};
use offshoot_types::{Command, Failure, Lifetime, VmName, VmRef, VmSpec};

/// Where VMs are made.
pub const PATH: &str = "/v1/vms";

/// Define a VM; with `start`, boot it too.
#[utoipa::path(post, path = "/v1/vms", tag = "vms", operation_id = "create_vm", request_body = CreateVm,
    responses((status = 200, body = Changed), (status = 202, body = Changed), CreateErrors))]
pub async fn create(call: Call, Json(request): Json<CreateVm>) -> Result<Response, ApiError> {
    let NewVm { name, settings, start, wait } = request.try_into()?;
    let spec = specify(&call, name, settings, Lifetime::Kept).await?;
    let mut operation = call.submit_once(Command::Create { spec }).await?;
    // The start is judged on the VM as it then is, so its creation has to be over first.
    if wait || start {
        operation = settle(&call, operation).await?;
    }
    if let (true, Some(id)) = (start, operation.vm) {
        // Of a request that is taken up again too: what runs already is as it should be.
        operation = call.engine.submit(call.permit(Command::Start { vm: VmRef::Id(id) }).await?).await?;
        if wait {
            operation = settle(&call, operation).await?;
        }
    }
    changed(&call, operation).await
}

/// Binds settings to the image they name, as it is now.
pub async fn specify(
    call: &Call,
    name: VmName,
    settings: VmSettings,
    lifetime: Lifetime,
) -> Result<Box<VmSpec>, Failure> {
    let image = call.app.images.for_new_vm(settings.image.clone()).await?;
    Ok(Box::new(settings.bind(name, image.digest, image.default_memory, lifetime)))
}
