//! What may be promised in all. Checked in the transaction that makes the promise, so two requests can never
//! both get the last of something.

use crate::{StoreError, Tx, View};
use offshoot_types::{Bytes, VmId, VmSpec, VmStateName};
use rusqlite::params;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// VMs that exist, whatever their state.
    pub vms: u64,
    /// Memory of VMs that have, or are about to have, a process.
    pub memory: Bytes,
    /// Full size of all data disks, whatever part of it is written.
    pub disk: Bytes,
    /// Size of all snapshots; `None`: as much as the disk holds.
    pub snapshots: Option<Bytes>,
    /// Size of the snapshots of any one VM.
    pub snapshots_per_vm: Option<Bytes>,
}

impl Limits {
    pub const UNBOUNDED: Self = Self {
        vms: u64::MAX,
        memory: Bytes(u64::MAX),
        disk: Bytes(u64::MAX),
        snapshots: None,
        snapshots_per_vm: None,
    };
}

/// What is promised now, under the same rules as [`Limits`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerUse {
    pub vms: u64,
    pub memory: Bytes,
    pub disk: Bytes,
    pub snapshots: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LedgerResource {
    Vms,
    /// Of those made with one API key.
    VmsOfKey,
    /// API keys that were made with one.
    KeysOfKey,
    Memory,
    /// Memory for a second instance of a VM beside the one it has.
    MemoryBeside,
    Disk,
    Snapshots,
    SnapshotsOfVm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct LedgerExceeded {
    pub resource: LedgerResource,
    pub limit: u64,
    pub in_use: u64,
    pub asked: u64,
}

impl fmt::Display for LedgerExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, limit, in_use, asked } = *self;
        let what = match resource {
            LedgerResource::Vms => return write!(f, "no VM is left: {in_use} of {limit} exist"),
            LedgerResource::VmsOfKey => {
                return write!(f, "no VM is left for this API key: {in_use} of {limit} exist");
            }
            LedgerResource::KeysOfKey => {
                return write!(f, "no further key may be made with this one: {in_use} of {limit} exist");
            }
            LedgerResource::Memory => "not enough memory",
            LedgerResource::MemoryBeside => {
                "not enough memory to run the VM's new state beside its present one"
            }
            LedgerResource::Disk => "not enough disk",
            LedgerResource::Snapshots => "no room for the snapshot",
            LedgerResource::SnapshotsOfVm => "no room for the snapshot among those of its VM",
        };
        let (asked, in_use, limit) = (Bytes(asked), Bytes(in_use), Bytes(limit));
        write!(f, "{what}: {asked} asked, {in_use} of {limit} promised already")
    }
}

impl LedgerExceeded {
    pub const fn hint(&self) -> &'static str {
        match self.resource {
            LedgerResource::Vms => "destroy a VM that is no longer needed, or raise the limit of the daemon",
            LedgerResource::VmsOfKey => "destroy a VM that is no longer needed, or ask for a key with more",
            LedgerResource::KeysOfKey => {
                "remove keys that are no longer needed, or ask with the key above it"
            }
            LedgerResource::Memory => "stop a VM, ask for less memory, or raise the limit of the daemon",
            LedgerResource::MemoryBeside => {
                "the VM runs on as it was; stop another one, or raise the limit of the daemon"
            }
            LedgerResource::Snapshots | LedgerResource::SnapshotsOfVm => {
                "remove snapshots that are no longer needed, or raise the limit of the daemon"
            }
            LedgerResource::Disk => "destroy a VM, ask for a smaller disk, or raise the limit of the daemon",
        }
    }
}

/// States whose memory is promised: a process exists or is to come. `Creating` is among them because most VMs
/// are made to be started, and a create that could only be refused a second later helps nobody.
fn holds_memory(state: VmStateName) -> bool {
    state == VmStateName::Creating || state.has_process()
}

