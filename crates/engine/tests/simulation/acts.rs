//! One command, from the permit to its end.

use crate::{schedule::Verb, world::permit};
use offshoot_engine::{CodeEvent, Engine, ExecEvent, TryEvent, VmCondition};
use offshoot_guest_proto::client::ClientError;
use offshoot_types::{
    Command, ContextCode, CpuCount, DiskMib, ErrorCode, ExecArgv, ExecLimits, ExecSpec, Failure, FileAccess,
    ForkSource, LifeChange, Lifetime, MemMib, OperationKind, OperationOutcome, OperationState,
    ProviderChoice, ProviderKind, RollbackTo, SnapshotId, SnapshotKind, SnapshotPolicy, SnapshotRef,
    TimeLimit, TransactionEnd, TrySpec, VmRef, VmSpec, VmStateName,
};
use std::time::Duration;

const GRACE: Duration = Duration::from_secs(5);
/// Of a transaction: longer than what is done in it.
const DEADLINE: Duration = Duration::from_secs(600);
/// Between two looks at what a VM does by itself.
const LOOK: Duration = Duration::from_secs(5);
/// Without work, before it suspends itself.
const IDLE: Duration = Duration::from_secs(120);

/// A command whose time has come: what it names is chosen.
#[derive(Debug, Clone)]
pub struct Deed {
    pub verb: Verb,
    pub vm: String,
    pub snapshot: Option<SnapshotId>,
    /// Of the new snapshot or the new forks.
    pub name: String,
    pub count: u32,
    pub file: &'static str,
    pub value: String,
}

impl Deed {
    /// Of the operation it is carried out as.
    pub const fn kind(&self) -> OperationKind {
        match self.verb {
            Verb::Create => OperationKind::Create,
            Verb::Start => OperationKind::Start,
            Verb::Stop => OperationKind::Stop,
            Verb::Restart => OperationKind::Restart,
            Verb::Pause => OperationKind::Pause,
            Verb::Resume => OperationKind::Resume,
            Verb::Destroy => OperationKind::Destroy,
            Verb::Echo | Verb::Sleep | Verb::Rest | Verb::Rebase => OperationKind::Exec,
            Verb::Write => OperationKind::WriteFiles,
            Verb::SetVariable => OperationKind::Context,
            Verb::Snapshot | Verb::SnapshotDisk => OperationKind::Snapshot,
            Verb::RemoveSnapshot => OperationKind::RemoveSnapshot,
            Verb::RollbackNewest | Verb::RollbackTo | Verb::Undo => OperationKind::Rollback,
            Verb::Suspend => OperationKind::Suspend,
            Verb::Fork | Verb::ForkSnapshot => OperationKind::Fork,
            Verb::Try | Verb::TryAndFail | Verb::TransactAndCommit | Verb::TransactAndRollBack => {
                OperationKind::Transaction
            }
        }
    }

    /// What its forks are called.
    pub fn forks(&self) -> Vec<String> {
        match self.count {
            _ if !self.verb.forks() => Vec::new(),
            1 => vec![self.name.clone()],
            count => (1..=count).map(|n| format!("{}-{n}", self.name)).collect(),
        }
    }

    /// Whether it is to make a VM of this name.
    pub fn makes(&self, vm: &str) -> bool {
        (self.verb == Verb::Create && self.vm == vm) || self.forks().iter().any(|fork| fork == vm)
    }

