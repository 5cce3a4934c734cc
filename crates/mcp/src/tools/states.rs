//! `snapshot`, `fork`, `rollback`.

use super::{Arguments, Effect};
use crate::{
    call::{Call, parse},
    reply::Reply,
};
use offshoot_api::v1::{self, ForkRequest, RollbackRequest, Snapshot};
use offshoot_types::{ErrorCode, Failure, SnapshotId, VmName, VmRef};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

/// Forks of one call.
const MAX_FORKS: u32 = 16;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TakeSnapshot {
    /// Name or id of a VM; the session's own if absent.
    vm: Option<String>,
    /// What to call it, unique among the VM's snapshots: a-z, 0-9, `-` and `_`. It is found by its id if absent.
    name: Option<String>,
    /// What it is good for, in a sentence.
    note: Option<String>,
}

impl Arguments for TakeSnapshot {
    const NAME: &'static str = "snapshot";
    const TITLE: &'static str = "Take a snapshot";
    const DESCRIPTION: &'static str = "Keeps the whole present state of a VM: memory, running programs, interpreters \
        and files. `rollback` returns to it, `fork` makes new VMs from it, `diff` compares with it. It takes a fraction \
        of a second; take one before anything you might want to undo.";
    const EFFECT: Effect = Effect::Adds;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let vm = call.vm(self.vm.as_deref()).await?;
        let request = v1::TakeSnapshot { name: self.name, disk_only: false, note: self.note };
        let taking = call.client().snapshot(&vm, &request);
        let snapshot = call.unless_cancelled("taking the snapshot", taking).await?;
        let reference = reference(&snapshot);
        let text = format!(
            "snapshot {reference} of VM {} taken\nid: {}\nto return to it: `rollback` with snapshot `{reference}`",
            snapshot.vm_name, snapshot.id
        );
        let data = json!({ "vm": snapshot.vm_name, "id": snapshot.id, "snapshot": reference });
        Ok(Reply::new(text, data))
    }
}

/// By which other tools find it.
pub fn reference(snapshot: &Snapshot) -> String {
    match &snapshot.name {
        Some(name) => format!("{}@{name}", snapshot.vm_name),
        None => snapshot.id.to_string(),
    }
}

/// A snapshot as it may be named in a call: `VM@NAME`, an id, or a name among those of `vm`.
fn full_reference(vm: &VmRef, text: &str) -> String {
    match text.contains('@') || text.parse::<SnapshotId>().is_ok() {
        true => text.into(),
        false => format!("{vm}@{text}"),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    /// Name or id of the VM to copy; the session's own if absent.
    vm: Option<String>,
    /// Copy this snapshot (its name, `VM@NAME` or id) instead of the present state.
    snapshot: Option<String>,
    /// Name of the new VM, or what names of several begin with; made up if absent.
    name: Option<String>,
    /// How many, up to 16; 1 if absent.
    count: Option<u32>,
}

impl Arguments for Fork {
    const NAME: &'static str = "fork";
    const TITLE: &'static str = "Fork a VM";
    const DESCRIPTION: &'static str = "Makes new running VMs that go on from the present state of a VM or from a \
        snapshot, with its memory, programs and files, each on its own from then on. Use forks to try several ways at \
        once; name them in the `vm` argument of other tools, and `stop_vm` them (`how`: `destroy`) when done.";
    const EFFECT: Effect = Effect::Adds;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        if let Some(count) = self.count.filter(|count| !(1..=MAX_FORKS).contains(count)) {
            let message = format!("`count`: {count} is not between 1 and {MAX_FORKS}");
            return Err(Failure::new(ErrorCode::InvalidArgument, message));
        }
        // `VM@NAME` says all: no VM of the session's is made for it.
        let source = match &self.snapshot {
            Some(snapshot)
                if self.vm.is_none()
                    && (snapshot.contains('@') || snapshot.parse::<SnapshotId>().is_ok()) =>
            {
                snapshot.clone()
            }
            snapshot => {
                let vm = call.vm(self.vm.as_deref()).await?;
                snapshot.as_ref().map_or_else(|| vm.to_string(), |snapshot| full_reference(&vm, snapshot))
            }
        };
        let request = ForkRequest { source: source.clone(), name: self.name, count: self.count };
        let forked = call.unless_cancelled("forking", call.client().fork(&request)).await?;
        let names: Vec<&VmName> = forked.forks.iter().map(|fork| &fork.name).collect();
        let list = names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let text = format!("forked {source}: {list}\nname one in the `vm` argument of other tools");
        Ok(Reply::new(text, json!({ "source": source, "snapshot": forked.snapshot, "vms": names })))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Name or id of a VM; the session's own if absent.
    vm: Option<String>,
    /// The snapshot to return to: its name, `VM@NAME` or id; the newest of the VM if absent.
    snapshot: Option<String>,
}

impl Arguments for Rollback {
    const NAME: &'static str = "rollback";
    const TITLE: &'static str = "Roll back a VM";
    const DESCRIPTION: &'static str = "Takes a VM back to a snapshot: memory, running programs, interpreters with their \
        variables, and files are as they were then. What the VM was until now is kept as a snapshot too, whose id the \
        answer names, so that a rollback can itself be taken back.";
    const EFFECT: Effect = Effect::ChangesOnce;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let vm: VmRef = match (&self.vm, call.session.present_vm()) {
            (Some(vm), _) => parse("vm", vm)?,
            (None, Some(vm)) => vm,
            (None, None) => {
                let message = "this session has no VM yet, so there is nothing to return to";
                return Err(Failure::new(ErrorCode::WrongState, message)
                    .hint("name a VM: `list_vms` shows those there are"));
            }
        };
        let snapshot = self.snapshot.map(|snapshot| full_reference(&vm, &snapshot));
        let request = RollbackRequest { snapshot, last_good: false };
        let rolling = call.client().rollback(&vm, &request);
        let done = call.unless_cancelled("rolling back", rolling).await?;
        let mut text = format!("VM {vm} is as it was at snapshot {}", done.to);
        if let Some(undo) = &done.undo {
            text.push_str(&format!("\nto take that back: `rollback` with snapshot `{undo}`"));
        }
        if let Some(warning) = &done.warning {
            text.push_str(&format!("\nwarning: {warning}"));
        }
        let data = json!({ "vm": vm.to_string(), "to": done.to, "undo": done.undo, "warning": done.warning });
        Ok(Reply::new(text, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_in_full_in_short_or_by_id() {
        let vm = "web".parse().unwrap();
        assert_eq!(full_reference(&vm, "before"), "web@before");
        assert_eq!(full_reference(&vm, "other@before"), "other@before");
        let id = SnapshotId::new().to_string();
        assert_eq!(full_reference(&vm, &id), id);
    }
}