impl View<'_> {
    pub fn ledger(&self) -> Result<LedgerUse, StoreError> {
        let holding: Vec<&str> =
            VmStateName::ALL.into_iter().filter(|s| holds_memory(*s)).map(VmStateName::as_str).collect();
        let holding = serde_json::Value::from(holding).to_string();
        // A VM with two recorded instances (two generations at once) counts twice; one that failed but whose
        // process may still live counts once.
        let sql = "SELECT count(*),
                coalesce(sum(memory_mib * max(
                    state IN (SELECT value FROM json_each(?1)),
                    (SELECT count(*) FROM instances WHERE instances.vm = vms.id))), 0),
                coalesce(sum(disk_mib), 0),
                (SELECT coalesce(sum(size), 0) FROM snapshots)
            FROM vms WHERE state <> 'destroyed'";
        let used = self.one("sum the ledger", sql, params![holding], |row| {
            let mib = |index| row.get::<_, u64>(index).map(|mib| Bytes(mib << 20));
            let snapshots = Bytes(row.get(3)?);
            Ok(LedgerUse { vms: row.get(0)?, memory: mib(1)?, disk: mib(2)?, snapshots })
        })?;
        Ok(used.unwrap_or_default())
    }

    pub(crate) fn admit_create(&self, limits: &Limits, spec: &VmSpec) -> Result<(), StoreError> {
        let used = self.ledger()?;
        check(LedgerResource::Vms, limits.vms, used.vms, 1)?;
        check(LedgerResource::Memory, limits.memory.0, used.memory.0, spec.memory.bytes().0)?;
        check(LedgerResource::Disk, limits.disk.0, used.disk.0, spec.disk.bytes().0)?;
        Ok(())
    }

    pub(crate) fn admit_start(&self, limits: &Limits, memory: Bytes) -> Result<(), StoreError> {
        check(LedgerResource::Memory, limits.memory.0, self.ledger()?.memory.0, memory.0)?;
        Ok(())
    }

    /// `replaced` is what the snapshot was counted with so far.
    pub(crate) fn admit_snapshot(
        &self,
        limits: &Limits,
        vm: VmId,
        size: Bytes,
        replaced: Bytes,
    ) -> Result<(), StoreError> {
        for (resource, limit, only) in [
            (LedgerResource::SnapshotsOfVm, limits.snapshots_per_vm, Some(vm)),
            (LedgerResource::Snapshots, limits.snapshots, None),
        ] {
            let Some(limit) = limit else { continue };
            let sql = "SELECT coalesce(sum(size), 0) FROM snapshots WHERE ?1 IS NULL OR vm = ?1";
            let params = params![only.map(|vm| vm.to_string())];
            let used = self.one("sum the snapshots", sql, params, |row| row.get::<_, u64>(0))?.unwrap_or(0);
            check(resource, limit.0, used.saturating_sub(replaced.0), size.0)?;
        }
        Ok(())
    }
}

impl Tx<'_> {
    /// Admits a second instance of a VM beside the one it has. Call it in the transaction that records that instance,
    /// before: once recorded, the ledger counts it.
    pub fn admit_beside(&self, vm: VmId) -> Result<(), StoreError> {
        let (memory, limits) = (self.expect_vm(vm)?.spec.memory.bytes(), self.limits());
        check(LedgerResource::MemoryBeside, limits.memory.0, self.ledger()?.memory.0, memory.0)?;
        Ok(())
    }
}

