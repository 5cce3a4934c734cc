//! VM rows: making and finding them. `moves` changes them.

use crate::{
    AuditDecision, AuditEntry, Begun, NewEvent, NewOperation, StoreError, Tx, View,
    note::Subject,
    row::{json, json_option, named, parsed, parsed_option, time, time_option, to_json, to_name},
};
use jiff::{SignedDuration, Timestamp};
use offshoot_types::{
    Actor, Environment, EventKind, Generation, ImageDigest, IsolationClass, Labels, LastStart, LayerId, Life,
    LifeChange, Lifetime, NodeName, OperationId, Owner, ProviderKind, SnapshotId, SnapshotKind,
    SnapshotPolicy, SnapshotPolicyChange, VmId, VmName, VmRef, VmSpec, VmState, VmStateName,
};
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, time::Duration};

/// A VM as recorded. Its driver task is the only one that changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRecord {
    pub id: VmId,
    pub name: VmName,
    pub owner: Owner,
    pub labels: Labels,
    pub node: NodeName,
    pub spec: VmSpec,
    /// Of the latest instance; before the first one, what admission chose.
    pub provider: ProviderKind,
    pub isolation: IsolationClass,
    pub state: VmState,
    pub generation: Generation,
    pub created: Timestamp,
    /// The last move.
    pub updated: Timestamp,
    /// Since when it runs without interruption; `None` without a process.
    pub started: Option<Timestamp>,
    /// The disk layer it writes to; `None` until its disk is recorded, and once it is destroyed.
    pub layer: Option<LayerId>,
    /// What it continues from when it is started; `None`: it boots.
    pub memory: Option<SnapshotId>,
    /// Where it stands in the tree of states: the parent of its next snapshot.
    pub position: Option<SnapshotId>,
    pub policy: SnapshotPolicy,
    pub life: Life,
    /// When its time is up; `None` without a process, and without a limit.
    pub deadline: Option<Timestamp>,
    /// It was suspended by itself the last time, or was about to be.
    pub slept: bool,
    /// What its latest process was begun from; `None` before the first one.
    pub last_start: Option<LastStart>,
    /// Of a VM whose disk is its memory: what was kept of it at its latest stop.
    pub kept_disk: Option<KeptDisk>,
}

/// An archive of what a VM had written, in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptDisk {
    /// The stop that made it.
    pub operation: OperationId,
    /// A plain file name.
    pub file: String,
    /// Of the file, in bytes.
    pub length: u64,
    /// What it unpacks to.
    pub unpacked: u64,
    /// BLAKE3 of the file, in hexadecimal digits.
    pub hash: String,
    /// It is what the next start begins with. Not while the VM runs, nor after it has ended without a stop.
    pub current: bool,
}

/// A VM to be made. Name, image, sizes and labels are those of its spec.
#[derive(Debug, Clone)]
pub struct NewVm {
    pub id: VmId,
    pub owner: Owner,
    pub node: NodeName,
    pub spec: VmSpec,
    pub provider: ProviderKind,
    pub isolation: IsolationClass,
    /// Of a fork: what it continues from; `None`: it boots.
    pub memory: Option<SnapshotId>,
    /// Of a fork: the snapshot it was made from.
    pub position: Option<SnapshotId>,
}

const COLUMNS: &str = "id, name, owner, labels, node, spec, provider, isolation, state, failure, generation, \
     created, updated, started, layer, memory, position, policy, life, deadline, slept, last_start, kept_disk";

