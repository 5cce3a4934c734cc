//! One state directory on one host, and engines on it, one after the other.

use crate::host::Host;
use futures::future::BoxFuture;
use offshoot_engine::{
    BootFiles, Checkpoint, Checkpoints, Deadlines, Engine, Fault, ForkReport, HistoryOptions, Images, Limits,
    Merging, OnShutdown, Options, PoolOptions, Rebasing, RollbackReport, SnapshotView, StateDirLock,
    SystemClock, VmCondition, VmView,
};
use offshoot_policy::{Authorized, Decision, Policy};
use offshoot_provider::Provider;
use offshoot_types::{
    Actor, Command, DiskMib, ExecArgv, ExecLimits, ExecSpec, ExecStatus, Failure, ForkSource, ImageDigest,
    Lifetime, MemMib, NodeName, Operation, OperationOutcome, OperationState, Owner, ProviderChoice,
    ProviderKind, RollbackTo, SnapshotId, SnapshotKind, SnapshotPolicy, SnapshotRef, VmId, VmRef, VmSpec,
    VmStateName,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tempfile::TempDir;

const UID: u32 = 1000;

pub struct Stage {
    pub host: Host,
    pub dir: TempDir,
    pub limits: Limits,
    pub deadlines: Deadlines,
    pub pool: PoolOptions,
    pub merging: Merging,
    pub history: HistoryOptions,
    pub rebasing: Rebasing,
    pub checkpoints: Checkpoints,
    /// Instead of one file for every part of every image.
    pub images: Option<Arc<dyn Images>>,
    /// Instead of that of the host.
    pub provider: Option<Arc<dyn Provider>>,
}

#[derive(Debug)]
struct FileImages(PathBuf);

impl Images for FileImages {
    fn boot_files(&self, _: &ImageDigest) -> Result<BootFiles, Failure> {
        let part = || self.0.clone();
        Ok(BootFiles { kernel: part(), initramfs: part(), root: part(), disk_template: part() })
    }
}

impl Stage {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), vec![0; 4096]).unwrap();
        Self {
            host: Host::default(),
            dir,
            limits: Limits::UNBOUNDED,
            deadlines: Deadlines::default(),
            pool: PoolOptions::default(),
            merging: Merging::default(),
            history: HistoryOptions::default(),
            // Soon, but of a process that has much memory of its own only: see `Host::swell`.
            rebasing: Rebasing { idle: Some(Duration::from_millis(20)), ..Rebasing::default() },
            checkpoints: Checkpoints::default(),
            images: None,
            provider: None,
        }
    }

    pub fn at_checkpoints(
        mut self,
        visit: impl Fn(Checkpoint) -> BoxFuture<'static, Fault> + Send + Sync + 'static,
    ) -> Self {
        self.checkpoints = Checkpoints::new(visit);
        self
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
    pub fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Takes the lock as soon as the engine before has let go of it.
    pub async fn engine(&self) -> Engine {
        self.engine_with(self.checkpoints.clone()).await
    }

    pub async fn engine_with(&self, checkpoints: Checkpoints) -> Engine {
        let lock = StateDirLock::acquire_within(&self.state(), Duration::from_secs(10)).await.unwrap();
        let options = Options {
            runtime_dir: self.runtime(),
            images: self
                .images
                .clone()
                .unwrap_or_else(|| Arc::new(FileImages(self.dir.path().join("image")))),
            providers: vec![self.provider.clone().unwrap_or_else(|| self.host.provider())],
            provider: None,
            policy: policy(),
            limits: self.limits,
            deadlines: self.deadlines,
            pool: self.pool,
            merging: self.merging,
            history: self.history,
            rebasing: self.rebasing,
            clock: Arc::new(SystemClock),
            node: NodeName::default(),
            checkpoints,
        };
        Engine::start(lock, options).await.unwrap()
    }

    /// Nothing of any VM is left but its history: no process, file, socket, row or open operation.
    pub async fn assert_nothing_left(&self) {
        assert!(self.host.processes().is_empty(), "processes: {:?}", self.host.processes());
        let state = self.state();
        for dir in [state.join("vms"), state.join("disks"), state.join("snapshots"), self.runtime()] {
            let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
            assert!(left.is_empty(), "files: {left:?}");
        }
        self.assert_record(|vms, unfinished| {
            assert!(vms.is_empty(), "rows: {vms:?}");
            assert!(unfinished.is_empty(), "open operations: {unfinished:?}");
        })
        .await;
    }

    /// The record itself. No engine may be running.
    pub async fn record(&self) -> offshoot_store::Store {
        let _lock = StateDirLock::acquire_within(&self.state(), Duration::from_secs(10)).await.unwrap();
        let options = offshoot_store::Options::new(self.state().join("offshoot.db"), Limits::UNBOUNDED);
        offshoot_store::Store::open(options).unwrap()
    }

    /// Looks into the record. No engine may be running.
    pub async fn assert_record(&self, check: impl FnOnce(Vec<offshoot_store::VmRecord>, Vec<Operation>)) {
        let store = self.record().await;
        check(store.vms().await.unwrap(), store.unfinished_operations().await.unwrap());
        assert!(matches!(store.audit_verify(None).await.unwrap(), offshoot_store::AuditVerdict::Intact(_)));
        store.close().await;
    }
}