const fn check(resource: LedgerResource, limit: u64, in_use: u64, asked: u64) -> Result<(), LedgerExceeded> {
    match in_use.checked_add(asked) {
        Some(total) if total <= limit => Ok(()),
        _ => Err(LedgerExceeded { resource, limit, in_use, asked }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, instance, new_vm, operation};
    use offshoot_types::{ErrorCode, OperationKind, VmState};

    const MIB: u64 = 1 << 20;

    fn exceeded(error: StoreError) -> LedgerExceeded {
        assert_eq!(error.code(), ErrorCode::NoResource);
        match error {
            StoreError::Ledger(exceeded) => exceeded,
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn a_vm_that_is_still_being_created_counts() {
        let f = Fixture::with_limits(Limits { memory: Bytes(600 * MIB), ..Limits::UNBOUNDED });
        for name in ["a", "b"] {
            let vm = new_vm(name);
            f.store.create_vm(operation(OperationKind::Create, Some(vm.id)), vm).await.unwrap();
        }
        let vm = new_vm("c");
        let refused = f.store.create_vm(operation(OperationKind::Create, Some(vm.id)), vm).await.unwrap_err();
        assert_eq!(refused.to_string(), "not enough memory: 256M asked, 512M of 600M promised already");
        exceeded(refused);
        assert_eq!(f.store.vms().await.unwrap().len(), 2, "a refused VM leaves no row");
        assert_eq!(f.store.unfinished_operations().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn of_many_that_ask_at_once_for_the_last_place_one_gets_it() {
        let f = Fixture::with_limits(Limits { vms: 3, ..Limits::UNBOUNDED });
        let mut asked = tokio::task::JoinSet::new();
        for n in 0..12 {
            let (store, vm) = (f.store.clone(), new_vm(&format!("vm{n}")));
            asked.spawn(
                async move { store.create_vm(operation(OperationKind::Create, Some(vm.id)), vm).await },
            );
        }
        let mut granted = 0;
        for answer in asked.join_all().await {
            match answer {
                Ok(_) => granted += 1,
                Err(error) => assert_eq!(exceeded(error).resource, LedgerResource::Vms),
            }
        }
        assert_eq!(granted, 3);
    }

    #[tokio::test]
    async fn a_stopped_vm_gives_its_memory_back_and_must_ask_again_to_start() {
        let f = Fixture::with_limits(Limits { memory: Bytes(256 * MIB), ..Limits::UNBOUNDED });
        let (a, at_a) = f.stopped("a").await;
        let (b, at_b) = f.stopped("b").await;
        let at_a = f.go(a, at_a, VmState::Starting).await.unwrap();
        let refused = f.go(b, at_b, VmState::Starting).await.unwrap_err();
        assert_eq!(exceeded(refused).in_use, 256 * MIB);
        assert_eq!(f.store.vm(b).await.unwrap().unwrap().generation, at_b, "a refused move is no move");
        f.go(a, at_a, VmState::Stopped).await.unwrap();
        f.go(b, at_b, VmState::Starting).await.unwrap();
    }

    #[tokio::test]
    async fn a_failed_vm_whose_process_may_live_still_holds_its_memory_and_two_instances_hold_it_twice() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let at = f.go(vm, at, VmState::Starting).await.unwrap();
        f.store.record_instance(instance(vm, at)).await.unwrap();
        assert_eq!(f.store.ledger().await.unwrap().memory, Bytes(256 * MIB));
        f.store.record_instance(instance(vm, at.next())).await.unwrap();
        assert_eq!(f.store.ledger().await.unwrap().memory, Bytes(512 * MIB));
        f.go(vm, at, crate::fixture::failed()).await.unwrap();
        f.store.forget_instance(vm, at.next()).await.unwrap();
        assert_eq!(f.store.ledger().await.unwrap().memory, Bytes(256 * MIB));
        f.store.forget_instance(vm, at).await.unwrap();
        assert_eq!(f.store.ledger().await.unwrap().memory, Bytes(0));
        assert_eq!(f.store.ledger().await.unwrap().disk, Bytes(1 << 30));
    }

    #[tokio::test]
    async fn a_second_instance_beside_the_first_is_admitted_or_refused_by_its_own_name() {
        let f = Fixture::with_limits(Limits { memory: Bytes(512 * MIB), ..Limits::UNBOUNDED });
        let (vm, at) = f.stopped("a").await;
        let at = f.go(vm, at, VmState::Starting).await.unwrap();
        f.store.record_instance(instance(vm, at)).await.unwrap();
        let beside = move |tx: &Tx<'_>| {
            tx.admit_beside(vm)?;
            tx.record_instance(&instance(vm, at.next()))
        };
        f.store.transaction(beside).await.unwrap();
        f.store.forget_instance(vm, at.next()).await.unwrap();
        let (other, at_other) = f.stopped("b").await;
        f.go(other, at_other, VmState::Starting).await.unwrap();
        let refused = f.store.transaction(beside).await.unwrap_err();
        assert!(refused.to_string().contains("beside its present one"), "{refused}");
        assert_eq!(exceeded(refused).resource, LedgerResource::MemoryBeside);
        assert_eq!(f.store.instances_of(vm).await.unwrap().len(), 1, "and nothing of it is recorded");
    }

    #[test]
    fn a_sum_that_overflows_is_refused() {
        assert!(check(LedgerResource::Disk, u64::MAX, 1, u64::MAX).is_err());
        assert!(check(LedgerResource::Disk, 10, 9, 1).is_ok());
        assert!(check(LedgerResource::Disk, 10, 10, 1).is_err());
    }
}
