//! `try`: a command whose effects are kept only if it works.

use super::{
    Arguments, Effect,
    exec::USER,
    limits,
    output::{Output, ending},
};
use crate::{
    call::{Call, cancelled},
    reply::Reply,
};
use offshoot_api::{
    ClientError,
    client::TryEvent,
    v1::{CommandLine, ExecRequest, Problem, TryOutcome, TryPart, TryRequest},
};
use offshoot_types::{ErrorCode, Failure};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Try {
    /// A command line, run by `/bin/bash -c`.
    command: String,
    /// Another one, run after the first has succeeded; what both did is kept only if it succeeds too.
    check: Option<String>,
    /// Name or id of a VM; the session's own if absent.
    vm: Option<String>,
    /// Working directory, absolute; the user's home if absent.
    cwd: Option<String>,
    /// Who it runs as inside the VM, such as `root`; `user` if absent.
    user: Option<String>,
    /// Given up, and undone, after so many seconds; 120 if absent.
    timeout_seconds: Option<u64>,
}

impl Arguments for Try {
    const NAME: &'static str = "try";
    const TITLE: &'static str = "Try a command";
    const DESCRIPTION: &'static str = "Runs a command as a transaction: if it exits with 0 (and so does `check`, if \
        given), what it did is kept; otherwise the whole VM, memory and files, is taken back to the moment before. \
        Use it for what is risky: upgrades, migrations, clean-ups. Returns output, exit code and whether it was kept.";
    const EFFECT: Effect = Effect::Changes;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let vm = call.vm(self.vm.as_deref()).await?;
        let line = |shell: String| CommandLine { shell: Some(shell), argv: None };
        let request = TryRequest {
            exec: ExecRequest {
                shell: Some(self.command),
                cwd: self.cwd,
                user: Some(self.user.unwrap_or_else(|| USER.into())),
                ..ExecRequest::default()
            },
            check: self.check.map(line),
            timeout_ms: Some(limits::milliseconds(self.timeout_seconds)?),
        };
        let opening = call.client().try_exec(&vm, &request);
        let mut connection = call.unless_cancelled("beginning the transaction", opening).await?;
        let mut attempt = Attempt { vm: vm.to_string(), ..Attempt::default() };
        let mut stopping = false;
        let outcome = loop {
            let event = tokio::select! {
                biased;
                event = connection.events.next() => event,
                () = call.cancelled(), if !stopping => {
                    stopping = true;
                    connection.input.roll_back().await.map_err(ClientError::into_failure)?;
                    continue;
                }
            };
            match event.map_err(ClientError::into_failure)? {
                Some(TryEvent::Ended(outcome)) => break outcome,
                Some(event) => attempt.take(call, event).await,
                None => {
                    return Err(Failure::new(ErrorCode::Internal, "the transaction ended without an end"));
                }
            }
        };
        if call.is_cancelled() {
            let became =
                if outcome.end.committed { "was kept: it had succeeded already" } else { "was undone" };
            return Err(cancelled(format!("the command in VM {vm} {became}")));
        }
        Ok(attempt.reply(&outcome))
    }
}

#[derive(Debug, Default)]
struct Attempt {
    vm: String,
    command: Output,
    check: Option<(Output, Option<String>)>,
    problem: Option<Problem>,
}

impl Attempt {
    fn output(&mut self, part: TryPart) -> &mut Output {
        match part {
            TryPart::Command => &mut self.command,
            TryPart::Check => &mut self.check.get_or_insert_default().0,
        }
    }

    async fn take(&mut self, call: &Call, event: TryEvent) {
        match event {
            TryEvent::Begun { .. } => {
                call.progress.say("the state before is kept; running the command").await
            }
            TryEvent::Started { part: TryPart::Check, .. } => call.progress.say("running the check").await,
            TryEvent::Output { part, stream, data } => {
                self.output(part).push(stream, &data);
                call.progress.output(&data).await;
            }
            TryEvent::Lost { part, stream, bytes } => self.output(part).lost(stream, bytes),
            TryEvent::PartEnded { part, status, truncated } => {
                self.output(part).cut(truncated);
                if part == TryPart::Check {
                    self.check.get_or_insert_default().1 = Some(ending(status));
                }
            }
            TryEvent::PartFailed { problem, .. } => self.problem = Some(problem),
            TryEvent::Started { part: TryPart::Command, .. } | TryEvent::Ended(_) => {}
        }
    }

    fn reply(&self, outcome: &TryOutcome) -> Reply {
        let how = match outcome.status {
            Some(status) => ending(status),
            None => "did not run to its end".into(),
        };
        let became = match (&outcome.end.committed, &outcome.end.reason) {
            (true, _) => "KEPT".to_owned(),
            (false, Some(reason)) => format!("UNDONE ({reason}): the VM is as it was before"),
            (false, None) => "UNDONE: the VM is as it was before".to_owned(),
        };
        let mut text = format!("{became}\ncommand: {how} (VM {})", self.vm);
        self.command.tell(&mut text);
        if let Some((output, how)) = &self.check {
            text.push_str(&format!("\ncheck: {}", how.as_deref().unwrap_or("did not run to its end")));
            output.tell(&mut text);
        }
        if let Some(Problem { message, hint, .. }) = &self.problem {
            text.push_str(&format!("\nfailed: {message}"));
            if let Some(hint) = hint {
                text.push_str(&format!("\nhint: {hint}"));
            }
        }
        let data = json!({
            "vm": self.vm,
            "kept": outcome.end.committed,
            "reason": outcome.end.reason,
            "status": outcome.status,
            "transaction": outcome.transaction,
            "output": self.command.data(),
            "check": self.check.as_ref().map(|(output, how)| json!({ "ended": how, "output": output.data() })),
        });
        Reply::new(text, data)
    }
}
