//! How the start of a VM that never ran finds something warm.
//!
//! ```text
//! thaw as that VM --confirmed--> ONE transaction: the instance's row ends, its process and disk layer are the VM's,
//!       |                        and the VM runs
//!       '-- anything else: the instance is ended, the VM is as it was
//! ```
//! Until that transaction the VM has nothing of the instance, so there is nothing to take back. After it, the instance
//! is found by the VM's record alone.

use super::{Key, Member};
use crate::{
    core::Core,
    layers,
    link::Whose,
    machine::{Machine, Verdict, io_failure},
    saga::{Change, Input, StepFuture, create::remove_tree, start::remove_old_boots, thaw::Identity},
    snapshots::Source,
    trace::{Scope, TraceEvent},
};
use offshoot_provider::InstanceRecord;
use offshoot_store::{Move, NewInstance, StoreError, Tx};
use offshoot_types::{
    Actor, Failure, Generation, LastStart, LayerId, OperationKind, Owner, StartedFrom, VmState, VmStateName,
};
use std::{os::unix::fs::symlink, path::Path, sync::Arc, time::Duration};

/// For an instance to confirm that it was renewed: a boot must not wait long for what was to be faster.
const CLAIM: Duration = Duration::from_secs(3);

/// What a start goes on from, if no instance could be claimed.
#[derive(Debug, Default)]
pub(crate) struct Warm {
    /// The template to restore, and the disk layer above its own.
    pub template: Option<(Arc<Source>, LayerId)>,
    /// Why no instance was claimed; `None`: nobody looked for one.
    pub not_pooled: Option<String>,
    /// What is warm failed this start once: it boots.
    pub refused: Option<String>,
    /// Whether the start leaves a disk layer that is nobody's.
    pub leaves_a_layer: bool,
}

/// The first step of a start. Never fails because of the pool: without it the VM boots.
pub(crate) fn claim<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.state() == VmStateName::Running {
            return Ok(());
        }
        if let Some(why) = machine.warm.refused.take() {
            machine.warm.not_pooled = Some(why);
            return Ok(());
        }
        machine.warm = Warm::default();
        let key = match could_use(machine, change).await? {
            Ok(key) => key,
            Err(why) => {
                machine.warm.not_pooled = why;
                return Ok(());
            }
        };
        let core = machine.core.clone();
        let offer = core.pool.want(&key, &machine.row.spec);
        let (mut next, mut why) = (offer.member, offer.why);
        while let Some(member) = next {
            match machine.take_member(change, member).await {
                Ok(()) => return Ok(()),
                Err(failure) => {
                    why = format!("an instance could not be claimed: {}", failure.message);
                    TraceEvent::NotClaimed { error: &failure.message }.emit(&machine.scope(change));
                }
            }
            next = core.pool.another(&key);
        }
        machine.warm.not_pooled = Some(why);
        if let Some((id, source)) = offer.template {
            let source = match source {
                Some(source) => Ok(source),
                None => core.source(id, 2).await.map(Arc::new),
            };
            match source {
                Ok(source) => {
                    core.pool.keep_source(&key, &source);
                    let layer = LayerId::from_uuid(*change.operation.as_uuid());
                    machine.warm.template = Some((source, layer));
                    machine.warm.leaves_a_layer = true;
                }
                Err(failure) => core.pool.failed(&key, &failure.message),
            }
        }
        Ok(())
    })
}

/// Whether a start may go on from a template, and which; else why not, if that is worth telling.
async fn could_use(machine: &Machine, change: &Change) -> Result<Result<Key, Option<String>>, Failure> {
    let row = &machine.row;
    let core = &machine.core;
    let ours = row.owner == Owner::daemon();
    if ours || change.kind != OperationKind::Start || matches!(change.input, Input::Fork(_)) {
        return Ok(Err(None));
    }
    // It has a state of its own to continue from.
    if row.memory.is_some() {
        return Ok(Err(None));
    }
    // Of a disk that is memory no layer tells.
    if row.last_start.is_some() && !core.provider(row.provider)?.keeps_disk() {
        return Ok(Err(Some("its disk was written to".into())));
    }
    if !core.pool.is_on() {
        return Ok(Err(Some("the pool is off".into())));
    }
    if row.state != VmState::Stopped || !machine.instances.is_empty() {
        return Ok(Err(Some("an earlier start of it failed".into())));
    }
    let Some(layer) = row.layer else { return Ok(Err(None)) };
    let chain = core.store.read(move |view| view.layer_chain(layer)).await?;
    let [only] = chain.as_slice() else {
        return Ok(Err(Some("its disk continues from another".into())));
    };
    let path = core.layout.state.join(&only.path);
    if !machine.blocking(move || Ok(layers::is_empty(&path))).await? {
        return Ok(Err(Some("its disk was written to".into())));
    }
    Ok(Ok(Key::of(row)))
}

