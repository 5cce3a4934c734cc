//! What a process is given: input, its end, signals, the size of its terminal.

use super::{
    find,
    messages::{
        Empty, Input, ProcessRequest, Selector, SendInputRequest, SendSignalRequest, Signal,
        StreamInputRequest, UpdateRequest,
    },
};
use crate::{
    e2b::{
        envd::connect::{Code, ConnectError, Deadline, Messages, Unary, summed_up},
        sandbox::Sandbox,
    },
    http::drain,
};
use axum::{Json, response::Response};
use offshoot_engine::{ExecInput, ExecState, SessionClosed};
use offshoot_types::{Command, VmRef};
use std::time::Duration;
use tokio::time::timeout;

/// How long the end of a process that was killed is waited for.
const DEATH: Duration = Duration::from_secs(5);
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// The way to a process that runs.
struct Opened {
    input: ExecInput,
    pid: u32,
    pty: bool,
    stdin: bool,
}

async fn open(sandbox: &Sandbox, selector: Option<Selector>) -> Result<Opened, ConnectError> {
    let view = find(sandbox, selector).await?;
    let pid = view.pid.unwrap_or_default();
    if view.state != ExecState::Running {
        return Err(over(pid));
    }
    let call = &sandbox.call;
    let permit = call.permit(Command::Attach { vm: VmRef::Id(sandbox.vm), exec: view.id }).await?;
    let input = call.engine.process_input(permit).await?;
    Ok(Opened { input, pid, pty: view.spec.pty.is_some(), stdin: view.spec.stdin })
}

/// To who asks for a process that has ended there is none.
fn over(pid: u32) -> ConnectError {
    ConnectError::new(Code::NotFound, format!("process {pid} has ended"))
}

fn not_so(message: &str) -> ConnectError {
    ConnectError::new(Code::FailedPrecondition, message)
}

impl Opened {
    async fn give(&self, input: Option<Input>) -> Result<(), ConnectError> {
        let data = match input {
            Some(Input { stdin: Some(_), pty: None }) if self.pty => {
                return Err(not_so("the process has a terminal: its input is `pty`"));
            }
            Some(Input { stdin: None, pty: Some(_) }) if !self.pty => {
                return Err(not_so("the process has no terminal: its input is `stdin`"));
            }
            Some(Input { stdin: Some(_), pty: None }) if !self.stdin => {
                return Err(not_so("the process was started without an open stdin"));
            }
            Some(Input { stdin: Some(data), pty: None } | Input { stdin: None, pty: Some(data) }) => data,
            _ => return Err(ConnectError::invalid("`input`: neither `stdin` nor `pty`, or both")),
        };
        self.done(self.input.stdin(data.into()).await)
    }

    fn done(&self, given: Result<(), SessionClosed>) -> Result<(), ConnectError> {
        given.map_err(|SessionClosed| over(self.pid))
    }
}

pub async fn send_input(
    sandbox: Sandbox,
    deadline: Deadline,
    Unary(request): Unary<SendInputRequest>,
) -> Result<Json<Empty>, ConnectError> {
    let given = async { open(&sandbox, request.process).await?.give(request.input).await };
    deadline.bound(given).await.map(|()| Json(Empty {}))
}

/// Input in many pieces; a process that reads slowly slows its sender.
pub async fn stream_input(sandbox: Sandbox, deadline: Deadline, mut messages: Messages) -> Response {
    let outcome = deadline.bound(take_all(&sandbox, &mut messages)).await;
    if outcome.is_err() {
        drain(&sandbox.call, messages.into_body());
    }
    summed_up(outcome.map(|()| Empty {}))
}

async fn take_all(sandbox: &Sandbox, messages: &mut Messages) -> Result<(), ConnectError> {
    let mut opened = None;
    while let Some(message) = messages.next::<StreamInputRequest>().await? {
        match message {
            StreamInputRequest { start: Some(ProcessRequest { process }), .. } => {
                opened = Some(open(sandbox, process).await?);
            }
            StreamInputRequest { data: Some(data), .. } => {
                let opened = opened.as_ref();
                let opened = opened.ok_or_else(|| not_so("input before `start` has said whose it is"))?;
                opened.give(data.input).await?;
            }
            StreamInputRequest { keepalive: Some(Empty {}), .. } => {}
            _ => {
                return Err(ConnectError::invalid(
                    "a message of none of the kinds `start`, `data`, `keepalive`",
                ));
            }
        }
    }
    Ok(())
}

pub async fn close_stdin(
    sandbox: Sandbox,
    deadline: Deadline,
    Unary(request): Unary<ProcessRequest>,
) -> Result<Json<Empty>, ConnectError> {
    let closed = async {
        let opened = open(&sandbox, request.process).await?;
        if opened.pty {
            return Err(not_so("the process has a terminal: send it Ctrl-D (0x04)"));
        }
        if !opened.stdin {
            return Err(not_so("the process was started without an open stdin"));
        }
        opened.done(opened.input.end_stdin().await)
    };
    deadline.bound(closed).await.map(|()| Json(Empty {}))
}

/// `SIGKILL` to the process and all it has started, `SIGTERM` to its group.
pub async fn send_signal(
    sandbox: Sandbox,
    deadline: Deadline,
    Unary(request): Unary<SendSignalRequest>,
) -> Result<Json<Empty>, ConnectError> {
    let signal = match &request.signal {
        Some(Signal::Number(number @ (SIGKILL | SIGTERM))) => *number,
        Some(Signal::Name(name)) if name == "SIGNAL_SIGKILL" => SIGKILL,
        Some(Signal::Name(name)) if name == "SIGNAL_SIGTERM" => SIGTERM,
        other => {
            let problem =
                format!("`signal`: only SIGNAL_SIGTERM and SIGNAL_SIGKILL can be sent, not {other:?}");
            return Err(ConnectError::new(Code::Unimplemented, problem));
        }
    };
    let sent = async {
        let opened = open(&sandbox, request.process).await?;
        if signal != SIGKILL {
            return opened.done(opened.input.signal(signal).await);
        }
        opened.done(opened.input.kill().await)?;
        // Whoever asks next is to find it gone.
        let _gone_or_late = timeout(DEATH, opened.input.closed()).await;
        Ok(())
    };
    deadline.bound(sent).await.map(|()| Json(Empty {}))
}

/// Sets the size of its terminal.
pub async fn update(
    sandbox: Sandbox,
    deadline: Deadline,
    Unary(request): Unary<UpdateRequest>,
) -> Result<Json<Empty>, ConnectError> {
    let resized = async {
        let opened = open(&sandbox, request.process).await?;
        // Nothing to be changed is fine.
        let Some(pty) = request.pty else { return Ok(()) };
        if !opened.pty {
            return Err(not_so("the process has no terminal"));
        }
        let size = pty.size().ok_or_else(|| {
            ConnectError::invalid("`pty.size`: a terminal has from 1 to 65535 columns and rows")
        })?;
        opened.done(opened.input.resize(size).await)
    };
    deadline.bound(resized).await.map(|()| Json(Empty {}))
}
