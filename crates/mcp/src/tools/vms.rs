//! `create_vm`, `list_vms`, `stop_vm`.

use super::{Arguments, Effect};
use crate::{
    call::{Call, parse},
    reply::Reply,
    session::rests,
};
use offshoot_api::v1::{self, Change, DestroyQuery, PageQuery, SetLife, Vm};
use offshoot_types::{ErrorCode, Failure, VmRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// VMs in one answer.
const MAX_VMS: u32 = 200;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Name of the new VM, 1 to 63 of a-z, 0-9, `-` and `_`.
    name: String,
    /// Image to boot; `base` if absent.
    image: Option<String>,
    /// Memory in MiB; what the image says if absent.
    memory_mib: Option<u64>,
    /// Virtual CPUs; 1 if absent.
    cpus: Option<u64>,
    /// Size of its data disk in MiB; 2048 if absent.
    disk_mib: Option<u64>,
}

impl Arguments for CreateVm {
    const NAME: &'static str = "create_vm";
    const TITLE: &'static str = "Create a VM";
    const DESCRIPTION: &'static str = "Makes and starts a VM with a name, for when the session's own is not enough: \
        another image, more memory, a second machine. It rests when it is idle and continues when it is asked for \
        something, and stays until `stop_vm` destroys it.";
    const EFFECT: Effect = Effect::Adds;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let mut life = SetLife::default();
        rests(&mut life);
        let request = v1::CreateVm {
            name: self.name.clone(),
            image: self.image,
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            disk_mib: self.disk_mib,
            life: Some(life),
            provider: call.session.provider(),
            start: true,
            ..v1::CreateVm::default()
        };
        let what = format!("creating VM {}", self.name);
        let changed = call.unless_cancelled(&what, call.client().create(&request)).await?;
        let vm = changed.vm.ok_or_else(|| {
            Failure::new(ErrorCode::Internal, format!("VM {} was made and is gone again", self.name))
        })?;
        let text = format!("VM {} runs\n{}\nname it in the `vm` argument of other tools", vm.name, line(&vm));
        Ok(Reply::new(text, summary(&vm)))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListVms {}

impl Arguments for ListVms {
    const NAME: &'static str = "list_vms";
    const TITLE: &'static str = "List VMs";
    const DESCRIPTION: &'static str = "Lists the VMs there are, with state, image, size and number of snapshots, and says which is the session's.";
    const EFFECT: Effect = Effect::Reads;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let page = PageQuery { limit: Some(MAX_VMS), cursor: None };
        let list = call.unless_cancelled("listing", call.client().vms_page(&page)).await?;
        let own = call.session.present_vm();
        let is_own = |vm: &Vm| match &own {
            Some(VmRef::Name(name)) => vm.name == *name,
            Some(VmRef::Id(id)) => vm.id == *id,
            None => false,
        };
        let mut text = format!("{} VMs", list.vms.len());
        for vm in &list.vms {
            text.push_str(&format!("\n{}{}", line(vm), if is_own(vm) { " [this session's]" } else { "" }));
        }
        if call.session.is_unused() {
            text.push_str("\nthis session has no VM yet: the first tool that names none makes it");
        }
        if list.next_cursor.is_some() {
            text.push_str("\n--- there are more VMs than are shown here");
        }
        let vms: Vec<_> = list.vms.iter().map(summary).collect();
        let data = json!({ "vms": vms, "truncated": list.next_cursor.is_some(), "session_vm": own.map(|vm| vm.to_string()) });
        Ok(Reply::new(text, data))
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum How {
    /// Shut down; its disk stays.
    #[default]
    Stop,
    /// Kept with its memory; it goes on where it was when it is asked for something.
    Suspend,
    /// Removed with its disk. Its named snapshots stay.
    Destroy,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// Name or id of a VM; the session's own if absent.
    vm: Option<String>,
    /// `stop` shuts it down and keeps its disk; `suspend` keeps its memory too, and it goes on when it is asked for
    /// something; `destroy` removes it, its named snapshots stay.
    #[serde(default)]
    how: How,
}

impl Arguments for StopVm {
    const NAME: &'static str = "stop_vm";
    const TITLE: &'static str = "Stop a VM";
    const DESCRIPTION: &'static str = "Stops, suspends or destroys a VM. The session's own VM ends with the session by \
        itself; a call that needs it later starts it again.";
    const EFFECT: Effect = Effect::ChangesOnce;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let vm: VmRef = match (&self.vm, call.session.present_vm()) {
            (Some(vm), _) => parse("vm", vm)?,
            (None, Some(vm)) => vm,
            (None, None) => {
                return Ok(Reply::new(
                    "this session has no VM: there is nothing to stop",
                    json!({ "vm": null }),
                ));
            }
        };
        let client = call.client();
        let became = match self.how {
            How::Stop => {
                call.unless_cancelled("stopping", client.stop(&vm, &Change::default())).await?;
                "stopped; its disk is kept"
            }
            How::Suspend => {
                call.unless_cancelled("suspending", client.suspend(&vm, &Change::default())).await?;
                "suspended; it goes on when it is asked for something"
            }
            How::Destroy => {
                call.unless_cancelled("destroying", client.destroy(&vm, &DestroyQuery::default())).await?;
                "destroyed"
            }
        };
        if call.session.present_vm().as_ref() == Some(&vm) {
            call.session.doubt();
        }
        Ok(Reply::new(format!("VM {vm} is {became}"), json!({ "vm": vm.to_string(), "how": self.how })))
    }
}

fn line(vm: &Vm) -> String {
    let snapshots = match vm.snapshots {
        Some(0) | None => String::new(),
        Some(count) => format!(", {count} snapshots"),
    };
    let failure = vm.failure.as_ref().map(|failure| format!(": {}", failure.reason)).unwrap_or_default();
    format!(
        "{}: {}{failure} (image {}, {} MiB memory, {} CPUs{snapshots})",
        vm.name, vm.state, vm.image, vm.memory_mib, vm.cpus
    )
}

fn summary(vm: &Vm) -> serde_json::Value {
    json!({
        "name": vm.name, "id": vm.id, "state": vm.state, "image": vm.image, "memory_mib": vm.memory_mib,
        "cpus": vm.cpus, "isolation": vm.isolation, "snapshots": vm.snapshots,
    })
}
