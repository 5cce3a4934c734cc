//! Random sequences of changes against a model a page long; reopened in between; and the events alone, replayed,
//! must tell the same story as the rows.

use crate::{
    AuditVerdict, Limits, NewSnapshot, StoreError,
    fixture::{Fixture, failed, instance, move_to, new_vm, operation},
};
use offshoot_types::{
    Bytes, EventId, EventKind, Generation, OperationId, OperationKind, OperationOutcome, SnapshotId,
    SnapshotOrigin, VmId, VmState, VmStateName,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const MAX_VMS: u64 = 4;
const MEMORY: u64 = 3 * (256 << 20);

#[derive(Debug, Clone)]
enum Step {
    Create {
        name: u8,
    },
    /// To a state by its index, at the right generation or an old one.
    Move {
        vm: usize,
        to: usize,
        stale: bool,
    },
    Record {
        vm: usize,
    },
    Forget {
        vm: usize,
    },
    Begin {
        vm: usize,
    },
    End {
        operation: usize,
    },
    /// Of a VM; a child of where it stands, its memory against any snapshot or none.
    Snapshot {
        vm: usize,
        base: Option<usize>,
    },
    RemoveSnapshot {
        snapshot: usize,
    },
    /// To any snapshot.
    Switch {
        vm: usize,
        snapshot: usize,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..6_u8).prop_map(|name| Step::Create { name }),
        10 => (any::<usize>(), 0..VmStateName::ALL.len(), prop::bool::weighted(0.1))
            .prop_map(|(vm, to, stale)| Step::Move { vm, to, stale }),
        2 => any::<usize>().prop_map(|vm| Step::Record { vm }),
        2 => any::<usize>().prop_map(|vm| Step::Forget { vm }),
        1 => any::<usize>().prop_map(|vm| Step::Begin { vm }),
        1 => any::<usize>().prop_map(|operation| Step::End { operation }),
        4 => (any::<usize>(), prop::option::of(any::<usize>()))
            .prop_map(|(vm, base)| Step::Snapshot { vm, base }),
        2 => any::<usize>().prop_map(|snapshot| Step::RemoveSnapshot { snapshot }),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(vm, snapshot)| Step::Switch { vm, snapshot }),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Vm {
    name: String,
    state: VmStateName,
    generation: u64,
    instances: BTreeSet<u64>,
    position: Option<SnapshotId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Snapshot {
    parent: Option<SnapshotId>,
    base: Option<SnapshotId>,
}

impl Vm {
    fn memory(&self) -> u64 {
        let promised = usize::from(self.state == VmStateName::Creating || self.state.has_process());
        (promised.max(self.instances.len()) as u64) * (256 << 20)
    }
}

#[derive(Debug, Default)]
struct Model {
    vms: BTreeMap<VmId, Vm>,
    unfinished: BTreeSet<OperationId>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
}

impl Model {
    fn pick_snapshot(&self, index: usize) -> Option<SnapshotId> {
        let count = self.snapshots.len();
        (count > 0).then(|| *self.snapshots.keys().nth(index % count).unwrap())
    }
    fn pick(&self, index: usize) -> Option<VmId> {
        let count = self.vms.len();
        (count > 0).then(|| *self.vms.keys().nth(index % count).unwrap())
    }
    fn memory(&self) -> u64 {
        self.vms.values().map(Vm::memory).sum()
    }
}

fn state(name: VmStateName) -> VmState {
    match name {
        VmStateName::Creating => VmState::Creating,
        VmStateName::Stopped => VmState::Stopped,
        VmStateName::Starting => VmState::Starting,
        VmStateName::Running => VmState::Running,
        VmStateName::Paused => VmState::Paused,
        VmStateName::Suspending => VmState::Suspending,
        VmStateName::Suspended => VmState::Suspended,
        VmStateName::Stopping => VmState::Stopping,
        VmStateName::Migrating => VmState::Migrating,
        VmStateName::Failed => failed(),
        VmStateName::Destroyed => VmState::Destroyed,
    }
}

async fn take(step: &Step, f: &mut Fixture, model: &mut Model) {
    match step {
        Step::Create { name } => {
            let vm = new_vm(&format!("vm{name}"));
            let (id, name) = (vm.id, vm.spec.name.to_string());
            let new = operation(OperationKind::Create, Some(id));
            let operation = new.id;
            let answer = f.store.create_vm(new, vm).await;
            if model.vms.values().any(|vm| vm.name == name) {
                assert!(matches!(answer, Err(StoreError::NameTaken { .. })), "{answer:?}");
            } else if model.vms.len() as u64 >= MAX_VMS || model.memory() + (256 << 20) > MEMORY {
                assert!(matches!(answer, Err(StoreError::Ledger(_))), "{answer:?}");
            } else {
                answer.unwrap();
                let instances = BTreeSet::new();
                let vm = Vm { name, state: VmStateName::Creating, generation: 1, instances, position: None };
                model.vms.insert(id, vm);
                model.unfinished.insert(operation);
            }
        }
        Step::Move { vm, to, stale } => {
            let Some(id) = model.pick(*vm) else { return };
            let memory = model.memory();
            let vm = model.vms.get_mut(&id).unwrap();
            let to = VmStateName::ALL[*to];
            let expected = Generation(if *stale { vm.generation - 1 } else { vm.generation });
            let answer = f.store.move_vm(move_to(id, expected, state(to))).await;
            if *stale {
                assert!(matches!(answer, Err(StoreError::StaleGeneration { .. })), "{answer:?}");
            } else if !vm.state.may_become(to) {
                assert!(matches!(answer, Err(StoreError::IllegalMove { .. })), "{answer:?}");
            } else if to == VmStateName::Starting && memory + (256 << 20) > MEMORY {
                assert!(matches!(answer, Err(StoreError::Ledger(_))), "{answer:?}");
            } else if to == VmStateName::Suspended {
                assert!(matches!(answer, Err(StoreError::Invalid { what: "state", .. })), "{answer:?}");
            } else if to == VmStateName::Destroyed && !vm.instances.is_empty() {
                assert!(matches!(answer, Err(StoreError::InstanceRecorded { .. })), "{answer:?}");
            } else {
                vm.generation += 1;
                vm.state = to;
                assert_eq!(answer.unwrap(), Generation(vm.generation));
                if to == VmStateName::Destroyed {
                    model.vms.remove(&id);
                }
            }
        }
        Step::Record { vm } => {
            let Some(id) = model.pick(*vm) else { return };
            let vm = model.vms.get_mut(&id).unwrap();
            let answer = f.store.record_instance(instance(id, Generation(vm.generation))).await;
            if vm.state.has_process() {
                answer.unwrap();
                vm.instances.insert(vm.generation);
            } else {
                assert!(matches!(answer, Err(StoreError::NoProcessInState { .. })), "{answer:?}");
            }
        }
        Step::Forget { vm } => {
            let Some(id) = model.pick(*vm) else { return };
            let vm = model.vms.get_mut(&id).unwrap();
            let generation = vm.instances.pop_first().unwrap_or(vm.generation);
            f.store.forget_instance(id, Generation(generation)).await.unwrap();
        }
        Step::Begin { vm } => {
            let new = operation(OperationKind::Exec, model.pick(*vm));
            model.unfinished.insert(new.id);
            f.store.begin_operation(new).await.unwrap();
        }
        Step::End { operation } => {
            let count = model.unfinished.len();
            if count == 0 {
                return;
            }
            let id = *model.unfinished.iter().nth(operation % count).unwrap();
            f.store.end_operation(id, OperationOutcome::Done).await.unwrap();
            model.unfinished.remove(&id);
        }
        Step::Snapshot { vm, base } => {
            let Some(id) = model.pick(*vm) else { return };
            let base = base.and_then(|base| model.pick_snapshot(base));
            let new = NewSnapshot { memory_base: base, ..f.to_take(id, SnapshotOrigin::Manual).await };
            let vm = model.vms.get_mut(&id).unwrap();
            assert_eq!(new.parent, vm.position);
            vm.position = Some(new.id);
            model.snapshots.insert(new.id, Snapshot { parent: new.parent, base });
            f.add(new).await.unwrap();
        }
        Step::RemoveSnapshot { snapshot } => {
            let Some(id) = model.pick_snapshot(*snapshot) else { return };
            let answer = f.remove(id).await;
            if model.snapshots.values().any(|other| other.base == Some(id)) {
                assert!(matches!(answer, Err(StoreError::InUse { .. })), "{answer:?}");
                return;
            }
            answer.unwrap();
            let removed = model.snapshots.remove(&id).unwrap();
            let children = model.snapshots.values_mut().map(|child| &mut child.parent);
            let standing = model.vms.values_mut().map(|vm| &mut vm.position);
            for place in children.chain(standing).filter(|place| **place == Some(id)) {
                *place = removed.parent;
            }
        }
        Step::Switch { vm, snapshot } => {
            let (Some(id), Some(to)) = (model.pick(*vm), model.pick_snapshot(*snapshot)) else { return };
            let generation = f.switch(id, to, None, OperationId::new()).await;
            let vm = model.vms.get_mut(&id).unwrap();
            vm.generation += 1;
            vm.position = Some(to);
            assert_eq!(generation, Generation(vm.generation));
        }
        Step::Reopen => f.reopen().await,
    }
}

async fn compare(f: &Fixture, model: &Model) {
    let mut rows = BTreeMap::new();
    for vm in f.store.vms().await.unwrap() {
        let instances = f.store.instances_of(vm.id).await.unwrap();
        let instances = instances.into_iter().map(|instance| instance.generation.0).collect();
        let (state, generation) = (vm.state.name(), vm.generation.0);
        let (name, position) = (vm.name.to_string(), vm.position);
        rows.insert(vm.id, Vm { name, state, generation, instances, position });
    }
    assert_eq!(rows, model.vms);
    let snapshots = f.store.snapshots(None).await.unwrap();
    assert!(snapshots.is_sorted_by(|a, b| a.taken < b.taken));
    for snapshot in &snapshots {
        let chain = f.store.layer_chain(snapshot.layer).await.unwrap();
        assert!(chain.iter().all(|layer| layer.frozen), "what a snapshot lies over is never written to");
    }
    let snapshots: BTreeMap<_, _> = snapshots
        .into_iter()
        .map(|snapshot| (snapshot.id, Snapshot { parent: snapshot.parent, base: snapshot.memory_base }))
        .collect();
    assert_eq!(snapshots, model.snapshots);
    assert_eq!(f.store.ledger().await.unwrap().memory, Bytes(model.memory()));
    let unfinished = f.store.unfinished_operations().await.unwrap();
    assert_eq!(
        unfinished.into_iter().map(|operation| operation.id).collect::<BTreeSet<_>>(),
        model.unfinished
    );

    let mut replayed: BTreeMap<VmId, (VmStateName, u64)> = BTreeMap::new();
    let page = f.store.events(EventId(0), 10_000).await.unwrap();
    assert!(!page.missed && page.events.is_sorted_by(|a, b| a.id < b.id));
    for event in page.events {
        if let EventKind::RolledBack { generation, .. } = event.kind {
            let (_, before) = replayed.get_mut(&event.vm.unwrap()).unwrap();
            assert_eq!(*before + 1, generation.0, "no gap, no repeat");
            *before = generation.0;
        }
        if let EventKind::StateChanged { from, to, generation, .. } = event.kind {
            let id = event.vm.unwrap();
            let before = replayed.insert(id, (to.name(), generation.0));
            assert_eq!(before.map(|(state, _)| state), from.map(|state| state.name()));
            assert_eq!(before.map_or(0, |(_, generation)| generation) + 1, generation.0, "no gap, no repeat");
        }
    }
    replayed.retain(|_, (state, _)| *state != VmStateName::Destroyed);
    let rows: BTreeMap<_, _> = rows.into_iter().map(|(id, vm)| (id, (vm.state, vm.generation))).collect();
    assert_eq!(replayed, rows, "events and rows tell the same story");
    let verdict = f.store.audit_verify(None).await.unwrap();
    assert!(matches!(verdict, AuditVerdict::Intact(_)), "{verdict:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_store_agrees_with_its_model(steps in prop::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let limits = Limits { vms: MAX_VMS, memory: Bytes(MEMORY), ..Limits::UNBOUNDED };
            let mut f = Fixture::with_limits(limits);
            let mut model = Model::default();
            for step in &steps {
                take(step, &mut f, &mut model).await;
            }
            compare(&f, &model).await;
        });
    }
}