pub fn policy() -> Policy {
    Policy::built_in(UID)
}

pub fn actor() -> Actor {
    Actor::LocalUser { uid: UID, owner: Owner::default() }
}

pub fn permit(engine: &Engine, command: Command) -> Authorized<Command> {
    let facts = engine.facts(&actor(), &command.target());
    match policy().decide(&actor(), command, &facts) {
        Decision::Permit(permit) => permit,
        other => panic!("{other:?}"),
    }
}

pub fn named(name: &str) -> VmRef {
    VmRef::Name(name.parse().unwrap())
}

pub fn spec(name: &str) -> Box<VmSpec> {
    Box::new(VmSpec {
        name: name.parse().unwrap(),
        image: "base".parse().unwrap(),
        image_digest: "0a".repeat(32).parse().unwrap(),
        provider: ProviderChoice::Named(ProviderKind::Fake),
        min_isolation: None,
        memory: MemMib::from_mib(128).unwrap(),
        cpus: offshoot_types::CpuCount::ONE,
        disk: DiskMib::from_mib(64).unwrap(),
        lifetime: Lifetime::Kept,
        labels: Default::default(),
        env: Default::default(),
        policy: SnapshotPolicy::default(),
        life: Default::default(),
    })
}

pub fn argv(words: &[&str]) -> Box<ExecSpec> {
    Box::new(ExecSpec {
        argv: ExecArgv::Argv(words.iter().map(ToString::to_string).collect()),
        env: Default::default(),
        cwd: None,
        user: "root".into(),
        pty: None,
        stdin: false,
        tag: None,
        limits: ExecLimits::default(),
    })
}

pub const GRACE: Duration = Duration::from_secs(5);

/// Submits and waits for the outcome.
pub async fn run(engine: &Engine, command: Command) -> Result<Operation, Failure> {
    let operation = engine.submit(permit(engine, command)).await?;
    let operation = engine.wait(operation.id, Some(Duration::from_secs(60))).await?;
    match &operation.state {
        OperationState::Ended { outcome: OperationOutcome::Failed { failure } } => Err(failure.clone()),
        OperationState::Ended { .. } => Ok(operation),
        other => panic!("{:?} has not ended: {other:?}", operation.kind),
    }
}

pub async fn create(engine: &Engine, name: &str) -> VmId {
    run(engine, Command::Create { spec: spec(name) }).await.unwrap().vm.unwrap()
}

pub async fn create_running(engine: &Engine, name: &str) -> VmId {
    let id = create(engine, name).await;
    run(engine, Command::Start { vm: named(name) }).await.unwrap();
    id
}

