//! Code in a context: its events as lines of JSON, as they come.
//!
//! ```text
//! request --> run_code --first event, or 5 s--> 200 --> number_of_executions (stdout | stderr | result)* error? end
//!                 '-- refused, or failed before that: a status and a sentence      '-- keepalive every 5 s
//! ```
//! Head and first line leave together. A client that leaves drops the stream, and with it the session, which interrupts
//! the code; its variables stay.

use super::{MAX_BODY, contexts::named, default_context, default_of, failure::Refused, result};
use crate::{
    activity::Present,
    characters::whole_characters,
    e2b::sandbox::{DEFAULT_USER, Sandbox},
    http::{Call, glance, read_body},
};
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures::{FutureExt, stream};
use jiff::Timestamp;
use offshoot_engine::{CodeEvent, CodeSession, OutputStream};
use offshoot_guest_proto::message::{INTERPRETER_DIED, INTERPRETER_KILLED};
use offshoot_types::{
    Command, ContextCode, ContextName, ErrorCode, Failure, Language, VmId, VmRef, VmStateName,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};

/// Clients take silence for a connection that is gone.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// What is ready is sent together up to this; a picture is larger, and goes alone.
const CHUNK: usize = 64 * 1024;
/// What clients call an interpreter that has ended.
const LOST: &str = "UnexpectedEndOfExecution";

#[derive(Debug, Deserialize)]
struct Execution {
    code: String,
    context_id: Option<String>,
    language: Option<String>,
    env_vars: Option<BTreeMap<String, String>>,
}

pub async fn execute(sandbox: Sandbox, body: Body) -> Result<Response, Refused> {
    let body = read_body(body, MAX_BODY).await?;
    let wanted: Execution =
        serde_json::from_slice(&body).map_err(|error| Refused::invalid(error.to_string()))?;
    let named_context = wanted.context_id.as_deref();
    let mut code = match (named_context, &wanted.language) {
        (Some(_), Some(_)) => {
            return Err(Refused::invalid("Only one of context_id or language can be provided"));
        }
        (Some(id), None) => {
            let context = named(id)?;
            let default = default_of(&context);
            let code = code(context, wanted.code);
            ContextCode { language: default, existing: default.is_none(), ..code }
        }
        (None, _) => {
            let language = language(wanted.language.as_deref())?;
            ContextCode { language: Some(language), ..code(default_context(language), wanted.code) }
        }
    };
    code.env = wanted.env_vars.unwrap_or_default();
    let Sandbox { call, vm, .. } = sandbox;
    let present = call.app.activity.enter_session()?;
    let permit = call.permit(Command::RunCode { vm: VmRef::Id(vm), code: Box::new(code) }).await?;
    let mut session = call.until_cut(call.engine.run_code(permit)).await?;
    // Code that waits its turn behind another may wait long: then the answer begins without it.
    let first = match timeout(KEEPALIVE, session.next()).await {
        Ok(Some(CodeEvent::Failed(failure))) if failure.code == ErrorCode::NotFound => {
            return Err(named_context.map_or_else(|| failure.into(), Refused::no_context));
        }
        Ok(Some(CodeEvent::Failed(failure))) => return Err(failure.into()),
        Ok(Some(event)) => Some(event),
        Ok(None) => return Err(without_end().into()),
        Err(_it_waits) => None,
    };
    let mut lines = Lines::new(call, vm, session, present);
    if let Some(event) = first {
        lines.take(event);
    }
    let chunks = stream::unfold(lines, async |mut lines| {
        let chunk = lines.chunk().await?;
        Some((chunk, lines))
    });
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(([kind], Body::from_stream(chunks)).into_response())
}

/// Code for a context of the default user, made if there is none.
pub(super) fn code(context: ContextName, code: String) -> ContextCode {
    ContextCode {
        context,
        language: None,
        code,
        timeout: None,
        user: DEFAULT_USER.into(),
        cwd: None,
        context_env: BTreeMap::new(),
        env: BTreeMap::new(),
        existing: false,
    }
}

/// Python unless another is named.
pub(super) fn language(named: Option<&str>) -> Result<Language, Refused> {
    match named {
        None => Ok(Language::Python),
        Some(name) => name.to_lowercase().parse().map_err(|_unknown| {
            let known: Vec<&str> = Language::ALL.iter().map(|language| language.as_str()).collect();
            Refused::invalid(format!("language `{name}` is not supported; {} are", known.join(", ")))
        }),
    }
}

fn without_end() -> Failure {
    Failure::new(ErrorCode::Internal, "the code ended without an end")
}

