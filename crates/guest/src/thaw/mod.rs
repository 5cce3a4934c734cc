//! Waking a restored state as a machine of its own.
//!
//! ```text
//! Frozen -> kernel's random pool -> clock -> hostname, machine id, SSH host keys -> hooks
//!        -> interpreters signalled -> they run, and answer -> everything runs -> attestations
//! ```
//! A mandatory step that fails is an error, and everything stands still: no program runs with the randomness, clock or
//! name of another copy. Nothing is spawned but hooks, and those only where the image has some.

mod hooks;
mod identity;
mod ssh;

pub use hooks::Hooks;

use crate::{
    clock,
    contexts::Contexts,
    exec::Cgroups,
    fault::{Context, fault},
    freeze::Freezer,
    kernel::Kernel,
    sys,
};
use offshoot_guest_proto::message::{
    GuestError, GuestErrorKind, HostTime, InterpreterThawed, Reseeded, Thaw, Thawed,
};
use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// For the processes of a state that was saved while they ran.
const LATE_FREEZE: Duration = Duration::from_millis(500);
const RANDOM: &str = "/dev/urandom";

#[derive(Debug)]
pub struct Thawer {
    kernel: Kernel,
    freezer: Arc<Freezer>,
    contexts: Arc<Contexts>,
    hooks: Hooks,
    /// The last thaw that was completed since the last freeze.
    last: Mutex<Option<([u8; 16], Thawed)>>,
}

impl Thawer {
    pub fn new(kernel: Kernel, freezer: Arc<Freezer>, contexts: Arc<Contexts>, hooks: Hooks) -> Self {
        Self { kernel, freezer, contexts, hooks, last: Mutex::default() }
    }

    /// What was thawed before is no answer to a thaw of the state frozen now.
    pub fn forget(&self) {
        *self.last() = None;
    }

    fn last(&self) -> MutexGuard<'_, Option<([u8; 16], Thawed)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `connections_dropped`: those cut since the freeze.
    pub async fn thaw(&self, thaw: Thaw, connections_dropped: u32) -> Result<Thawed, GuestError> {
        let arrived = Instant::now();
        let thawing = self.freezer.thawing().await;
        if let Some((instance, thawed)) = &*self.last()
            && *instance == thaw.instance
        {
            return Ok(thawed.clone());
        }
        if !self.freezer.is_frozen() {
            let late = thawing.freeze(LATE_FREEZE).await;
            // A rollback to a state that could not be frozen then goes on as it was; a fork of it does not exist.
            match (late, &thaw.identity) {
                (Err(error), Some(_)) => return Err(error),
                (Err(error), None) => crate::console::warn(format_args!("{error}")),
                (Ok(_), _) => {}
            }
        }
        let kernel_random = self.renew_randomness(&thaw)?;
        // The host read its clock when the order left; what was waited for since counts.
        let waited = u64::try_from(arrived.elapsed().as_nanos()).unwrap_or(0);
        let now = HostTime(thaw.time.0.saturating_add(waited));
        clock::set(self.kernel, now).context("set", "the clock")?;
        let ssh_host_keys = match &thaw.identity {
            Some(identity) => {
                identity::take_on(Path::new("/"), identity)?;
                ssh::renew_host_keys(Path::new("/etc/ssh"), &identity.hostname)?
            }
            None => Vec::new(),
        };
        if !ssh_host_keys.is_empty() {
            ssh::reload_servers();
        }
        // Daemons of earlier hooks stand still in there with the rest.
        thawing.release(Path::new(Cgroups::HOOKS))?;
        let hooks = self.hooks.run().await?;
        let asked = self.contexts.ask_to_reseed();
        thawing.release(Path::new(Cgroups::CONTEXTS))?;
        let interpreters = Contexts::reseeded(asked).await;
        let thawed = Thawed {
            kernel_random,
            clock_offset_ns: clock::offset_from(thaw.time, arrived.elapsed()),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            machine_id: identity::machine_id()?,
            ssh_host_keys,
            connections_dropped,
            processes_not_reseeded: not_reseeded(
                self.freezer.standing(),
                &interpreters,
                self.contexts.spares(),
            ),
            interpreters,
            hooks,
        };
        if let Some(wanted) = &thaw.identity
            && (thawed.hostname != wanted.hostname || thawed.machine_id != wanted.machine_id_text())
        {
            let message = "thaw: hostname or machine id are not what was written".to_owned();
            return Err(fault(GuestErrorKind::Other, message));
        }
        thawing.complete()?;
        *self.last() = Some((thaw.instance, thawed.clone()));
        Ok(thawed)
    }

    /// The state that was frozen goes on here and nowhere else: with the host's time, and as what it was.
    pub async fn go_on(&self, time: HostTime) -> Result<(), GuestError> {
        let arrived = Instant::now();
        let going = self.freezer.thawing().await;
        let waited = u64::try_from(arrived.elapsed().as_nanos()).unwrap_or(0);
        clock::set(self.kernel, HostTime(time.0.saturating_add(waited))).context("set", "the clock")?;
        going.complete()
    }

    fn renew_randomness(&self, thaw: &Thaw) -> Result<Reseeded, GuestError> {
        if !self.kernel.has_own_random_pool() {
            return Ok(Reseeded::HostProvided);
        }
        let device = fs::File::open(RANDOM).context("open", RANDOM)?;
        sys::reseed_kernel(&device, &thaw.entropy.0).context("reseed the kernel through", RANDOM)?;
        Ok(Reseeded::Yes)
    }
}

/// Of the processes that stood still, those that are not interpreters which have reseeded themselves, or will before
/// they run anything.
fn not_reseeded(standing: u32, interpreters: &[InterpreterThawed], spares: u32) -> u32 {
    let reseeded = interpreters.iter().filter(|one| one.random == Reseeded::Yes).count();
    let reseeded = u32::try_from(reseeded).unwrap_or(u32::MAX);
    standing.saturating_sub(reseeded.saturating_add(spares))
}
