//! Processes in a running VM: run and collect, run and stream, list, attach.

use super::{
    channel::{Channel, Left},
    error::{ApiError, GuestErrors},
    exec_session::{About, follow, take_up},
    extract::{Exec, Json, Query, Upgrade, Vm},
    request::Call,
    view, vms,
};
use axum::response::Response;
use offshoot_api::v1::{
    AttachQuery, CollectRequest, Durations, ExecList, ExecRequest, ExecResult, NewCollect, Output, PageQuery,
};
use offshoot_engine::{AttachFrom, ExecEnd, ExecEvent, ExecSession, OutputStream};
use offshoot_types::{Bytes, Command, ErrorCode, ExecSpec, Failure, VmRef};
use std::time::Instant;

/// Most output that is collected in memory; beyond it, and for endless output, there is the WebSocket.
const MAX_COLLECTED: Bytes = Bytes(8 * 1024 * 1024);

/// Run a process and answer with its output, of which at most 8 MiB are kept.
#[utoipa::path(post, path = "/v1/vms/{vm}/exec", tag = "exec", operation_id = "exec",
    request_body = CollectRequest, params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = ExecResult), GuestErrors))]
pub async fn collect(
    call: Call,
    Vm(vm): Vm,
    Json(request): Json<CollectRequest>,
) -> Result<axum::Json<ExecResult>, ApiError> {
    let NewCollect { mut exec, input } = request.try_into()?;
    let limit = exec.limits.max_output.unwrap_or(MAX_COLLECTED).min(MAX_COLLECTED);
    exec.limits.max_output = Some(limit);
    let begun = Instant::now();
    let session = call.engine.exec(call.permit(Command::Exec { vm, spec: Box::new(exec) }).await?).await?;
    let (exec, operation) = (session.exec, session.operation);
    let Collected { end, stdout, stderr, lost } = gather(session, input).await?;
    Ok(axum::Json(ExecResult {
        exec,
        operation,
        status: end.status.into(),
        stdout: Output::from_bytes(stdout),
        stderr: Output::from_bytes(stderr),
        truncated: end.truncated || lost,
        exec_ms: begun.elapsed().as_millis() as u64,
    }))
}

struct Collected {
    end: ExecEnd,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    lost: bool,
}

/// Feeds and drains the process at once: neither side can block the other.
async fn gather(session: ExecSession, input: Option<String>) -> Result<Collected, Failure> {
    let (sender, mut events) = session.split();
    let feed = async {
        // A process that ends without reading everything has done as it likes.
        if let Some(text) = input
            && sender.stdin(text.into()).await.is_ok()
        {
            let _ended = sender.end_stdin().await;
        }
        std::future::pending().await
    };
    let drain = async {
        let (mut stdout, mut stderr, mut lost) = (Vec::new(), Vec::new(), false);
        loop {
            match events.next().await {
                Some(ExecEvent::Output { stream, data, .. }) => match stream {
                    OutputStream::Stdout => stdout.extend_from_slice(&data),
                    OutputStream::Stderr => stderr.extend_from_slice(&data),
                },
                Some(ExecEvent::Started { .. }) => {}
                Some(ExecEvent::Lost { .. }) => lost = true,
                Some(ExecEvent::Ended(end)) => return Ok(Collected { end, stdout, stderr, lost }),
                Some(ExecEvent::Failed(failure)) => return Err(failure),
                Some(ExecEvent::Detached) => {
                    return Err(Failure::new(
                        ErrorCode::Interrupted,
                        "another caller attached to the process",
                    ));
                }
                None => return Err(Failure::new(ErrorCode::Internal, "the exec ended without an end")),
            }
        }
    };
    tokio::select! {
        collected = drain => collected,
        never = feed => never,
    }
}

/// Run a process and stream it: a WebSocket whose first text frame is an `ExecRequest`.
#[utoipa::path(get, path = "/v1/vms/{vm}/exec", tag = "exec", operation_id = "exec_stream",
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 101, description = "`ExecRequest`, then `ClientMessage`s and `ServerMessage`s"), GuestErrors))]
pub async fn stream(call: Call, Vm(vm): Vm, upgrade: Upgrade) -> Result<Response, ApiError> {
    // A stranger, or a name that means nothing, is told so by HTTP.
    let about = About::from(vms::glance(&call, vm).await?);
    let present = call.app.activity.enter_session()?;
    Ok(upgrade.serve(move |socket| async move {
        let _present = present;
        let mut channel = Channel::new(socket);
        let outcome = stream_session(&call, &mut channel, &about).await;
        channel.close(&call, outcome).await;
    }))
}

async fn stream_session(call: &Call, channel: &mut Channel, about: &About) -> Result<(), Left> {
    let request: ExecRequest = channel.request().await?;
    let spec = Box::new(ExecSpec::try_from(request)?);
    let permit = call.permit(Command::Exec { vm: VmRef::Id(about.vm), spec }).await?;
    let session = call.engine.exec(permit).await?;
    follow(call, channel, session, about, Durations::default()).await
}

/// Processes that run or have lately ended.
#[utoipa::path(get, path = "/v1/vms/{vm}/execs", tag = "exec", operation_id = "list_execs",
    params(("vm" = String, Path, description = "Name or id"), PageQuery),
    responses((status = 200, body = ExecList), GuestErrors))]
pub async fn list(
    call: Call,
    Vm(vm): Vm,
    Query(page): Query<PageQuery>,
) -> Result<axum::Json<ExecList>, ApiError> {
    let execs = call.engine.execs(call.permit(Command::Inspect { vm: Some(vm) }).await?).await?;
    let (execs, next_cursor) = page.of(execs, |exec| exec.id.to_string())?;
    Ok(axum::Json(ExecList { execs: execs.into_iter().map(view::exec).collect(), next_cursor }))
}

/// Take up the streams of a process; whoever had them is told `detached`.
#[utoipa::path(get, path = "/v1/vms/{vm}/execs/{exec}/attach", tag = "exec", operation_id = "attach",
    params(("vm" = String, Path, description = "Name or id"), ("exec" = String, Path), AttachQuery),
    responses((status = 101, description = "`ClientMessage`s and `ServerMessage`s"), GuestErrors))]
pub async fn attach(
    call: Call,
    Vm(vm): Vm,
    Exec(exec): Exec,
    Query(from): Query<AttachQuery>,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let about = About::from(vms::glance(&call, vm).await?);
    let permit = call.permit(Command::Attach { vm: VmRef::Id(about.vm), exec }).await?;
    let from = AttachFrom { stdout: from.stdout_offset, stderr: from.stderr_offset };
    let session = call.engine.attach(permit, from).await?;
    let known =
        call.engine.execs(call.permit(Command::Inspect { vm: Some(VmRef::Id(about.vm)) }).await?).await?;
    let pid = known.into_iter().find(|known| known.id == exec).and_then(|known| known.pid);
    let present = call.app.activity.enter_session()?;
    Ok(upgrade.serve(move |socket| async move {
        let _present = present;
        let mut channel = Channel::new(socket);
        let outcome = take_up(&call, &mut channel, session, &about, pid).await;
        channel.close(&call, outcome).await;
    }))
}
