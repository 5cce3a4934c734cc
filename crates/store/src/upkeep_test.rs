//! Retention and collection on random trees: whatever they let go, nothing that somebody needs is missing afterwards, and
//! what nobody needs does not stay.

use crate::{
    Clock, Keep, NewSnapshot, NewTransaction, SnapshotRetention,
    fixture::{Fixture, instance},
};
use jiff::SignedDuration;
use offshoot_types::{
    Bytes, LayerId, NodeName, OperationKind, Owner, SnapshotId, SnapshotOrigin, SnapshotState, TransactionId,
    VmId, VmState,
};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

const VMS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// Of a VM, for this reason, against any snapshot of it or zeros, with a name or without.
    Take {
        vm: usize,
        origin: usize,
        base: Option<usize>,
        named: bool,
    },
    /// A new top over any snapshot's layer, as a rollback makes.
    Switch {
        vm: usize,
        snapshot: usize,
    },
    /// A VM without a process continues from it, or from none any more.
    Suspend {
        vm: usize,
        snapshot: Option<usize>,
    },
    /// A process of a VM that maps it.
    Run {
        vm: usize,
        snapshot: usize,
    },
    Begin {
        vm: usize,
        snapshot: usize,
    },
    Damage {
        snapshot: usize,
    },
    Destroy {
        vm: usize,
    },
    Age,
    Tidy {
        count: u64,
        days: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let any = any::<usize>;
    prop_oneof![
        12 => (any(), 0..5_usize, prop::option::of(any()), prop::bool::weighted(0.2))
            .prop_map(|(vm, origin, base, named)| Step::Take { vm, origin, base, named }),
        3 => (any(), any()).prop_map(|(vm, snapshot)| Step::Switch { vm, snapshot }),
        2 => (any(), prop::option::of(any())).prop_map(|(vm, snapshot)| Step::Suspend { vm, snapshot }),
        2 => (any(), any()).prop_map(|(vm, snapshot)| Step::Run { vm, snapshot }),
        1 => (any(), any()).prop_map(|(vm, snapshot)| Step::Begin { vm, snapshot }),
        1 => any().prop_map(|snapshot| Step::Damage { snapshot }),
        1 => any().prop_map(|vm| Step::Destroy { vm }),
        2 => Just(Step::Age),
        4 => (0..4_u64, 0..3_u64).prop_map(|(count, days)| Step::Tidy { count, days }),
    ]
}

/// Everything a snapshot or a VM needs, read from the record row by row.
async fn needs(f: &Fixture) -> (HashSet<SnapshotId>, HashSet<LayerId>) {
    let (snapshots, vms, instances, transactions) = f
        .store
        .read(|view| {
            Ok((view.snapshots(None)?, view.vms()?, view.instances()?, view.all_open_transactions()?))
        })
        .await
        .unwrap();
    let mut kept: HashSet<SnapshotId> = snapshots.iter().filter_map(|s| s.memory_base).collect();
    kept.extend(vms.iter().filter_map(|vm| vm.memory));
    kept.extend(instances.iter().filter_map(|instance| instance.memory_base));
    kept.extend(transactions.iter().map(|transaction| transaction.snapshot));
    let all: HashMap<LayerId, Option<LayerId>> =
        f.store.read(|view| view.layers()).await.unwrap().into_iter().map(|l| (l.id, l.parent)).collect();
    let mut layers = HashSet::new();
    let tops = snapshots.iter().map(|s| s.layer).chain(vms.iter().filter_map(|vm| vm.layer));
    for top in tops {
        let mut next = Some(top);
        while let Some(layer) = next {
            assert!(all.contains_key(&layer), "layer {layer} is needed and not in the record");
            if !layers.insert(layer) {
                break;
            }
            next = all[&layer];
        }
    }
    (kept, layers)
}

/// As the engine does it: the expired snapshots one after the other, then the layers nobody needs.
async fn tidy(f: &Fixture, keep: Keep) {
    let retention = SnapshotRetention { auto: keep, undo: keep, fork: keep, suspend: keep, rebase: keep };
    let now = Clock::now(&*f.clock);
    let (needed, _) = needs(f).await;
    let expired = f.store.snapshots_to_expire(retention, now).await.unwrap();
    for snapshot in &expired {
        assert!(!needed.contains(&snapshot.id), "{snapshot:?} is needed");
        assert!(
            snapshot.name.is_none() && snapshot.origin != SnapshotOrigin::Manual,
            "{snapshot:?} was asked for"
        );
        assert_ne!(snapshot.state, SnapshotState::Volatile, "{snapshot:?} is being written");
        f.remove(snapshot.id).await.unwrap();
    }
    for layer in f.store.unused_layers().await.unwrap() {
        f.store.forget_layer(layer.id).await.unwrap();
    }
    let (needed, layers) = needs(f).await;
    for id in needed {
        assert!(f.store.snapshot(id).await.unwrap().is_some(), "snapshot {id} is needed and gone");
    }
    let there: HashSet<LayerId> =
        f.store.read(|view| view.layers()).await.unwrap().into_iter().map(|layer| layer.id).collect();
    assert_eq!(there, layers, "the layers that are needed, and no others");
}