fn from_row(row: &Row<'_>) -> Result<VmRecord, rusqlite::Error> {
    let state = match named::<VmStateName>(row, "state")? {
        VmStateName::Creating => VmState::Creating,
        VmStateName::Stopped => VmState::Stopped,
        VmStateName::Starting => VmState::Starting,
        VmStateName::Running => VmState::Running,
        VmStateName::Paused => VmState::Paused,
        VmStateName::Suspending => VmState::Suspending,
        VmStateName::Suspended => VmState::Suspended,
        VmStateName::Stopping => VmState::Stopping,
        VmStateName::Migrating => VmState::Migrating,
        VmStateName::Failed => VmState::Failed(json(row, "failure")?),
        VmStateName::Destroyed => VmState::Destroyed,
    };
    Ok(VmRecord {
        id: parsed(row, "id")?,
        name: parsed(row, "name")?,
        owner: parsed(row, "owner")?,
        labels: json(row, "labels")?,
        node: parsed(row, "node")?,
        spec: json(row, "spec")?,
        provider: named(row, "provider")?,
        isolation: named(row, "isolation")?,
        state,
        generation: Generation(row.get("generation")?),
        created: time(row, "created")?,
        updated: time(row, "updated")?,
        started: time_option(row, "started")?,
        layer: parsed_option(row, "layer")?,
        memory: parsed_option(row, "memory")?,
        position: parsed_option(row, "position")?,
        policy: json(row, "policy")?,
        life: json(row, "life")?,
        deadline: time_option(row, "deadline")?,
        slept: row.get("slept")?,
        last_start: json_option(row, "last_start")?,
        kept_disk: json_option(row, "kept_disk")?,
    })
}

impl View<'_> {
    /// A VM by id, destroyed ones included while their row is kept.
    pub fn vm(&self, id: VmId) -> Result<Option<VmRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM vms WHERE id = ?1");
        self.one("read a VM", &sql, params![id.to_string()], from_row)
    }

    /// A VM as a caller names it, destroyed ones excluded. A name is looked up among those of `owner`.
    pub fn find_vm(&self, vm: &VmRef, owner: &Owner) -> Result<Option<VmRecord>, StoreError> {
        match vm {
            VmRef::Id(id) => Ok(self.vm(*id)?.filter(|vm| vm.state != VmState::Destroyed)),
            VmRef::Name(name) => {
                let sql = format!(
                    "SELECT {COLUMNS} FROM vms WHERE owner = ?1 AND name = ?2 AND state <> 'destroyed'"
                );
                self.one("find a VM by name", &sql, params![owner.as_str(), name.as_str()], from_row)
            }
        }
    }

    /// Every VM that is not destroyed, oldest first.
    pub fn vms(&self) -> Result<Vec<VmRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM vms WHERE state <> 'destroyed' ORDER BY id");
        self.many("list VMs", &sql, [], from_row)
    }

    /// VMs that have a process by their state, or may have one by a recorded instance: what a starting daemon
    /// must adopt or reclaim.
    pub fn vms_with_process(&self) -> Result<Vec<VmRecord>, StoreError> {
        let recorded: BTreeSet<VmId> = self.instances()?.into_iter().map(|instance| instance.vm).collect();
        let mut vms = self.vms()?;
        vms.retain(|vm| vm.state.name().has_process() || recorded.contains(&vm.id));
        Ok(vms)
    }

    /// Images some VM that is not destroyed was made from, or some disk layer lies over; these must not be removed.
    pub fn images_in_use(&self) -> Result<BTreeSet<ImageDigest>, StoreError> {
        let sql = "SELECT image FROM vms WHERE state <> 'destroyed' UNION SELECT image FROM layers";
        let images = self.many("list images in use", sql, [], |row| parsed(row, "image"))?;
        Ok(images.into_iter().collect())
    }

    pub(crate) fn expect_vm(&self, id: VmId) -> Result<VmRecord, StoreError> {
        let found = self.vm(id)?.filter(|vm| vm.state != VmState::Destroyed);
        found.ok_or_else(|| StoreError::NotFound { what: "VM", id: id.to_string() })
    }
}

