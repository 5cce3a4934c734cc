//! A stage on the fake provider: its guests have files, programs and interpreters, and can be checkpointed and restored.

use crate::stage::*;
use offshoot_engine::{CodeEvent, Engine, ExecEvent};
use offshoot_provider::fake::{FakeHost, FakeProvider};
use offshoot_types::{Command, ContextCode, ExecArgv, ExecSpec, ExecStatus, Failure, VmId};
use std::{sync::Arc, time::Duration};

/// Longer than anything in memory takes.
pub const SOON: Duration = Duration::from_secs(30);

pub struct Fake {
    pub stage: Stage,
    pub host: FakeHost,
}

impl Fake {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Stage)) -> Self {
        let host = FakeHost::new();
        let mut stage = Stage::new();
        stage.provider = Some(Arc::new(FakeProvider::new(host.clone())));
        change(&mut stage);
        Self { stage, host }
    }

    /// An engine with the running VM `a`.
    pub async fn running(&self) -> (Engine, VmId) {
        let engine = self.stage.engine().await;
        let id = create_running(&engine, "a").await;
        (engine, id)
    }
}

pub fn shell(script: &str) -> Box<ExecSpec> {
    Box::new(ExecSpec { argv: ExecArgv::Shell(script.into()), ..*argv(&["true"]) })
}

/// Runs a script to its end; output and status.
pub async fn sh_in(engine: &Engine, name: &str, script: &str) -> Result<(String, ExecStatus), Failure> {
    let command = Command::Exec { vm: named(name), spec: shell(script) };
    let session = engine.exec(permit(engine, command)).await?;
    match output(session).await {
        (text, ExecEvent::Ended(end)) => Ok((String::from_utf8(text).unwrap(), end.status)),
        (_, ExecEvent::Failed(failure)) => Err(failure),
        (_, other) => panic!("{other:?}"),
    }
}

pub async fn sh(engine: &Engine, script: &str) -> (String, ExecStatus) {
    sh_in(engine, "a", script).await.unwrap()
}

/// What a file of VM `a` holds, without the last line's end; `None` if it is not there.
pub async fn file(engine: &Engine, path: &str) -> Option<String> {
    let (text, status) = sh(engine, &format!("cat {path}")).await;
    status.success().then(|| text.trim_end().to_owned())
}

pub fn code(context: &str, text: &str) -> Box<ContextCode> {
    Box::new(ContextCode {
        context: context.parse().unwrap(),
        language: None,
        code: text.into(),
        timeout: None,
        user: "root".into(),
        cwd: None,
        context_env: Default::default(),
        env: Default::default(),
        existing: false,
    })
}

/// All events of one piece of code in VM `a`.
pub async fn run_code(engine: &Engine, code: Box<ContextCode>) -> Result<Vec<CodeEvent>, Failure> {
    let command = Command::RunCode { vm: named("a"), code };
    let mut session = engine.run_code(permit(engine, command)).await?;
    let mut events = Vec::new();
    while let Some(event) = tokio::time::timeout(SOON, session.next()).await.expect("an event in time") {
        events.push(event);
    }
    Ok(events)
}

/// The text of the value of one piece of code.
pub async fn value(engine: &Engine, context: &str, text: &str) -> String {
    let events = run_code(engine, code(context, text)).await.unwrap();
    let value = events.iter().find_map(|event| match event {
        CodeEvent::Value { mime } => Some(mime["text/plain"].clone()),
        _ => None,
    });
    value.unwrap_or_else(|| panic!("no value in {events:?}"))
}
