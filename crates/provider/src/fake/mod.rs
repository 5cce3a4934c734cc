//! A provider in memory, for everything above it: stateful, scriptable, with a guest that speaks the real
//! protocol. It runs no guest code at all and says so.
//!
//! ```text
//! test --keeps--> FakeHost --holds--> machines (each a guest with files and processes)
//!                    ^
//! "daemon" ----> FakeProvider          dropped and made anew: the machines live on, as behind keepers
//! ```

mod exec;
mod files;
mod guest;
mod host;
mod machine;
mod pipe;

pub use host::{BootFault, FakeHost};

use crate::{
    Adoption, BootError, BootPlan, BootStep, Capabilities, Exit, Instance, InstanceError, InstanceRecord,
    Provider, ReclaimReport, UndoReport,
};
use async_trait::async_trait;
use host::Refusal;
use machine::FakeInstance;
use offshoot_types::ProviderKind;

#[derive(Debug)]
pub struct FakeProvider {
    host: FakeHost,
}

impl FakeProvider {
    pub fn new(host: FakeHost) -> Self {
        Self { host }
    }

    fn failure(step: BootStep, message: impl Into<String>, undo: UndoReport) -> BootError {
        BootError { step, message: message.into(), hint: None, console_tail: Vec::new(), undo, source: None }
    }
}

#[async_trait]
impl Provider for FakeProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Fake
    }

    async fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: ProviderKind::Fake,
            isolation: Ok(self.host.isolation()),
            vmm: None,
            notes: vec!["nothing is run: this provider is for tests".into()],
            pause: true,
            live_snapshot: false,
        }
    }

    async fn boot(&self, plan: &BootPlan) -> Result<Box<dyn Instance>, BootError> {
        let none = UndoReport::default;
        if let Some(wanted) = plan.min_isolation.filter(|wanted| self.host.isolation() < *wanted) {
            let message =
                format!("isolation `{wanted}` is required, this host gives `{}`", self.host.isolation());
            return Err(Self::failure(BootStep::Probe, message, none()));
        }
        let fault = self.host.take_fault();
        if let Some(BootFault::Fail(step)) = fault {
            return Err(Self::failure(step, "a fault was injected", none()));
        }
        let machine = self.host.start(plan, fault).map_err(|refusal| {
            let message = match refusal {
                Refusal::InUse => format!("`{}` is in use by a keeper that lives", plan.state_dir.display()),
                Refusal::DiskInUse(holder) => {
                    let disk = plan.disk.top().map(|path| path.display().to_string()).unwrap_or_default();
                    format!("the data disk `{disk}` is in use by {}", holder.vm)
                }
            };
            Self::failure(BootStep::Keeper, message, none())
        })?;
        if let Some(BootFault::FailAndLeave(step)) = fault {
            let undo = UndoReport { undone: Vec::new(), failed: vec![format!("machine of {}", plan.vm)] };
            return Err(Self::failure(step, "a fault was injected", undo));
        }
        Ok(Box::new(FakeInstance { machine, host: self.host.clone() }))
    }

    async fn adopt(&self, record: &InstanceRecord) -> Result<Adoption, InstanceError> {
        let Some(machine) = self.host.find(record) else {
            self.host.forget(record);
            return Ok(Adoption::NeverStarted);
        };
        match machine.exit() {
            None => Ok(Adoption::Running(Box::new(FakeInstance { machine, host: self.host.clone() }))),
            Some(exit) => {
                self.host.forget(record);
                Ok(Adoption::Ended(Some(exit)))
            }
        }
    }

    async fn reclaim(&self, record: &InstanceRecord) -> ReclaimReport {
        let mut report = ReclaimReport::default();
        if let Some(machine) = self.host.forget(record)
            && machine.exit().is_none()
        {
            machine.end(Exit::Signal(libc::SIGKILL));
            report.removed.push(format!("machine of {}", record.vm));
        }
        report
    }
}