pub async fn view(engine: &Engine, name: &str) -> VmView {
    engine.vm(permit(engine, Command::Inspect { vm: Some(named(name)) })).await.unwrap()
}

pub async fn wait_for(engine: &Engine, name: &str, states: &[VmStateName], limit: Duration) -> VmView {
    let until = VmCondition { states: states.to_vec(), newer_than: None };
    let permit = permit(engine, Command::Inspect { vm: Some(named(name)) });
    engine.wait_vm(permit, until, Some(limit)).await.unwrap()
}

pub async fn leave(engine: Engine) {
    engine.shutdown(OnShutdown::LeaveVms).await;
}

/// Runs a program to its end and returns its output and last event.
pub async fn output(mut session: offshoot_engine::ExecSession) -> (Vec<u8>, offshoot_engine::ExecEvent) {
    use offshoot_engine::ExecEvent;
    let mut all = Vec::new();
    loop {
        let event =
            tokio::time::timeout(Duration::from_secs(30), session.next()).await.expect("an event in time");
        match event.expect("a last event") {
            ExecEvent::Output { data, offset, .. } => {
                assert_eq!(offset, all.len() as u64, "output is contiguous");
                all.extend_from_slice(&data);
            }
            ExecEvent::Started { .. } => {}
            last @ (ExecEvent::Ended(_) | ExecEvent::Failed(_) | ExecEvent::Detached) => return (all, last),
            ExecEvent::Lost { .. } => panic!("nothing was to be lost"),
        }
    }
}

pub async fn exec(
    engine: &Engine,
    name: &str,
    words: &[&str],
) -> Result<offshoot_engine::ExecSession, Failure> {
    engine.exec(permit(engine, Command::Exec { vm: named(name), spec: argv(words) })).await
}

pub async fn snapshot(engine: &Engine, name: &str, called: Option<&str>) -> Result<SnapshotView, Failure> {
    take(engine, name, called, SnapshotKind::Full).await
}

pub async fn take(
    engine: &Engine,
    name: &str,
    called: Option<&str>,
    kind: SnapshotKind,
) -> Result<SnapshotView, Failure> {
    let called = called.map(|called| called.parse().unwrap());
    let command = Command::Snapshot { vm: named(name), name: called, kind, note: None };
    engine.snapshot(permit(engine, command)).await
}

pub async fn rollback(engine: &Engine, name: &str, to: RollbackTo) -> Result<RollbackReport, Failure> {
    engine.rollback(permit(engine, Command::Rollback { vm: named(name), to })).await
}

pub async fn fork(
    engine: &Engine,
    source: ForkSource,
    name: Option<&str>,
    count: u32,
) -> Result<ForkReport, Failure> {
    let name = name.map(|name| name.parse().unwrap());
    engine.fork(permit(engine, Command::Fork { source, name, count })).await
}

/// All of them, parents before children.
pub async fn snapshots(engine: &Engine) -> Vec<SnapshotView> {
    engine.snapshots(permit(engine, Command::Inspect { vm: None })).await.unwrap()
}

pub async fn remove_snapshot(engine: &Engine, id: SnapshotId) -> Result<Vec<SnapshotId>, Failure> {
    let command = Command::RemoveSnapshot { snapshot: SnapshotRef::Id(id), prune: false };
    engine.remove_snapshot(permit(engine, command)).await
}

/// What a program that succeeds says.
pub async fn program(engine: &Engine, name: &str, words: &[&str]) -> String {
    use offshoot_engine::ExecEvent;
    let (text, end) = output(exec(engine, name, words).await.unwrap()).await;
    assert!(
        matches!(end, ExecEvent::Ended(end) if end.status == ExecStatus::Exited(0)),
        "{words:?}: {end:?}"
    );
    String::from_utf8(text).unwrap()
}

/// Polls until it holds: for what announces nothing.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let held = tokio::time::timeout(Duration::from_secs(30), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    held.await.unwrap_or_else(|_| panic!("not within 30 s: {what}"));
}
