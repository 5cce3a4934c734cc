//! Processes. Each is an exec of the engine and a process of the guest; what the wire calls a pid is the guest's.
//!
//! ```text
//! Start    --> exec, detached: who leaves its stream leaves the process running until its own deadline
//! Connect  --> follow: reads along, beside Start's stream and others of its kind
//! the rest --> the process's input, in the order it comes
//! ```
//! A process goes with its VM: suspended, resumed, rolled back to and forked it is found again by its pid or tag, and it
//! outlives the daemon. Streams end, `unavailable`, when the VM stands still or the daemon leaves; `Connect` takes up what
//! follows.

mod events;
mod input;
mod messages;
mod start;

pub use input::{close_stdin, send_input, send_signal, stream_input, update};
pub use start::{connect, start};

use super::connect::{Code, ConnectError, Deadline, Unary};
use crate::e2b::sandbox::Sandbox;
use axum::Json;
use messages::{Empty, ListResponse, Selector};
use offshoot_engine::{ExecView, ProcessSelector};
use offshoot_types::{Command, ErrorCode, VmRef};

pub async fn list(
    sandbox: Sandbox,
    deadline: Deadline,
    Unary(Empty {}): Unary<Empty>,
) -> Result<Json<ListResponse>, ConnectError> {
    let listed = async {
        let permit = sandbox.call.permit(inspect(&sandbox)).await?;
        Ok(sandbox.call.engine.processes(permit).await?)
    };
    Ok(Json(deadline.bound(listed).await?.into()))
}

fn inspect(sandbox: &Sandbox) -> Command {
    Command::Inspect { vm: Some(VmRef::Id(sandbox.vm)) }
}

/// One that runs or has lately ended.
async fn find(sandbox: &Sandbox, selector: Option<Selector>) -> Result<ExecView, ConnectError> {
    let selector = match selector {
        Some(Selector { pid: Some(pid), tag: None }) => ProcessSelector::Pid(pid),
        Some(Selector { pid: None, tag: Some(tag) }) => ProcessSelector::Tag(tag),
        _ => return Err(ConnectError::invalid("`process`: neither a pid nor a tag, or both")),
    };
    let permit = sandbox.call.permit(inspect(sandbox)).await?;
    sandbox.call.engine.find_process(permit, selector).await.map_err(|failure| match failure.code {
        ErrorCode::NotFound => ConnectError::new(Code::NotFound, failure.message),
        _ => failure.into(),
    })
}
