//! What this crate's tests share: a record in a folder of its own, a clock that is set by hand, plain inputs.

use crate::{
    AuditDecision, AuditEntry, Clock, Limits, Move, NewInstance, NewLayer, NewOperation, NewSnapshot, NewVm,
    Options, Store, StoreError, Switch,
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
        let options = Options { path: path.clone(), limits, clock: clock.clone() };
        Self { store: Store::open(options).unwrap(), clock, path, limits, _folder: folder }
    }
    pub async fn reopen(&mut self) {
        self.store.close().await;
        let (path, limits) = (self.path.clone(), self.limits);
        self.store = Store::open(Options { path, limits, clock: self.clock.clone() }).unwrap();
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
    /// Gives a VM a new disk layer above the one it has, which is frozen then.
    pub async fn layer_on(&self, vm: VmId) -> (Option<LayerId>, LayerId) {
        let layer = self.store.vm(vm).await.unwrap().unwrap().layer;
        let new = new_layer(layer);
        let id = new.id;
        let run = move |tx: &crate::Tx<'_>| {
            tx.add_layer(&new)?;
            tx.set_vm_layer(vm, id)?;
            layer.map_or(Ok(()), |layer| tx.freeze_layer(layer))
        };
        self.store.transaction(run).await.unwrap();
        (layer, id)
    }
    /// A snapshot about to be recorded, its layer frozen: a child of wherever the VM stands.
    pub async fn to_take(&self, vm: VmId, origin: SnapshotOrigin) -> NewSnapshot {
        if self.store.vm(vm).await.unwrap().unwrap().layer.is_none() {
            self.layer_on(vm).await;
        }
        let (frozen, _) = self.layer_on(vm).await;
        let parent = self.store.vm(vm).await.unwrap().unwrap().position;
        NewSnapshot {
            id: SnapshotId::new(),
            owner: Owner::default(),
            labels: Labels::new(),
            node: NodeName::default(),
            vm,
            name: None,
            origin,
            kind: SnapshotKind::Full,
            parent,
            layer: frozen.unwrap(),
            memory_base: None,
            quiesced: true,
            note: None,
            manifest: serde_json::json!({ "parts": [] }),
            size: Bytes(10),
        }
    }
    pub async fn add(&self, snapshot: NewSnapshot) -> Result<SnapshotId, StoreError> {
        let id = snapshot.id;
        self.store.add_snapshot(snapshot, OperationId::new(), actor()).await.map(|()| id)
    }
    pub async fn take(&self, vm: VmId, origin: SnapshotOrigin) -> SnapshotId {
        self.add(self.to_take(vm, origin).await).await.unwrap()
    }
    pub async fn take_named(&self, vm: VmId, name: &str) -> SnapshotId {
        let named = NewSnapshot {
            name: Some(name.parse().unwrap()),
            ..self.to_take(vm, SnapshotOrigin::Manual).await
        };
        self.add(named).await.unwrap()
    }
    pub async fn remove(&self, snapshot: SnapshotId) -> Result<Option<crate::SnapshotRecord>, StoreError> {
        self.store.remove_snapshot(snapshot, OperationId::new(), actor()).await
    }
    /// An operation of a VM, begun.
    pub async fn begun(&self, kind: OperationKind, vm: VmId) -> OperationId {
        let new = operation(kind, Some(vm));
        let id = new.id;
        self.store.begin_operation(new).await.unwrap();
        id
    }
    /// A rollback's switch of a VM to a snapshot, on a new layer above the snapshot's.
    pub async fn switch(
        &self,
        vm: VmId,
        to: SnapshotId,
        undo: Option<SnapshotId>,
        by: OperationId,
    ) -> Generation {
        let record = self.store.vm(vm).await.unwrap().unwrap();
        let layer = new_layer(Some(self.store.snapshot(to).await.unwrap().unwrap().layer));
        let switch = Switch {
            vm,
            expected: record.generation,
            layer: layer.id,
            position: Some(to),
            to,
            undo,
            reason: "a test says so".into(),
            actor: actor(),
            operation: by,
            state: record.state,
        };
        let run = move |tx: &crate::Tx<'_>| {
            tx.add_layer(&layer)?;
            let generation = tx.switch_vm(&switch)?;
            tx.mark_undone(vm, to, by)?;
            Ok(generation)
        };
        self.store.transaction(run).await.unwrap()
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
        env: Default::default(),
        policy: SnapshotPolicy::default(),
        life: Default::default(),
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

pub(crate) fn new_layer(parent: Option<LayerId>) -> NewLayer {
    let id = LayerId::new();
    NewLayer {
        id,
        owner: Owner::default(),
        node: NodeName::default(),
        parent,
        image: "0a".repeat(32).parse().unwrap(),
        path: format!("disks/{id}.qcow2"),
        size: "1G".parse().unwrap(),
        operation: None,
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
        request: None,
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
