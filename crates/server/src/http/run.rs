//! `/v1/run`: one process in a fresh VM that lives no longer than the WebSocket.
//!
//! ```text
//! request --> create --> boot --> files --> exec --> ended --> destroy --> close
//!                |          |       |         |                  ^
//!                +----------+-------+---------+-- caller gone ---+       (`keep`: no destroy)
//! ```
//! The VM is `Lifetime::Request`: should this task or the whole daemon die, the engine destroys it.

use super::{
    changes::check,
    channel::{Channel, Left},
    create::specify,
    error::{ApiError, CreateErrors},
    exec_session::{About, follow},
    extract::Upgrade,
    files::in_guest,
    request::Call,
    vms,
};
use axum::response::Response;
use offshoot_api::v1::{Durations, NewFile, NewRun, ProgressState, RunRequest, ServerMessage, StepProgress};
use offshoot_engine::RequestVm;
use offshoot_types::{
    Command, ErrorCode, ExecSpec, Failure, FileAccess, Lifetime, VmId, VmName, VmRef, VmSpec,
};
use std::time::Instant;

/// Run a process in a fresh VM: a WebSocket whose first text frame is a `RunRequest`. The VM is destroyed when
/// the process ends or the socket closes, whichever comes first, unless the request keeps it.
#[utoipa::path(get, path = "/v1/run", tag = "exec", operation_id = "run",
    responses((status = 101, description = "`RunRequest`, then `ClientMessage`s and `ServerMessage`s"), CreateErrors))]
pub async fn run(call: Call, upgrade: Upgrade) -> Result<Response, ApiError> {
    // A stranger is told so by HTTP; what the request names is judged when it has come.
    let _read = call.permit(Command::Inspect { vm: None }).await?;
    let present = call.app.activity.enter_session()?;
    Ok(upgrade.serve(move |socket| async move {
        let _present = present;
        let mut channel = Channel::new(socket);
        let outcome = session(&call, &mut channel).await;
        channel.close(&call, outcome).await;
    }))
}

async fn session(call: &Call, channel: &mut Channel) -> Result<(), Left> {
    let request: RunRequest = channel.request().await?;
    let NewRun { name, settings, lifetime, files, exec } = request.try_into()?;
    let spec = specify(call, name.unwrap_or_else(made_up_name), settings, lifetime).await?;
    // On the heap, as what follows: neither needs the room of the other.
    let (machine, create_ms) = Box::pin(step(channel, "create", create(call, spec))).await?;
    let outcome = Box::pin(use_machine(call, channel, machine.id(), files, exec, create_ms)).await;
    let released = machine.release().await;
    outcome.and(released.map_err(Left::Failed))
}

async fn use_machine(
    call: &Call,
    channel: &mut Channel,
    vm: VmId,
    files: Vec<NewFile>,
    exec: ExecSpec,
    create_ms: u64,
) -> Result<(), Left> {
    let ((), boot_ms) = Box::pin(step(channel, "boot", boot(call, vm))).await?;
    if !files.is_empty() {
        // On the heap: most runs bring no files, and need no room for writing them.
        Box::pin(step(channel, "files", place(call, vm, files))).await?;
    }
    let about = About::from(vms::glance(call, VmRef::Id(vm)).await?);
    let permit = call.permit(Command::Exec { vm: VmRef::Id(vm), spec: Box::new(exec) }).await?;
    let session = call.engine.exec(permit).await?;
    let durations = Durations { create_ms: Some(create_ms), boot_ms: Some(boot_ms), ..Durations::default() };
    follow(call, channel, session, &about, durations).await
}

/// Tells the caller about a step while doing it. A caller that leaves ends the step: the engine takes back a
/// creation whose caller is gone, and the guard destroys what was created.
async fn step<T>(
    channel: &mut Channel,
    name: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<(T, u64), Left> {
    let progress =
        |state, duration_ms| ServerMessage::Progress(StepProgress { step: name.into(), state, duration_ms });
    channel.sink.say(&progress(ProgressState::Begun, None)).await?;
    let begun = Instant::now();
    let done = channel.while_connected(work).await??;
    let duration = begun.elapsed().as_millis() as u64;
    channel.sink.say(&progress(ProgressState::Done, Some(duration))).await?;
    Ok((done, duration))
}

/// The VM of this request.
#[derive(Debug)]
enum Machine {
    Fleeting(RequestVm),
    Kept(VmId),
}

impl Machine {
    fn id(&self) -> VmId {
        match self {
            Self::Fleeting(vm) => vm.id(),
            Self::Kept(id) => *id,
        }
    }

    /// Returns when nothing is left of a VM that nobody keeps.
    async fn release(self) -> Result<(), Failure> {
        match self {
            Self::Fleeting(vm) => check(&vm.destroy().await?),
            Self::Kept(_) => Ok(()),
        }
    }
}

async fn create(call: &Call, spec: Box<VmSpec>) -> Result<Machine, Failure> {
    let lifetime = spec.lifetime;
    let permit = call.permit(Command::Create { spec }).await?;
    match lifetime {
        Lifetime::Request => Ok(Machine::Fleeting(call.engine.create_for_request(permit).await?)),
        Lifetime::Kept => {
            let operation = call.engine.submit(permit).await?;
            let operation = call.engine.wait(operation.id, None).await?;
            check(&operation)?;
            operation.vm.map(Machine::Kept).ok_or_else(|| {
                Failure::new(ErrorCode::Internal, format!("operation {} made no VM", operation.id))
            })
        }
    }
}

async fn boot(call: &Call, vm: VmId) -> Result<(), Failure> {
    let permit = call.permit(Command::Start { vm: VmRef::Id(vm) }).await?;
    let operation = call.engine.submit(permit).await?;
    check(&call.engine.wait(operation.id, None).await?)
}

/// Writes what the process needs to find, as root.
async fn place(call: &Call, vm: VmId, files: Vec<NewFile>) -> Result<(), Failure> {
    for NewFile { path, mode, content } in files {
        let command = Command::Files { vm: VmRef::Id(vm), access: FileAccess::Write, path: path.clone() };
        in_guest(call, command, "root".into(), async |files| {
            let mut writer = files.write(path, mode, true, false).await?;
            writer.send(&content).await?;
            writer.finish().await.map(drop)
        })
        .await?;
    }
    Ok(())
}

/// Unique for all practical purposes; a collision is refused like any other taken name.
fn made_up_name() -> VmName {
    let random = VmId::new().simple();
    // The tail of a UUIDv7 is its random part.
    format!("run-{}", &random[random.len() - 12..])
        .parse()
        .expect("hex digits after a letter are a valid name")
}

#[cfg(test)]
mod tests {
    #[test]
    fn made_up_names_are_valid_and_differ() {
        let names: std::collections::HashSet<_> =
            (0..1000).map(|_| super::made_up_name().to_string()).collect();
        assert_eq!(names.len(), 1000);
    }
}
