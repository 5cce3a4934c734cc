//! What a step may have made of VMs and snapshots: the model is brought up to the facts, or the facts are refused.

use crate::{
    acts::Deed,
    invariants::Facts,
    model::{Content, Kept, Machine, Model},
    schedule::Verb,
    trouble::Met,
    verdict::Verdict,
};
use offshoot_types::{SnapshotId, SnapshotKind, SnapshotOrigin, SnapshotState, VmStateName};
use std::collections::BTreeMap;

/// What was asked for in a step, what became of it, and what went wrong meanwhile.
pub struct Asked<'a> {
    pub deeds: &'a [Deed],
    pub verdicts: &'a [Verdict],
    pub met: Met,
}

impl Asked<'_> {
    fn each(&self) -> impl Iterator<Item = (&Deed, Verdict)> {
        self.deeds.iter().zip(self.verdicts.iter().copied())
    }
    /// Whether something of the kind was begun.
    fn any(&self, holds: impl Fn(&Deed) -> bool) -> bool {
        self.each().any(|(deed, verdict)| holds(deed) && verdict != Verdict::Refused)
    }
    /// What may have been removed.
    fn removed(&self) -> impl Iterator<Item = SnapshotId> {
        let removals = self
            .each()
            .filter(|(deed, verdict)| deed.verb == Verb::RemoveSnapshot && verdict.happened() != Some(false));
        removals.filter_map(|(deed, _)| deed.snapshot)
    }
}

impl Model {
    pub fn take_over(&mut self, asked: &Asked<'_>, facts: &Facts) -> Result<(), String> {
        let old = std::mem::take(&mut self.vms);
        let mut expected: BTreeMap<String, Content> =
            old.iter().map(|(name, machine)| (name.clone(), machine.content.clone())).collect();
        for (deed, verdict) in asked.each() {
            let alone = asked.deeds.iter().filter(|other| other.vm == deed.vm).count() == 1;
            let verdict = if alone { verdict } else { Verdict::Unsure };
            self.expect(deed, verdict, asked, &old, &mut expected)?;
            check_state(deed, verdict, asked.met, &old, facts)?;
        }
        for vm in &facts.vms {
            let name = vm.name.to_string();
            if !old.contains_key(&name) && !asked.any(|deed| deed.makes(&name)) {
                return Err(format!("{name} came from nowhere"));
            }
            let mut content = expected.remove(&name).unwrap_or_else(Content::fresh);
            let remembers = vm.state.name().has_process() || vm.suspended_to.is_some();
            if !remembers {
                content.forget_variable();
            } else if asked.met.ended {
                content.may_forget_variable();
            }
            let (state, position) = (vm.state.name(), facts.positions.get(&name).copied().flatten());
            let undo = facts.undo.get(&name).copied().flatten();
            let doomed = old.get(&name).is_some_and(|machine| machine.doomed)
                || asked.any(|deed| deed.verb == Verb::Destroy && deed.vm == name);
            self.vms.insert(name, Machine { state, position, undo, doomed, content });
        }
        for (name, _) in old.iter().filter(|(name, machine)| !self.vms.contains_key(*name) && !machine.doomed)
        {
            if !asked.any(|deed| deed.verb == Verb::Destroy && deed.vm == *name) {
                return Err(format!("{name} is gone"));
            }
        }
        self.let_go(asked, facts)?;
        self.keep(asked, &old, facts)
    }