impl Tx<'_> {
    /// Records the operation and its new VM, `Creating` at generation 1, if the ledger has room for it. Repeating
    /// it with the same request key changes nothing and returns the first operation, whose `vm` is the VM made then.
    pub fn create_vm(&self, operation: &NewOperation, vm: &NewVm) -> Result<Begun, StoreError> {
        if operation.vm != Some(vm.id) {
            let detail = format!("operation {} is not about VM {}", operation.id, vm.id);
            return Err(StoreError::Invalid { what: "operation", detail });
        }
        if let Some(first) = self.repeated(operation)? {
            return Ok(Begun::Repeated(first));
        }
        if let Some(other) = self.find_vm(&VmRef::Name(vm.spec.name.clone()), &vm.owner)? {
            let (name, owner) = (other.name, other.owner);
            return Err(StoreError::NameTaken { name, owner, by: other.id });
        }
        self.admit_create(self.limits(), &vm.spec)?;
        self.admit_key(&operation.actor)?;
        for snapshot in [vm.memory, vm.position].into_iter().flatten() {
            self.expect_usable_snapshot(snapshot)?;
        }
        self.insert_vm(vm, &operation.actor)?;
        let begun = self.insert_operation(operation)?;
        let kind = EventKind::StateChanged {
            from: None,
            to: VmState::Creating,
            generation: Generation(1),
            reason: operation.reason.clone(),
        };
        self.emit(&NewEvent {
            owner: vm.owner.clone(),
            vm: Some((vm.id, vm.spec.name.clone())),
            operation: Some(operation.id),
            actor: operation.actor.clone(),
            kind,
        })?;
        self.append_audit(
            &AuditEntry {
                actor: operation.actor.clone(),
                action: "state-changed".into(),
                target: vm.id.to_string(),
                decision: AuditDecision::Recorded,
                rules: Vec::new(),
                revision: String::new(),
                detail: format!("creating `{}`: {}", vm.spec.name, operation.reason),
            },
            Some(operation.id),
        )?;
        Ok(Begun::New(begun))
    }

    fn insert_vm(&self, vm: &NewVm, maker: &Actor) -> Result<(), StoreError> {
        let sql = "INSERT INTO vms (id, owner, labels, node, name, spec, image, memory_mib, cpus, disk_mib,
                provider, isolation, state, failure, generation, created, updated, started, memory, position, policy, life,
                made_with)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 'creating', NULL, 1, ?13, ?13, NULL,
                ?14, ?15, ?16, ?17, ?18)";
        let spec = &vm.spec;
        let key = match maker {
            Actor::ApiKey { id, .. } => Some(id.to_string()),
            Actor::LocalUser { .. } | Actor::Sandbox { .. } | Actor::Daemon => None,
        };
        let params = params![
            vm.id.to_string(),
            vm.owner.as_str(),
            to_json(&spec.labels),
            vm.node.as_str(),
            spec.name.as_str(),
            to_json(spec),
            spec.image_digest.to_string(),
            spec.memory.mib(),
            spec.cpus.get(),
            spec.disk.mib(),
            to_name(&vm.provider),
            to_name(&vm.isolation),
            self.now_micros(),
            vm.memory.map(|snapshot| snapshot.to_string()),
            vm.position.map(|snapshot| snapshot.to_string()),
            to_json(&spec.policy),
            to_json(&spec.life),
            key,
        ];
        self.execute("record a new VM", sql, params).map(drop)
    }

    /// What the VM continues from when it is started next; `None`: it boots.
    pub fn set_vm_memory(&self, vm: VmId, memory: Option<SnapshotId>) -> Result<(), StoreError> {
        self.expect_vm(vm)?;
        if let Some(snapshot) = memory {
            let snapshot = self.expect_usable_snapshot(snapshot)?;
            if snapshot.kind != SnapshotKind::Full {
                let detail = format!("snapshot {} has no memory to continue from", snapshot.id);
                return Err(StoreError::Invalid { what: "snapshot", detail });
            }
        }
        let sql = "UPDATE vms SET memory = ?2 WHERE id = ?1";
        let params = params![vm.to_string(), memory.map(|snapshot| snapshot.to_string())];
        self.execute("set a VM's memory", sql, params).map(drop)
    }

    /// Changes what `change` names; returns the policy as it is from then on.
    pub fn change_vm_policy(
        &self,
        vm: VmId,
        change: SnapshotPolicyChange,
    ) -> Result<SnapshotPolicy, StoreError> {
        let policy = self.expect_vm(vm)?.policy.changed(change);
        let sql = "UPDATE vms SET policy = ?2 WHERE id = ?1";
        self.execute("change a VM's snapshot policy", sql, params![vm.to_string(), to_json(&policy)])?;
        Ok(policy)
    }

    /// Changes what `change` names. A new limit of a VM that runs counts from now. Returns how it is from then on, and when
    /// the VM's time is up.
    pub fn change_vm_life(
        &self,
        vm: VmId,
        change: LifeChange,
    ) -> Result<(Life, Option<Timestamp>), StoreError> {
        let row = self.expect_vm(vm)?;
        let life = row.life.changed(change);
        let deadline = match change.timeout {
            Some(limit) if row.started.is_some() => self.after(limit.span()),
            Some(_) => None,
            None => row.deadline,
        };
        let sql = "UPDATE vms SET life = ?2, deadline = ?3 WHERE id = ?1";
        let params = params![vm.to_string(), to_json(&life), deadline.map(|at| at.as_microsecond())];
        self.execute("change a VM's life", sql, params)?;
        Ok((life, deadline))
    }

    /// Changes what is not `None`.
    pub fn describe_vm(
        &self,
        vm: VmId,
        labels: Option<Labels>,
        env: Option<Environment>,
    ) -> Result<(), StoreError> {
        let mut spec = self.expect_vm(vm)?.spec;
        spec.labels = labels.unwrap_or(spec.labels);
        spec.env = env.unwrap_or(spec.env);
        let sql = "UPDATE vms SET spec = ?2, labels = ?3 WHERE id = ?1";
        let params = params![vm.to_string(), to_json(&spec), to_json(&spec.labels)];
        self.execute("describe a VM", sql, params).map(drop)
    }

    /// A time so far from now, in whole microseconds as it is recorded.
    pub(crate) fn after(&self, span: Option<Duration>) -> Option<Timestamp> {
        let span = SignedDuration::try_from(span?).unwrap_or(SignedDuration::MAX);
        let at = self.now().saturating_add(span).unwrap_or(Timestamp::MAX);
        Timestamp::from_microsecond(at.as_microsecond()).ok()
    }

    /// Whether the VM is suspended by itself, to be written before it is.
    pub fn set_vm_slept(&self, vm: VmId, slept: bool) -> Result<(), StoreError> {
        self.expect_vm(vm)?;
        let sql = "UPDATE vms SET slept = ?2 WHERE id = ?1";
        self.execute("note why a VM is suspended", sql, params![vm.to_string(), slept]).map(drop)
    }

    /// What its present process was begun from.
    pub fn set_vm_last_start(&self, vm: VmId, start: &LastStart) -> Result<(), StoreError> {
        self.expect_vm(vm)?;
        let sql = "UPDATE vms SET last_start = ?2 WHERE id = ?1";
        self.execute("set what a VM was begun from", sql, params![vm.to_string(), to_json(start)]).map(drop)
    }

    /// What is kept of a VM whose disk is its memory; `None`: nothing.
    pub fn set_vm_kept_disk(&self, vm: VmId, kept: Option<&KeptDisk>) -> Result<(), StoreError> {
        self.expect_vm(vm)?;
        let sql = "UPDATE vms SET kept_disk = ?2 WHERE id = ?1";
        self.execute("set a VM's kept disk", sql, params![vm.to_string(), kept.map(to_json)]).map(drop)
    }

    /// VMs that were made for one request belong to nobody but their owner from here on: all of them or, if the
    /// transaction is not kept, none. One that is kept already stays as it is.
    pub fn keep_vms(&self, vms: &[VmId], operation: OperationId, actor: &Actor) -> Result<(), StoreError> {
        for id in vms {
            let mut vm = self.expect_vm(*id)?;
            if vm.spec.lifetime == Lifetime::Kept {
                continue;
            }
            vm.spec.lifetime = Lifetime::Kept;
            let sql = "UPDATE vms SET spec = ?2 WHERE id = ?1";
            self.execute("keep a VM", sql, params![id.to_string(), to_json(&vm.spec)])?;
            if let Some(from) = vm.position {
                let detail = format!("`{}` was made from snapshot {from} and is kept", vm.name);
                let subject = Subject { vm: &vm, operation: Some(operation), actor };
                self.note(&subject, EventKind::Forked { from }, "forked", id.to_string(), detail)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, new_vm, operation};
    use offshoot_types::{AutoSnapshot, ErrorCode, OperationKind, TimeLimit, Wake};

    #[tokio::test]
    async fn a_vm_is_read_back_as_it_was_recorded_also_after_a_restart() {
        let mut f = Fixture::new();
        let vm = new_vm("a");
        f.store.create_vm(operation(OperationKind::Create, Some(vm.id)), vm.clone()).await.unwrap();
        let before = f.store.vm(vm.id).await.unwrap().unwrap();
        assert_eq!((&before.spec, &before.labels, &before.node), (&vm.spec, &vm.spec.labels, &vm.node));
        assert_eq!((before.state.clone(), before.generation), (VmState::Creating, Generation(1)));
        f.reopen().await;
        assert_eq!(f.store.vm(vm.id).await.unwrap().unwrap(), before);
        assert_eq!(f.store.images_in_use().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_snapshot_policy_begins_as_specified_and_changes_in_what_is_named() {
        let mut f = Fixture::new();
        let mut vm = new_vm("a");
        vm.spec.policy = SnapshotPolicy { auto: AutoSnapshot::BeforeExec, rollback_on_failure: true };
        f.store.create_vm(operation(OperationKind::Create, Some(vm.id)), vm.clone()).await.unwrap();
        assert_eq!(f.store.vm(vm.id).await.unwrap().unwrap().policy, vm.spec.policy);
        let id = vm.id;
        let change =
            SnapshotPolicyChange { auto: Some(AutoSnapshot::OnFailure), ..SnapshotPolicyChange::default() };
        let changed = f.store.transaction(move |tx| tx.change_vm_policy(id, change)).await.unwrap();
        assert_eq!(changed, SnapshotPolicy { auto: AutoSnapshot::OnFailure, rollback_on_failure: true });
        f.reopen().await;
        assert_eq!(f.store.vm(id).await.unwrap().unwrap().policy, changed);
        let nobody = VmId::new();
        let refused = f.store.transaction(move |tx| tx.change_vm_policy(nobody, change)).await;
        assert!(matches!(refused, Err(StoreError::NotFound { .. })));
    }

    #[tokio::test]
    async fn the_time_of_a_vm_counts_from_each_start_and_from_each_new_limit() {
        let mut f = Fixture::new();
        let hour = Duration::from_secs(3600);
        let (vm, at) = f.stopped("a").await;
        let change = move |change: LifeChange| move |tx: &Tx<'_>| tx.change_vm_life(vm, change);
        let limit = |limit| LifeChange { timeout: Some(limit), ..LifeChange::default() };
        let set = f.store.transaction(change(limit(TimeLimit::After(hour)))).await.unwrap();
        assert_eq!((set.0.timeout, set.1), (Some(hour), None), "it does not run");
        let deadline = async |f: &Fixture| f.store.vm(vm).await.unwrap().unwrap().deadline;
        let at = f.go(vm, at, VmState::Starting).await.unwrap();
        let at = f.go(vm, at, VmState::Running).await.unwrap();
        let first = deadline(&f).await.expect("it runs");
        f.clock.advance(SignedDuration::from_mins(10));
        let at = f.go(vm, at, VmState::Paused).await.unwrap();
        let at = f.go(vm, at, VmState::Running).await.unwrap();
        assert_eq!(deadline(&f).await, Some(first), "a pause is part of the run");
        let other = LifeChange { wake: Some(Wake::Never), ..LifeChange::default() };
        f.store.transaction(change(other)).await.unwrap();
        assert_eq!(deadline(&f).await, Some(first), "another setting changes nothing of it");
        let (_, extended) = f.store.transaction(change(limit(TimeLimit::After(hour)))).await.unwrap();
        assert!(extended > Some(first), "from now");
        f.reopen().await;
        assert_eq!(deadline(&f).await, extended);
        let at = f.go(vm, at, VmState::Stopping).await.unwrap();
        let at = f.go(vm, at, VmState::Stopped).await.unwrap();
        assert_eq!(deadline(&f).await, None);
        let at = f.go(vm, at, VmState::Starting).await.unwrap();
        f.go(vm, at, VmState::Running).await.unwrap();
        assert!(deadline(&f).await.is_some(), "each start begins anew");
        let lifted = f.store.transaction(change(limit(TimeLimit::None))).await.unwrap();
        assert_eq!((lifted.0.timeout, lifted.1), (None, None));
        f.store.transaction(move |tx| tx.set_vm_slept(vm, true)).await.unwrap();
        assert!(f.store.vm(vm).await.unwrap().unwrap().slept);
    }

    #[tokio::test]
    async fn a_name_is_unique_per_owner_and_found_by_owner() {
        let f = Fixture::new();
        let (first, _) = f.stopped("a").await;
        let second = new_vm("a");
        let taken =
            f.store.create_vm(operation(OperationKind::Create, Some(second.id)), second.clone()).await;
        let taken = taken.unwrap_err();
        assert!(matches!(&taken, StoreError::NameTaken { by, .. } if *by == first), "{taken}");
        assert_eq!(taken.code(), ErrorCode::AlreadyExists);
        let other: Owner = "somebody".parse().unwrap();
        let theirs = NewVm { owner: other.clone(), ..second };
        let operation =
            NewOperation { owner: other.clone(), ..operation(OperationKind::Create, Some(theirs.id)) };
        f.store.create_vm(operation, theirs.clone()).await.unwrap();
        let by_name = |owner| f.store.find_vm(VmRef::Name("a".parse().unwrap()), owner);
        assert_eq!(by_name(Owner::default()).await.unwrap().unwrap().id, first);
        assert_eq!(by_name(other).await.unwrap().unwrap().id, theirs.id);
    }

    #[tokio::test]
    async fn vms_that_may_have_a_process_are_found_by_state_or_by_record() {
        let f = Fixture::new();
        f.stopped("idle").await;
        let (starting, at) = f.stopped("starting").await;
        f.go(starting, at, VmState::Starting).await.unwrap();
        let (leftover, at) = f.stopped("leftover").await;
        let at = f.go(leftover, at, VmState::Starting).await.unwrap();
        f.store.record_instance(crate::fixture::instance(leftover, at)).await.unwrap();
        f.go(leftover, at, crate::fixture::failed()).await.unwrap();
        let found: Vec<_> = f.store.vms_with_process().await.unwrap().into_iter().map(|vm| vm.id).collect();
        assert_eq!(found, [starting, leftover]);
    }

    #[tokio::test]
    async fn an_operation_about_another_vm_is_refused() {
        let f = Fixture::new();
        let refused = f.store.create_vm(operation(OperationKind::Create, None), new_vm("a")).await;
        assert!(matches!(refused, Err(StoreError::Invalid { .. })));
    }
}
