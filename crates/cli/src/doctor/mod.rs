//! What this host gives, one line each. A check observes. All it leaves is, beside the images, what was proven and measured, for
//! the next time, and the program that measures.

mod host;
mod state;
mod vmm;

use crate::context::Context;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Ok,
    /// Works, with a drawback somebody should know.
    Warn,
    /// Something documented does not work here.
    Fail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { name, verdict, detail: detail.into(), remedy: None }
    }
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, detail)
    }
    fn warn(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warn, detail)
    }
    fn fail(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Verdict::Fail, detail)
    }
    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// All checks, in the order in which their failures would be met.
pub async fn examine(context: &Context) -> Vec<Check> {
    let mut checks = vec![host::agent(), host::memory(), host::cgroups()];
    checks.extend(state::state_dir(&context.paths));
    let (store, images) = host::images();
    checks.push(images);
    checks.push(host::image_tools());
    checks.extend(vmm::qemu(store.as_ref()).await);
    checks.push(vmm::gvisor(store.as_ref()).await);
    let (daemon, vms) = state::daemon(context).await;
    checks.push(daemon);
    checks.push(state::strays(&context.paths, vms.as_deref()));
    checks
}