    /// What a command does to the content of its VM, and of those it makes.
    fn expect(
        &self,
        deed: &Deed,
        verdict: Verdict,
        asked: &Asked<'_>,
        old: &BTreeMap<String, Machine>,
        expected: &mut BTreeMap<String, Content>,
    ) -> Result<(), String> {
        let kept = |id: Option<SnapshotId>| id.and_then(|id| self.kept.get(&id));
        let source = match deed.verb {
            Verb::ForkSnapshot => kept(deed.snapshot).map(|kept| kept.content.clone()),
            _ => old.get(&deed.vm).map(|machine| machine.content.clone()),
        };
        for fork in deed.forks() {
            expected.insert(fork, source.clone().unwrap_or_else(Content::fresh));
        }
        let Some(content) = expected.get_mut(&deed.vm) else { return Ok(()) };
        let mut after = content.clone();
        match deed.verb {
            Verb::Write | Verb::Try | Verb::TransactAndCommit => after.set_file(deed.file, &deed.value),
            // What is not committed is undone, whatever happened on the way.
            Verb::TryAndFail | Verb::TransactAndRollBack => {}
            Verb::SetVariable => after.set_variable(&deed.value),
            Verb::Stop | Verb::Restart => after.forget_variable(),
            verb if verb.rolls_back() => {
                let machine = old.get(&deed.vm);
                let newest =
                    |gone: &[SnapshotId]| machine.and_then(|machine| self.newest(machine.position, gone));
                let to = match verb {
                    Verb::Undo => machine.and_then(|machine| machine.undo),
                    Verb::RollbackNewest => newest(&[]),
                    _ => deed.snapshot,
                };
                match kept(to) {
                    Some(target) => {
                        after = target.content.clone();
                        // What is removed at the same time may have been gone before this looked.
                        let removed: Vec<SnapshotId> = asked.removed().collect();
                        if verb == Verb::RollbackNewest
                            && let Some(nearest) = kept(newest(&removed))
                        {
                            after.or(&nearest.content);
                        }
                    }
                    None if verdict.happened() == Some(true) => {
                        return Err(format!("{} went back to what nobody knew", deed.vm));
                    }
                    None => {}
                }
            }
            _ => {}
        }
        // What failed in a guest may have been carried out, its answer lost; a process may have ended first.
        let partly = matches!(deed.verb, Verb::Write | Verb::SetVariable | Verb::Stop | Verb::Restart);
        match verdict.happened() {
            Some(true) => *content = after,
            Some(false) if partly && verdict != Verdict::Refused => content.or(&after),
            Some(false) => {}
            None => content.or(&after),
        }
        Ok(())
    }

    /// Snapshots that are gone.
    fn let_go(&mut self, asked: &Asked<'_>, facts: &Facts) -> Result<(), String> {
        let there = |id: SnapshotId| facts.snapshots.iter().any(|snapshot| snapshot.id == id);
        for (deed, verdict) in asked.each() {
            let removal = deed.verb == Verb::RemoveSnapshot && verdict.happened() == Some(true);
            if removal && deed.snapshot.is_some_and(there) {
                return Err("a snapshot was removed and is there".into());
            }
        }
        for (id, kept) in self.kept.iter().filter(|(id, kept)| kept.manual && !there(**id)) {
            let removed = asked.each().any(|(deed, verdict)| {
                let removal = deed.verb == Verb::RemoveSnapshot && deed.snapshot == Some(*id);
                removal && verdict.happened() != Some(false)
            });
            if !removed {
                return Err(format!("snapshot #{} is gone", kept.ordinal));
            }
        }
        self.kept.retain(|id, _| there(*id));
        Ok(())
    }

    /// Snapshots that are new: of the state their VM was in when the step began, for they are alone with it.
    fn keep(
        &mut self,
        asked: &Asked<'_>,
        old: &BTreeMap<String, Machine>,
        facts: &Facts,
    ) -> Result<(), String> {
        for (deed, verdict) in asked.each() {
            if !matches!(deed.verb, Verb::Snapshot | Verb::SnapshotDisk) {
                continue;
            }
            let named = |name: &offshoot_types::SnapshotName| name.as_str() == deed.name;
            let listed = facts.snapshots.iter().any(|snapshot| snapshot.name.as_ref().is_some_and(named));
            match verdict.happened() {
                Some(true) if !listed => {
                    return Err(format!("{}@{} was taken and is not there", deed.vm, deed.name));
                }
                Some(false) if listed => {
                    return Err(format!("{}@{} was not taken and is there", deed.vm, deed.name));
                }
                _ => {}
            }
        }
        for (deed, verdict) in asked.each().filter(|(deed, _)| deed.verb.rolls_back()) {
            let left = facts.snapshots.iter().find(|snapshot| {
                let new = !self.kept.contains_key(&snapshot.id) && snapshot.vm_name.as_str() == deed.vm;
                new && snapshot.origin == SnapshotOrigin::Undo
            });
            let undo = facts.undo.get(&deed.vm).copied().flatten();
            if verdict == Verdict::Done && left.is_some_and(|left| undo != Some(left.id)) {
                return Err(format!("an undo of {} would not go back to what its rollback left", deed.vm));
            }
        }
        for snapshot in &facts.snapshots {
            let manual = snapshot.origin == SnapshotOrigin::Manual;
            let passing = matches!(snapshot.origin, SnapshotOrigin::Fork | SnapshotOrigin::Suspend);
            let damaged = snapshot.state == SnapshotState::Damaged;
            if let Some(kept) = self.kept.get_mut(&snapshot.id) {
                (kept.manual, kept.passing, kept.damaged, kept.parent) =
                    (manual, passing, damaged, snapshot.parent);
                continue;
            }
            let vm = snapshot.vm_name.to_string();
            let Some(machine) = old.get(&vm) else {
                return Err(format!("a {} snapshot of {vm}, which was not there", snapshot.origin));
            };
            let mut content = machine.content.clone();
            // A transaction keeps what it began with, and a rollback of it what was done in it.
            for deed in asked.deeds.iter().filter(|deed| deed.verb.transacts() && deed.vm == vm) {
                let mut after = content.clone();
                after.set_file(deed.file, &deed.value);
                content.or(&after);
            }
            let content = if snapshot.kind == SnapshotKind::Full { content } else { content.booted() };
            self.ever += 1;
            let kept = Kept {
                ordinal: self.ever,
                vm,
                manual,
                passing,
                damaged,
                parent: snapshot.parent,
                quiesced: snapshot.quiesced,
                content,
            };
            self.kept.insert(snapshot.id, kept);
        }
        Ok(())
    }
}