impl Machine {
    /// Makes an instance of the pool this VM's. On failure the instance is ended, and the VM is as it was.
    async fn take_member(&mut self, change: &Change, member: Member) -> Result<(), Failure> {
        let link = member.link().cloned().ok_or_else(|| crate::error::process_gone(&member.row.name))?;
        // That of the move to `Starting`.
        let generation = self.row.generation.next();
        // Before it is renewed: a session that is lost afterwards must not rename it back.
        let scope = self.own_scope();
        link.belongs_to(Whose { hostname: self.name().clone(), generation, scope });
        let begun = tokio::time::Instant::now();
        let (thawed, placed) = tokio::join!(
            tokio::time::timeout(CLAIM, self.thaw(&link, generation, Identity::New)),
            self.place(&member, generation),
        );
        let thawed = thawed.map_err(|_elapsed| {
            let message = format!("it did not confirm that it was renewed within {CLAIM:?}");
            Failure::new(offshoot_types::ErrorCode::Thaw, message)
        })??;
        placed?;
        let record = InstanceRecord { vm: self.id(), generation, ..member.record.clone() };
        let claim = Claim::new(self, &member, &record, change)?;
        let id = self.id();
        let row = self
            .core
            .store
            .transaction(move |tx| {
                claim.write(tx)?;
                tx.vm(id)
            })
            .await?;
        let row = row.ok_or_else(|| crate::error::vm_gone(self.name()))?;
        let (isolation, member_id) = (record.isolation, member.id());
        self.row = row;
        self.instances = vec![record];
        let Some(live) = member.into_live() else { return Err(crate::error::process_gone(self.name())) };
        self.attestations = Some(thawed);
        self.warm = Warm { leaves_a_layer: true, ..Warm::default() };
        self.take_over(live);
        let took = begun.elapsed();
        TraceEvent::Claimed { member: &member_id.to_string(), isolation, took }.emit(&self.scope(change));
        Ok(())
    }

    /// After a start from a template that failed and was taken back: the next attempt boots.
    pub async fn go_cold(&mut self, change: &Change, why: String) -> Result<(), Failure> {
        TraceEvent::ColdAfterAll { error: &why }.emit(&self.scope(change));
        let key = Key::of(&self.row);
        self.core.pool.failed(&key, &why);
        self.warm.template = None;
        self.source = None;
        self.settle(Verdict::AtRest, change).await?;
        self.warm.refused = Some(format!("a start from its image's template failed: {why}"));
        Ok(())
    }

    /// Its boot's directory is where the instance was started: others find it under the VM's own.
    async fn place(&self, member: &Member, generation: Generation) -> Result<(), Failure> {
        let (layout, id) = (self.core.layout.clone(), self.id());
        let target = member.record.state_dir.clone();
        self.blocking(move || {
            let boot = layout.boot(id, generation);
            remove_old_boots(&layout.vm(id), generation)?;
            remove_tree(&boot)?;
            symlink(&target, &boot).map_err(|error| io_failure("link", &boot, &error))
        })
        .await
    }
}

/// The one write of a claim.
struct Claim {
    vm: offshoot_types::VmId,
    at: Generation,
    member: offshoot_types::VmId,
    member_at: Generation,
    member_instance: Generation,
    layer: LayerId,
    instance: NewInstance,
    operation: offshoot_types::OperationId,
    actor: Actor,
    reason: String,
}

impl Claim {
    fn new(
        machine: &Machine,
        member: &Member,
        record: &InstanceRecord,
        change: &Change,
    ) -> Result<Self, Failure> {
        let layer = member.row.layer.ok_or_else(|| {
            Failure::new(
                offshoot_types::ErrorCode::Internal,
                "an instance of the pool has no disk in the record",
            )
        })?;
        let InstanceRecord { vm, generation, provider, isolation, memory_base, .. } = record.clone();
        Ok(Self {
            vm: machine.id(),
            at: machine.row.generation,
            member: member.id(),
            member_at: member.row.generation,
            member_instance: member.record.generation,
            layer,
            instance: NewInstance::new(vm, generation, provider, isolation, memory_base, record)?,
            operation: change.operation,
            actor: change.actor.clone(),
            reason: change.reason.clone(),
        })
    }

    fn write(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        let step = |vm, expected, to, reason: String| {
            let (actor, operation) = (self.actor.clone(), Some(self.operation));
            tx.move_vm(&Move { vm, expected, to, reason, actor, operation })
        };
        // First: its memory is what the VM is admitted with.
        tx.forget_instance(self.member, self.member_instance)?;
        step(self.member, self.member_at, VmState::Destroyed, format!("claimed by VM {}", self.vm))?;
        let reason = format!("{}, from the warm pool", self.reason);
        let at = step(self.vm, self.at, VmState::Starting, reason.clone())?;
        tx.record_instance(&self.instance)?;
        // What the VM had was never written to: it goes with the next collection.
        tx.set_vm_layer(self.vm, self.layer)?;
        tx.set_vm_last_start(self.vm, &LastStart { from: StartedFrom::Pool, not_pooled: None })?;
        step(self.vm, at, VmState::Running, reason)?;
        Ok(())
    }
}

/// Once a claimed instance is gone, its files lie where those of any other boot do. Blocks.
pub(crate) fn bring_home(record: &InstanceRecord, boot: &Path, runtime: &Path) -> Result<(), Failure> {
    if record.state_dir != boot && record.state_dir.is_dir() {
        remove_tree(boot)?;
        let moved = std::fs::rename(&record.state_dir, boot);
        moved.map_err(|error| io_failure("rename", &record.state_dir, &error))?;
        if let Some(parent) = record.state_dir.parent() {
            remove_tree(parent)?;
        }
    }
    if record.runtime_dir != runtime
        && let Some(parent) = record.runtime_dir.parent()
    {
        remove_tree(parent)?;
    }
    Ok(())
}

impl Core {
    /// What a start left of its VM's first disk, or of a disk above a template's that it did not keep.
    pub fn collect_layers_later(self: &Arc<Self>) {
        let core = self.clone();
        self.tasks.spawn(crate::tasks::TaskKind::Pool, Scope::default(), async move {
            core.collect_layers().await;
        });
    }
}