    /// Carries it out. `Ok`: it was said to be done.
    pub async fn perform(&self, engine: &Engine) -> Result<(), Failure> {
        let vm = named(&self.vm);
        let permit = |command| permit(engine, command);
        match self.verb {
            Verb::Create => submit(engine, Command::Create { spec: spec(&self.vm) }).await,
            Verb::Start => submit(engine, Command::Start { vm }).await,
            Verb::Stop => submit(engine, Command::Stop { vm, grace: GRACE }).await,
            Verb::Restart => submit(engine, Command::Restart { vm, grace: GRACE }).await,
            Verb::Pause => submit(engine, Command::Pause { vm }).await,
            Verb::Resume => submit(engine, Command::Resume { vm }).await,
            Verb::Destroy => submit(engine, Command::Destroy { vm }).await,
            Verb::Suspend => submit(engine, Command::Suspend { vm }).await,
            Verb::Echo => exec(engine, vm, &["echo", "hello"], Until::Ended).await,
            Verb::Sleep => exec(engine, vm, &["sleep", "1000000"], Until::Started).await,
            Verb::Write => write(engine, vm, self.file, &self.value).await,
            Verb::SetVariable => code(engine, vm, format!("x = {}", self.value)).await.map(drop),
            Verb::Snapshot | Verb::SnapshotDisk => {
                let full = self.verb == Verb::Snapshot;
                let kind = if full { SnapshotKind::Full } else { SnapshotKind::DiskOnly };
                let name = Some(self.name.parse().expect("a name"));
                engine.snapshot(permit(Command::Snapshot { vm, name, kind, note: None })).await.map(drop)
            }
            Verb::RemoveSnapshot => prune(engine, self.snapshot.expect("chosen")).await,
            Verb::RollbackNewest => {
                engine.rollback(permit(Command::Rollback { vm, to: RollbackTo::Newest })).await.map(drop)
            }
            Verb::RollbackTo => {
                let to = RollbackTo::Snapshot(SnapshotRef::Id(self.snapshot.expect("chosen")));
                engine.rollback(permit(Command::Rollback { vm, to })).await.map(drop)
            }
            Verb::Undo => engine.rollback(permit(Command::Undo { vm })).await.map(drop),
            Verb::Fork => self.fork(engine, ForkSource::Vm(vm)).await,
            Verb::ForkSnapshot => {
                let snapshot = SnapshotRef::Id(self.snapshot.expect("chosen"));
                self.fork(engine, ForkSource::Snapshot(snapshot)).await
            }
            Verb::Rest => self.rest(engine).await,
            Verb::Rebase => self.rebase(engine).await,
            Verb::Try => self.attempt(engine, "exit 0").await,
            Verb::TryAndFail => self.attempt(engine, "exit 3").await,
            Verb::TransactAndCommit | Verb::TransactAndRollBack => self.transact(engine).await,
        }
    }

    async fn rest(&self, engine: &Engine) -> Result<(), Failure> {
        set_idle(engine, &self.vm, TimeLimit::After(IDLE)).await?;
        let vm = Command::Inspect { vm: Some(named(&self.vm)) };
        let at_rest = vec![VmStateName::Suspended, VmStateName::Stopped, VmStateName::Failed];
        let at_rest = VmCondition { states: at_rest, newer_than: None };
        // Whether it comes to that depends on the trouble.
        engine.wait_vm(permit(engine, vm), at_rest, Some(IDLE * 4)).await?;
        set_idle(engine, &self.vm, TimeLimit::None).await?;
        exec(engine, named(&self.vm), &["echo", "hello"], Until::Ended).await
    }

    /// Used, and left alone until it is moved to a fresh base, or long enough for that.
    async fn rebase(&self, engine: &Engine) -> Result<(), Failure> {
        exec(engine, named(&self.vm), &["echo", "hello"], Until::Ended).await?;
        let before = rebases(engine, &self.vm).await?;
        let until = tokio::time::Instant::now() + IDLE;
        while rebases(engine, &self.vm).await? == before && tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        exec(engine, named(&self.vm), &["echo", "hello"], Until::Ended).await
    }

    async fn attempt(&self, engine: &Engine, end: &str) -> Result<(), Failure> {
        let script = format!("echo -n {} > {}; {end}", self.value, self.file);
        let spec = TrySpec { exec: program(ExecArgv::Shell(script)), check: None, timeout: None };
        let command = Command::Try { vm: named(&self.vm), spec: Box::new(spec) };
        let mut session = engine.try_exec(permit(engine, command)).await?;
        while let Some(event) = session.next().await {
            match event {
                TryEvent::Begun { .. } | TryEvent::Exec(_) | TryEvent::Check(_) => {}
                TryEvent::Ended(end) if end.end == TransactionEnd::Committed => return Ok(()),
                TryEvent::Ended(end) => {
                    return Err(Failure::new(ErrorCode::Interrupted, format!("{:?}", end.end)));
                }
                TryEvent::Failed(failure) => return Err(failure),
            }
        }
        Err(Failure::new(ErrorCode::Interrupted, "the session ended without a last event"))
    }

