//! What this crate's tests share: a record in a folder of its own, a clock that is set by hand, plain inputs.

use crate::{
    AuditDecision, AuditEntry, Clock, Limits, Move, NewInstance, NewOperation, NewVm, Options, Store,
    StoreError, Wait,
};
use jiff::{SignedDuration, Timestamp};
use offshoot_types::*;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

#[derive(Debug)]
pub(crate) struct ManualClock(AtomicI64);

impl ManualClock {
    pub fn advance(&self, by: SignedDuration) {
        self.0.fetch_add(by.as_micros() as i64, Ordering::SeqCst);
    }
}
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(self.0.load(Ordering::SeqCst)).unwrap()
    }
}

pub(crate) struct Fixture {
    pub store: Store,
    pub clock: Arc<ManualClock>,
    pub path: PathBuf,
    limits: Limits,
    _folder: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with_limits(Limits::UNBOUNDED)
    }
    pub fn with_limits(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offshoot.db");
        let clock = Arc::new(ManualClock(AtomicI64::new(1_700_000_000_000_000)));
        let options = Options { path: path.clone(), limits, clock: clock.clone(), wait: Wait::default() };
        Self { store: Store::open(options).unwrap(), clock, path, limits, _folder: folder }
    }
    pub async fn reopen(&mut self) {
        self.store.close().await;
        let (path, limits) = (self.path.clone(), self.limits);
        self.store =
            Store::open(Options { path, limits, clock: self.clock.clone(), wait: Wait::default() }).unwrap();
    }
    /// A VM that is `Stopped`, and its generation.
    pub async fn stopped(&self, name: &str) -> (VmId, Generation) {
        let vm = new_vm(name);
        let id = vm.id;
        self.store.create_vm(operation(OperationKind::Create, Some(id)), vm).await.unwrap();
        let generation = self.go(id, Generation(1), VmState::Stopped).await.unwrap();
        (id, generation)
    }
    pub async fn go(&self, vm: VmId, expected: Generation, to: VmState) -> Result<Generation, StoreError> {
        self.store.move_vm(move_to(vm, expected, to)).await
    }
    /// Runs SQL as somebody who tampers with the file would.
    pub async fn tamper(&self, sql: &'static str) {
        let run =
            move |tx: &crate::Tx<'_>| tx.connection.execute_batch(sql).map_err(|e| tx.fault("tamper", e));
        self.store.transaction(run).await.unwrap();
    }
}

pub(crate) fn actor() -> Actor {
    Actor::LocalUser { uid: 1000, owner: Owner::default() }
}

pub(crate) fn failed() -> VmState {
    VmState::Failed(FailureReason { reason: "the guest's kernel panicked".into(), step: "start/boot".into() })
}

pub(crate) fn new_vm(name: &str) -> NewVm {
    let spec = VmSpec {
        name: name.parse().unwrap(),
        image: "base".parse().unwrap(),
        image_digest: "0a".repeat(32).parse().unwrap(),
        provider: ProviderChoice::Auto,
        min_isolation: None,
        memory: "256M".parse().unwrap(),
        cpus: CpuCount::ONE,
        disk: "1G".parse().unwrap(),
        lifetime: Lifetime::Kept,
        labels: Labels::from([("team".into(), "a \"quoted\" one".into())]),
    };
    NewVm {
        id: VmId::new(),
        owner: Owner::default(),
        node: NodeName::default(),
        spec,
        provider: ProviderKind::Fake,
        isolation: IsolationClass::EmulatedVm,
        memory: None,
        position: None,
    }
}

pub(crate) fn entry(action: &str) -> AuditEntry {
    AuditEntry {
        actor: actor(),
        action: action.into(),
        target: "vm".into(),
        decision: AuditDecision::Permit,
        rules: vec!["owner-of-socket/owner".into()],
        revision: "owner-of-socket/1".into(),
        detail: String::new(),
    }
}

pub(crate) fn operation(kind: OperationKind, vm: Option<VmId>) -> NewOperation {
    NewOperation {
        id: OperationId::new(),
        kind,
        owner: Owner::default(),
        labels: Labels::new(),
        node: NodeName::default(),
        vm,
        actor: actor(),
        reason: "asked for by a test".into(),
        obligation: None,
        idempotency: None,
        audit: entry(&kind.to_string()),
    }
}

pub(crate) fn move_to(vm: VmId, expected: Generation, to: VmState) -> Move {
    Move { vm, expected, to, reason: "a test says so".into(), actor: actor(), operation: None }
}

pub(crate) fn instance(vm: VmId, generation: Generation) -> NewInstance {
    let record = serde_json::json!({ "state_dir": format!("vms/{vm}/g{generation}") });
    NewInstance::new(vm, generation, ProviderKind::Qemu, IsolationClass::HardwareVm, None, &record).unwrap()
}
