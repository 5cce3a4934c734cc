//! `exec`: a command line.

use super::{
    Arguments, Effect, limits,
    output::{Output, ending},
};
use crate::{
    call::{Call, cancelled, grace_over},
    reply::Reply,
};
use offshoot_api::{
    ClientError,
    client::{ExecEvent, ExecInput},
    v1::{Ended, ExecLimits, ExecRequest, ExitStatus},
};
use offshoot_types::{ErrorCode, Failure};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

const SIGINT: i32 = 2;
/// How long a process whose call was cancelled may take to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// Who programs run as in a VM, unless a call says otherwise.
pub const USER: &str = "user";

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// A command line, run by `/bin/bash -c`. It has no standard input.
    command: String,
    /// Name or id of a VM; the session's own if absent.
    vm: Option<String>,
    /// Working directory, absolute; the user's home if absent.
    cwd: Option<String>,
    /// Environment variables.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Who it runs as inside the VM, such as `root`; `user` if absent.
    user: Option<String>,
    /// It is killed after so many seconds; 120 if absent.
    timeout_seconds: Option<u64>,
}

impl Arguments for Exec {
    const NAME: &'static str = "exec";
    const TITLE: &'static str = "Run a command";
    const DESCRIPTION: &'static str = "Runs a shell command in a VM and returns its exit code, stdout and stderr. Each \
        call is a process of its own: `cd` and variables do not last, files and background processes do. Long output \
        is cut in the middle, and the answer says how much is missing. Cancelling the call interrupts the command.";
    const EFFECT: Effect = Effect::Changes;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let vm = call.vm(self.vm.as_deref()).await?;
        let request = ExecRequest {
            shell: Some(self.command),
            env: self.env,
            cwd: self.cwd,
            user: Some(self.user.unwrap_or_else(|| USER.into())),
            limits: ExecLimits {
                timeout_ms: Some(limits::milliseconds(self.timeout_seconds)?),
                ..ExecLimits::default()
            },
            ..ExecRequest::default()
        };
        let connection =
            call.unless_cancelled("starting the command", call.client().exec(&vm, &request)).await?;
        let (mut input, mut events) = connection.split();
        let mut output = Output::default();
        let mut name = vm.to_string();
        let mut deadline = None;
        let ended = loop {
            let event = tokio::select! {
                biased;
                () = call.cancelled(), if deadline.is_none() => {
                    deadline = Some(Instant::now() + GRACE);
                    interrupt(&mut input).await?;
                    continue;
                }
                // Its connection goes with us, and the process with that.
                () = grace_over(deadline) => {
                    return Err(cancelled(format!("the command in VM {name} was killed")));
                }
                event = events.next() => event,
            };
            match event.map_err(ClientError::into_failure)? {
                Some(ExecEvent::Started(started)) => name = started.vm_name.to_string(),
                Some(ExecEvent::Output(stream, data)) => {
                    output.push(stream, &data);
                    call.progress.output(&data).await;
                }
                Some(ExecEvent::Lost(lost)) => output.lost(lost.stream, lost.bytes),
                Some(ExecEvent::Ended(ended)) => break ended,
                Some(ExecEvent::Progress(_)) => {}
                Some(ExecEvent::Detached) | None => return Err(unfollowed()),
            }
        };
        if call.is_cancelled() {
            return Err(cancelled(format!(
                "the command in VM {name} was interrupted: {}",
                ending(ended.status)
            )));
        }
        output.cut(ended.truncated);
        Ok(reply(&name, &ended, &output))
    }
}

async fn interrupt(input: &mut ExecInput) -> Result<(), Failure> {
    input.signal(SIGINT).await.map_err(ClientError::into_failure)
}

fn unfollowed() -> Failure {
    Failure::new(ErrorCode::Interrupted, "the command is no longer followed: somebody else took its streams")
        .hint("it runs on; `exec` with `ps` shows it")
}

fn reply(vm: &str, ended: &Ended, output: &Output) -> Reply {
    let milliseconds = ended.durations.guest_wall_us / 1000;
    let mut text = format!("{} (VM {vm}, {milliseconds} ms)", ending(ended.status));
    output.tell(&mut text);
    let timed_out = ended.status == ExitStatus::TimedOut;
    if timed_out {
        text.push_str(
            "\nhint: give it a longer `timeout_seconds`, or start it in the background (`nohup ... &`)",
        );
    }
    let data =
        json!({ "vm": vm, "status": ended.status, "milliseconds": milliseconds, "output": output.data() });
    let reply = Reply::new(text, data);
    if timed_out { reply.failed() } else { reply }
}