    async fn transact(&self, engine: &Engine) -> Result<(), Failure> {
        let vm = named(&self.vm);
        let begin = Command::Begin { vm: vm.clone(), parent: None, deadline: DEADLINE };
        let transaction = engine.begin_transaction(permit(engine, begin)).await?.id;
        let written = write(&engine.within(transaction), vm.clone(), self.file, &self.value).await;
        if written.is_ok() && self.verb == Verb::TransactAndCommit {
            engine.commit_transaction(permit(engine, Command::Commit { vm, transaction })).await.map(drop)
        } else {
            let roll_back = Command::RollbackTransaction { vm, transaction };
            engine.rollback_transaction(permit(engine, roll_back)).await?;
            written
        }
    }

    async fn fork(&self, engine: &Engine, source: ForkSource) -> Result<(), Failure> {
        let name = Some(self.name.parse().expect("a name"));
        let command = Command::Fork { source, name, count: self.count };
        engine.fork(permit(engine, command)).await.map(drop)
    }
}

/// How many have ended, however.
async fn rebases(engine: &Engine, vm: &str) -> Result<usize, Failure> {
    let inspect = permit(engine, Command::Inspect { vm: Some(named(vm)) });
    let operations = engine.operations(inspect, Default::default()).await?;
    let ended = operations.iter().filter(|operation| {
        operation.kind == OperationKind::Rebase && matches!(operation.state, OperationState::Ended { .. })
    });
    Ok(ended.count())
}

pub async fn set_idle(engine: &Engine, vm: &str, limit: TimeLimit) -> Result<(), Failure> {
    let life = LifeChange { idle_suspend: Some(limit), ..LifeChange::default() };
    engine.set_life(permit(engine, Command::SetLife { vm: named(vm), life })).await.map(drop)
}

pub fn named(name: &str) -> VmRef {
    VmRef::Name(name.parse().expect("a name"))
}

pub async fn submit(engine: &Engine, command: Command) -> Result<(), Failure> {
    let operation = engine.submit(permit(engine, command)).await?;
    match engine.wait(operation.id, None).await?.state {
        OperationState::Ended { outcome: OperationOutcome::Done } => Ok(()),
        OperationState::Ended { outcome: OperationOutcome::Failed { failure } } => Err(failure),
        other => Err(Failure::new(ErrorCode::Interrupted, format!("{other:?}"))),
    }
}

pub async fn remove(engine: &Engine, snapshot: SnapshotId) -> Result<(), Failure> {
    let command = Command::RemoveSnapshot { snapshot: SnapshotRef::Id(snapshot), prune: false };
    engine.remove_snapshot(permit(engine, command)).await.map(drop)
}

/// Also from the middle of the tree.
pub async fn prune(engine: &Engine, snapshot: SnapshotId) -> Result<(), Failure> {
    let command = Command::RemoveSnapshot { snapshot: SnapshotRef::Id(snapshot), prune: true };
    engine.remove_snapshot(permit(engine, command)).await.map(drop)
}

