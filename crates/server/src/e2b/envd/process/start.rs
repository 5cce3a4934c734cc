//! Starting a process, and reading along with one.

use super::{
    events::{Events, end},
    find,
    messages::{ConnectRequest, Event, EventResponse, StartRequest},
};
use crate::e2b::{
    envd::connect::{Code, ConnectError, Failed, OneMessage, Pace, Source, respond},
    sandbox::Sandbox,
};
use axum::response::Response;
use offshoot_engine::{ExecState, OnDrop};
use offshoot_types::{Command, ErrorCode, ExecArgv, ExecLimits, ExecSpec, Failure, VmRef};

/// Runs a process and streams what it does. The call's deadline is the process's; leaving the stream is not its end.
pub async fn start(
    sandbox: Sandbox,
    OneMessage { message, pace }: OneMessage<StartRequest>,
) -> Result<Response, Failed> {
    let present = sandbox.call.app.activity.enter_session()?;
    let spec = spec(&sandbox, message, pace)?;
    let pty = spec.pty.is_some();
    let call = &sandbox.call;
    let permit = call.permit(Command::Exec { vm: VmRef::Id(sandbox.vm), spec: Box::new(spec) }).await?;
    let session = call.engine.exec(permit).await?;
    let (_, events) = session.split();
    events.on_drop(OnDrop::Detach);
    let mut events = Events::new(events, pty, true, present);
    let pid = call.until_cut(events.started()).await.map_err(not_started)?;
    // Its time is the process's, which the guest keeps; the stream ends with it.
    let pace = Pace { limit: None, ..pace };
    Ok(respond(&call.app, Event::Start { pid }.into(), events, pace))
}

fn spec(sandbox: &Sandbox, message: StartRequest, pace: Pace) -> Result<ExecSpec, ConnectError> {
    let process = message.process.ok_or_else(|| ConnectError::invalid("`process`: what is to be run?"))?;
    let pty = match &message.pty {
        None => None,
        Some(pty) => Some(pty.size().ok_or_else(|| {
            ConnectError::invalid("`pty.size`: a terminal has from 1 to 65535 columns and rows")
        })?),
    };
    let argv = [process.cmd].into_iter().chain(process.args).collect();
    Ok(ExecSpec {
        argv: ExecArgv::Argv(argv),
        env: process.envs,
        cwd: process.cwd.filter(|cwd| !cwd.is_empty()),
        user: sandbox.user.clone(),
        pty,
        stdin: message.stdin.unwrap_or(true),
        tag: message.tag,
        limits: ExecLimits { timeout: pace.limit, ..ExecLimits::default() },
    })
}

/// A program or a directory that is not there is the request's fault.
fn not_started(failure: Failure) -> ConnectError {
    let code = match failure.code {
        ErrorCode::NotFound | ErrorCode::Denied => Code::InvalidArgument,
        _ => return failure.into(),
    };
    ConnectError::new(code, failure.message)
}

/// What a process prints from now on, and how it ends.
pub async fn connect(
    sandbox: Sandbox,
    OneMessage { message, pace }: OneMessage<ConnectRequest>,
) -> Result<Response, Failed> {
    let call = &sandbox.call;
    let present = call.app.activity.enter_session()?;
    let view = find(&sandbox, message.process).await?;
    if let (ExecState::Ended(status), false, Some(pid)) = (&view.state, message.replay, view.pid) {
        // Nothing of it is to come but its end, which is known here.
        let last = Last(Some(Event::End(end(*status))));
        return Ok(respond(&call.app, Event::Start { pid }.into(), last, pace));
    }
    let permit = call.permit(Command::Attach { vm: VmRef::Id(sandbox.vm), exec: view.id }).await?;
    let events = call.engine.follow(permit, message.replay).await?;
    let mut events = Events::new(events, view.spec.pty.is_some(), false, present);
    let pid = call.until_cut(events.started()).await?;
    Ok(respond(&call.app, Event::Start { pid }.into(), events, pace))
}

/// A stream of one event.
struct Last(Option<Event>);

impl Source for Last {
    type Message = EventResponse;
    async fn next(&mut self) -> Option<Result<EventResponse, ConnectError>> {
        self.0.take().map(|event| Ok(event.into()))
    }
    fn keepalive() -> EventResponse {
        Event::Keepalive {}.into()
    }
}