async fn run(steps: Vec<Step>) {
    let f = Fixture::new();
    let mut vms: Vec<VmId> = Vec::new();
    for number in 0..VMS {
        vms.push(f.stopped(&format!("vm{number}")).await.0);
    }
    let (mut taken, mut names): (Vec<SnapshotId>, u32) = (Vec::new(), 0);
    for step in steps {
        let vm = |index: usize| vms[index % vms.len()];
        let mut there = Vec::new();
        for id in &taken {
            there.extend(f.store.snapshot(*id).await.unwrap());
        }
        taken = there.iter().map(|snapshot| snapshot.id).collect();
        let chosen = |index: usize| there.get(index % there.len().max(1)).cloned();
        let alive = |vm: VmId| {
            let store = &f.store;
            async move { store.vm(vm).await.unwrap().filter(|vm| vm.state != VmState::Destroyed) }
        };
        // What the record refuses is as good a step as any: what counts is what it holds afterwards.
        match step {
            Step::Take { vm: index, origin, base, named } => {
                let vm = vm(index);
                if alive(vm).await.is_none() {
                    continue;
                }
                let origins = [
                    SnapshotOrigin::Auto,
                    SnapshotOrigin::Undo,
                    SnapshotOrigin::Fork,
                    SnapshotOrigin::Suspend,
                    SnapshotOrigin::Manual,
                ];
                names += 1;
                let new = NewSnapshot {
                    memory_base: base.and_then(chosen).filter(|base| base.vm == vm).map(|base| base.id),
                    name: named.then(|| format!("s{names}").parse().unwrap()),
                    ..f.to_take(vm, origins[origin]).await
                };
                if let Ok(id) = f.add(new).await {
                    if names % 7 != 0 {
                        f.store.snapshot_durable(id, serde_json::json!({}), Bytes(1)).await.unwrap();
                    }
                    taken.push(id);
                }
            }
            Step::Switch { vm: index, snapshot } => {
                let (vm, to) = (vm(index), chosen(snapshot));
                if let (Some(_), Some(to)) = (alive(vm).await, to)
                    && to.vm == vm
                    && to.state != SnapshotState::Damaged
                {
                    let by = f.begun(OperationKind::Rollback, vm).await;
                    f.switch(vm, to.id, None, by).await;
                    f.store.end_operation(by, offshoot_types::OperationOutcome::Done).await.unwrap();
                }
            }
            Step::Suspend { vm: index, snapshot } => {
                let to = snapshot.and_then(chosen).map(|snapshot| snapshot.id);
                let _ = f.store.set_vm_memory(vm(index), to).await;
            }
            Step::Run { vm: index, snapshot } => {
                let (vm, base) = (vm(index), chosen(snapshot));
                let Some(record) = alive(vm).await else { continue };
                if let (VmState::Stopped, Some(base)) = (&record.state, base)
                    && let Ok(at) = f.go(vm, record.generation, VmState::Starting).await
                {
                    let mut new = instance(vm, at);
                    new.memory_base = Some(base.id);
                    let _ = f.store.record_instance(new).await;
                }
            }
            Step::Begin { vm: index, snapshot } => {
                let (vm, to) = (vm(index), chosen(snapshot));
                let (Some(record), Some(to)) = (alive(vm).await, to) else { continue };
                let transaction = NewTransaction {
                    id: TransactionId::new(),
                    owner: Owner::default(),
                    node: NodeName::default(),
                    vm,
                    parent: None,
                    operation: f.begun(OperationKind::Transaction, vm).await,
                    snapshot: to.id,
                    deadline: record.created,
                };
                let _ = f.store.begin_transaction(transaction).await;
            }
            Step::Damage { snapshot } => {
                if let Some(snapshot) = chosen(snapshot) {
                    let id = snapshot.id;
                    f.store.transaction(move |tx| tx.snapshot_damaged(id)).await.unwrap();
                }
            }
            Step::Destroy { vm: index } => {
                if let Some(record) = alive(vm(index)).await {
                    let _ = f.go(record.id, record.generation, VmState::Destroyed).await;
                }
            }
            Step::Age => f.clock.advance(SignedDuration::from_hours(13)),
            Step::Tidy { count, days } => {
                let day = std::time::Duration::from_secs(24 * 60 * 60);
                let max_age = (days > 0).then(|| day * days as u32);
                tidy(&f, Keep { max_age, max_count: Some(count) }).await;
            }
        }
    }
    tidy(&f, Keep { max_age: None, max_count: Some(0) }).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nothing_that_somebody_needs_is_let_go(steps in prop::collection::vec(step(), 1..60)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}