fn spec(name: &str) -> Box<VmSpec> {
    Box::new(VmSpec {
        name: name.parse().expect("a name"),
        image: "base".parse().expect("a reference"),
        image_digest: "0a".repeat(32).parse().expect("a digest"),
        provider: ProviderChoice::Named(ProviderKind::Fake),
        min_isolation: None,
        memory: MemMib::from_mib(128).expect("a size"),
        cpus: CpuCount::ONE,
        disk: DiskMib::from_mib(64).expect("a size"),
        lifetime: Lifetime::Kept,
        labels: Default::default(),
        env: Default::default(),
        policy: SnapshotPolicy::default(),
        life: Default::default(),
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Until {
    Started,
    Ended,
}

async fn exec(engine: &Engine, vm: VmRef, words: &[&str], until: Until) -> Result<(), Failure> {
    let spec = Box::new(program(ExecArgv::Argv(words.iter().map(ToString::to_string).collect())));
    let mut session = engine.exec(permit(engine, Command::Exec { vm, spec })).await?;
    while let Some(event) = session.next().await {
        match event {
            ExecEvent::Started { .. } if until == Until::Started => {
                session.detach();
                return Ok(());
            }
            ExecEvent::Started { .. } | ExecEvent::Output { .. } | ExecEvent::Lost { .. } => {}
            ExecEvent::Ended(_) => return Ok(()),
            ExecEvent::Failed(failure) => return Err(failure),
            ExecEvent::Detached => break,
        }
    }
    Err(Failure::new(ErrorCode::Interrupted, "the session ended without a last event"))
}

fn program(argv: ExecArgv) -> ExecSpec {
    ExecSpec {
        argv,
        env: Default::default(),
        cwd: None,
        user: "root".into(),
        pty: None,
        stdin: false,
        tag: None,
        limits: ExecLimits::default(),
    }
}

async fn write(engine: &Engine, vm: VmRef, path: &str, value: &str) -> Result<(), Failure> {
    let command = Command::Files { vm, access: FileAccess::Write, path: path.into() };
    let access = engine.guest(permit(engine, command)).await?;
    let written = async {
        let mut writer = access.client().files("root").write(path, None, false, false).await?;
        writer.send(value.as_bytes()).await?;
        writer.finish().await
    };
    let outcome = written.await.map(drop).map_err(|error| lost(&error));
    access.complete(outcome.clone()).await;
    outcome
}

fn lost(error: &ClientError) -> Failure {
    Failure::new(ErrorCode::Guest, error.to_string())
}

/// The content of a file in the guest; `None` if there is none.
pub async fn read(engine: &Engine, vm: VmRef, path: &str) -> Result<Option<String>, Failure> {
    let command = Command::Files { vm, access: FileAccess::Read, path: path.into() };
    let access = engine.guest(permit(engine, command)).await?;
    let mut reader = match access.client().files("root").read(path, 0, None).await {
        Ok(reader) => reader,
        Err(error) if error.to_string().contains("no such file") => return Ok(None),
        Err(error) => return Err(lost(&error)),
    };
    let mut all = Vec::new();
    while let Some(data) = reader.next().await.map_err(|error| lost(&error))? {
        all.extend_from_slice(&data);
    }
    Ok(Some(String::from_utf8_lossy(&all).into_owned()))
}

/// Runs code in the one live context and returns the value of its last expression.
async fn code(engine: &Engine, vm: VmRef, code: String) -> Result<Option<String>, Failure> {
    let context = "main".parse().expect("a name");
    let code = ContextCode {
        context,
        language: None,
        code,
        timeout: None,
        user: "root".into(),
        cwd: None,
        context_env: Default::default(),
        env: Default::default(),
        existing: false,
    };
    let mut session = engine.run_code(permit(engine, Command::RunCode { vm, code: Box::new(code) })).await?;
    let mut value = None;
    while let Some(event) = session.next().await {
        match event {
            CodeEvent::Started { .. }
            | CodeEvent::Output { .. }
            | CodeEvent::Display { .. }
            | CodeEvent::Error { .. } => {}
            CodeEvent::Value { mime } => value = mime.get("text/plain").cloned(),
            CodeEvent::Ended { .. } => return Ok(value),
            CodeEvent::Failed(failure) => return Err(failure),
        }
    }
    Err(Failure::new(ErrorCode::Interrupted, "the session ended without a last event"))
}

/// The variable of the live context; `None` if it has none.
pub async fn variable(engine: &Engine, vm: VmRef) -> Result<Option<String>, Failure> {
    code(engine, vm, "x".into()).await
}