/// What is said of one execution, and how far that has come.
struct Lines {
    call: Call,
    vm: VmId,
    session: CodeSession,
    _present: Present,
    keepalive: Interval,
    /// Bytes at the end of a stream's last piece that are not a whole character yet.
    tails: [Vec<u8>; 2],
    pending: VecDeque<Vec<u8>>,
    /// Why nothing further can be heard of the code.
    failed: Option<String>,
    over: bool,
}

/// The sandbox went in the middle. Clients take an answer that breaks off for that, and one with an end for the code's own.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox does not run any more")]
struct BrokenOff;

impl Lines {
    fn new(call: Call, vm: VmId, session: CodeSession, present: Present) -> Self {
        let mut keepalive = interval_at(Instant::now() + KEEPALIVE, KEEPALIVE);
        keepalive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (tails, pending) = (Default::default(), VecDeque::new());
        Self { call, vm, session, _present: present, keepalive, tails, pending, failed: None, over: false }
    }

    /// What is there to be said, and at least one line; `None` after the last. Nothing is lost if it is dropped.
    async fn chunk(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        while self.pending.is_empty() {
            if self.over {
                return None;
            }
            if let Some(why) = self.failed.take() {
                if !self.runs().await {
                    self.over = true;
                    return Some(Err(BrokenOff));
                }
                self.lose(&why);
                continue;
            }
            tokio::select! {
                biased;
                event = self.session.next() => self.take_next(event),
                () = self.call.app.shutdown.expired() => self.lose("the daemon is stopping"),
                _ = self.keepalive.tick() => self.say(&json!({ "type": "keepalive" })),
            }
        }
        self.keepalive.reset();
        while !self.over && self.failed.is_none() && self.pending.iter().map(Vec::len).sum::<usize>() < CHUNK
        {
            let Some(event) = self.session.next().now_or_never() else { break };
            self.take_next(event);
        }
        let mut chunk = self.pending.pop_front()?;
        while self.pending.front().is_some_and(|next| chunk.len() + next.len() <= CHUNK) {
            chunk.extend(self.pending.pop_front().unwrap_or_default());
        }
        Some(Ok(chunk.into()))
    }

    async fn runs(&self) -> bool {
        let view = glance(&self.call, VmRef::Id(self.vm)).await;
        view.is_ok_and(|view| view.state.name() == VmStateName::Running)
    }

    fn take_next(&mut self, event: Option<CodeEvent>) {
        match event {
            Some(event) => self.take(event),
            None => self.lose(&without_end().message),
        }
    }

    fn take(&mut self, event: CodeEvent) {
        match event {
            CodeEvent::Started { count, .. } => {
                self.say(&json!({ "type": "number_of_executions", "execution_count": count }));
            }
            CodeEvent::Output { stream, data } => self.output(stream, &data),
            // Clients know no display that takes the place of another; as a further result it would be there twice.
            CodeEvent::Display { update: true, .. } => {}
            CodeEvent::Display { mime, .. } => self.say(&result::line(mime, false)),
            CodeEvent::Value { mime } => self.say(&result::line(mime, true)),
            CodeEvent::Error { name, message, .. }
                if name == INTERPRETER_DIED || name == INTERPRETER_KILLED =>
            {
                self.error(LOST, &message, "");
            }
            CodeEvent::Error { name, message, traceback } => self.error(&name, &message, &traceback),
            CodeEvent::Ended { .. } => self.end(),
            CodeEvent::Failed(failure) => self.failed = Some(failure.message),
        }
    }

    fn output(&mut self, stream: OutputStream, data: &[u8]) {
        let (kind, tail) = match stream {
            OutputStream::Stdout => ("stdout", &mut self.tails[0]),
            OutputStream::Stderr => ("stderr", &mut self.tails[1]),
        };
        tail.extend_from_slice(data);
        let text = whole_characters(tail);
        self.text(kind, &text);
    }

    fn text(&mut self, kind: &str, text: &str) {
        if !text.is_empty() {
            let timestamp = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
            self.say(&json!({ "type": kind, "text": text, "timestamp": timestamp }));
        }
    }

    fn error(&mut self, name: &str, value: &str, traceback: &str) {
        self.say(&json!({ "type": "error", "name": name, "value": value, "traceback": traceback }));
    }

    fn lose(&mut self, why: &str) {
        self.error(LOST, why, "");
        self.end();
    }

    fn end(&mut self) {
        let [stdout, stderr] = std::mem::take(&mut self.tails);
        self.text("stdout", &String::from_utf8_lossy(&stdout));
        self.text("stderr", &String::from_utf8_lossy(&stderr));
        self.say(&json!({ "type": "end_of_execution" }));
        self.over = true;
    }

    fn say(&mut self, line: &Value) {
        let mut line = line.to_string().into_bytes();
        line.push(b'\n');
        self.pending.push_back(line);
    }
}