/// Where a command may have brought its VM.
fn check_state(
    deed: &Deed,
    verdict: Verdict,
    met: Met,
    old: &BTreeMap<String, Machine>,
    facts: &Facts,
) -> Result<(), String> {
    use VmStateName::{Failed, Paused, Running, Stopped, Suspended};
    let was = old.get(&deed.vm).map(|machine| machine.state);
    let is = facts.vm(&deed.vm).map(|vm| vm.state.name());
    let begun = verdict != Verdict::Refused;
    let mut allowed = match (deed.verb, verdict.happened()) {
        // Not about the VM it is named with.
        (Verb::ForkSnapshot | Verb::RemoveSnapshot, _) | (_, None) => return Ok(()),
        // These go through several states, and stay where they were cut off.
        (Verb::Stop | Verb::Restart | Verb::Destroy, Some(false)) if begun => return Ok(()),
        (Verb::Create | Verb::Stop, Some(true)) => vec![Some(Stopped)],
        (Verb::Start | Verb::Restart | Verb::Resume, Some(true)) => vec![Some(Running)],
        // A rollback goes on with a VM that was paused.
        (verb, Some(true)) if verb.transacts() => vec![was, Some(Running)],
        (Verb::Pause, Some(true)) => vec![Some(Paused)],
        (Verb::Suspend, Some(true)) => vec![Some(Suspended)],
        (Verb::Destroy, Some(true)) => vec![None],
        (verb, Some(true)) if verb.rolls_back() => match was {
            Some(Running | Paused) if !met.any => vec![Some(Running)],
            // Switched without a process, also if that had ended just before, and started if there is a memory; that may fail.
            _ => vec![Some(Running), Some(Suspended), Some(Stopped), Some(Failed)],
        },
        (Verb::Start | Verb::Resume, Some(false)) if was != Some(Paused) => {
            vec![was, Some(Stopped), Some(Suspended), Some(Failed)]
        }
        // What the VMM was told may have been done.
        (Verb::Pause, Some(false)) => vec![was, Some(Paused)],
        (Verb::Resume, Some(false)) => vec![was, Some(Running)],
        (Verb::Suspend, Some(false)) | (Verb::Rest, _) => vec![was, Some(Suspended)],
        _ => vec![was],
    };
    let wakes = matches!(
        deed.verb,
        Verb::Rest
            | Verb::Rebase
            | Verb::Echo
            | Verb::Sleep
            | Verb::Write
            | Verb::SetVariable
            | Verb::Snapshot
            | Verb::SnapshotDisk
    );
    if was == Some(Suspended) && (wakes || deed.verb.transacts()) {
        // It had suspended itself, and was cut off before it was woken.
        allowed.push(Some(Running));
    }
    if met.any {
        // A machine that ended by itself, or an undo that failed.
        allowed.extend([Some(Failed), Some(Stopped)]);
    }
    let reaped = is.is_none() && old.get(&deed.vm).is_some_and(|machine| machine.doomed);
    if allowed.contains(&is) || reaped {
        return Ok(());
    }
    let Deed { verb, vm, .. } = deed;
    Err(format!("{verb:?} ({verdict:?}) brought {vm} from {was:?} to {is:?}, not to one of {allowed:?}"))
}
