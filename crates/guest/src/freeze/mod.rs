//! Making all user processes stand still, and letting them run again.
//!
//! ```text
//! Running --freeze: every group stands still in time--> Frozen --unfreeze, thaw--> Running
//!    ^------------------- not in time, or nobody waits any more
//! ```
//! The state is the agent's own: neither the loss of a session nor a restore lifts it. While it is on, nothing may be
//! started: a child is born into a frozen cgroup and would keep the agent, which waits for its `execve`, for ever.
//! So starts wait for [`Freezer::running`], and start without another wait in between.

mod group;

pub use group::Group;

use crate::fault::fault;
use offshoot_guest_proto::message::{Frozen, GuestError, GuestErrorKind};
use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, MutexGuard, watch};

/// The kernel announces a change of `cgroup.events` at most once in 10 ms, half of the usual deadline: looking is
/// better than listening. The processes get the CPU in between.
const LOOK: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub struct Freezer {
    groups: Vec<Group>,
    frozen: watch::Sender<bool>,
    /// Processes that stand still since the last freeze.
    standing: AtomicU32,
    /// One freeze, unfreeze or thaw at a time.
    order: Mutex<()>,
}

impl Freezer {
    pub fn new(groups: Vec<Group>) -> Self {
        Self {
            groups,
            frozen: watch::Sender::new(false),
            standing: AtomicU32::new(0),
            order: Mutex::default(),
        }
    }

    pub fn is_frozen(&self) -> bool {
        *self.frozen.borrow()
    }

    /// How many processes stood still after the last freeze. Counted then, when the guest is at work anyway: for a
    /// restored one every look around is code to be translated first.
    pub fn standing(&self) -> u32 {
        self.standing.load(Ordering::Relaxed)
    }

    /// Returns once processes may be started. What is started without a further await is started in time.
    pub async fn running(&self) {
        let mut frozen = self.frozen.subscribe();
        // The sender is ours: it is never closed.
        drop(frozen.wait_for(|frozen| !*frozen).await);
    }

    /// All groups stand still within `deadline`, or run as before. Dropped half-way, they run.
    pub async fn freeze(&self, deadline: Duration) -> Result<Frozen, GuestError> {
        let order = self.order.lock().await;
        self.freeze_in(&order, deadline).await
    }

    async fn freeze_in(&self, _order: &MutexGuard<'_, ()>, deadline: Duration) -> Result<Frozen, GuestError> {
        let begun = Instant::now();
        if !self.is_frozen() {
            self.frozen.send_replace(true);
            let undo = Undo(self);
            for group in &self.groups {
                group.set(true)?;
            }
            while !self.all_stand_still()? {
                if begun.elapsed() >= deadline {
                    let message =
                        format!("freeze: some processes still run after {} ms", deadline.as_millis());
                    return Err(fault(GuestErrorKind::Other, message));
                }
                tokio::time::sleep(LOOK).await;
            }
            let standing = self.groups.iter().map(Group::processes).sum::<usize>();
            self.standing.store(u32::try_from(standing).unwrap_or(u32::MAX), Ordering::Relaxed);
            undo.disarm();
        }
        let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(Frozen { processes: self.count()?, took_us })
    }

    pub async fn unfreeze(&self) -> Result<(), GuestError> {
        let _order = self.order.lock().await;
        self.release()
    }

    /// The right to thaw: nothing else freezes or unfreezes meanwhile.
    pub async fn thawing(&self) -> Thawing<'_> {
        Thawing { order: self.order.lock().await, freezer: self, complete: false }
    }

    fn release(&self) -> Result<(), GuestError> {
        for group in &self.groups {
            group.set(false)?;
        }
        self.frozen.send_replace(false);
        Ok(())
    }

    fn all_stand_still(&self) -> Result<bool, GuestError> {
        for group in &self.groups {
            if !group.stands_still()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Processes and threads in all groups.
    fn count(&self) -> Result<u32, GuestError> {
        let mut total = 0_u32;
        for group in &self.groups {
            total = total.saturating_add(group.threads()?);
        }
        Ok(total)
    }
}

/// Processes stand still until [`Thawing::complete`]; dropped before, they stand still again.
#[derive(Debug)]
pub struct Thawing<'a> {
    order: MutexGuard<'a, ()>,
    freezer: &'a Freezer,
    complete: bool,
}

impl Thawing<'_> {
    /// For a state that was saved while its processes ran.
    pub async fn freeze(&self, deadline: Duration) -> Result<Frozen, GuestError> {
        self.freezer.freeze_in(&self.order, deadline).await
    }

    /// Lets one of the groups run ahead of the rest.
    pub fn release(&self, path: &Path) -> Result<(), GuestError> {
        self.freezer.groups.iter().filter(|group| group.path() == path).try_for_each(|group| group.set(false))
    }

    /// Lets everything run.
    pub fn complete(mut self) -> Result<(), GuestError> {
        self.freezer.release()?;
        self.complete = true;
        Ok(())
    }
}

impl Drop for Thawing<'_> {
    fn drop(&mut self) {
        if !self.complete && self.freezer.is_frozen() {
            for group in &self.freezer.groups {
                if let Err(error) = group.set(true) {
                    crate::console::warn(format_args!("{error}"));
                }
            }
        }
    }
}

/// Gives a freeze up that failed or that nobody waits for.
struct Undo<'a>(&'a Freezer);

impl Undo<'_> {
    fn disarm(self) {
        let _kept_frozen = std::mem::ManuallyDrop::new(self);
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        // Where even this fails the state stays `Frozen`, and the host is told so.
        if let Err(error) = self.0.release() {
            crate::console::warn(format_args!("{error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A directory that answers as a cgroup would.
    fn group(frozen: bool) -> tempfile::TempDir {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("cgroup.freeze"), "0").unwrap();
        fs::write(group.path().join("pids.current"), "3\n").unwrap();
        fs::write(group.path().join("cgroup.procs"), "7\n9\n").unwrap();
        let events = format!("populated 1\nfrozen {}\n", u8::from(frozen));
        fs::write(group.path().join("cgroup.events"), events).unwrap();
        group
    }

    fn frozen(group: &tempfile::TempDir) -> Group {
        Group::new(crate::kernel::Kernel::Linux, group.path().into())
    }

    fn order(group: &tempfile::TempDir) -> String {
        fs::read_to_string(group.path().join("cgroup.freeze")).unwrap()
    }

    #[tokio::test]
    async fn frozen_lasts_until_it_is_lifted_and_starts_wait_for_that() {
        let group = group(true);
        let freezer = Freezer::new(vec![frozen(&group)]);
        assert_eq!(freezer.freeze(Duration::from_millis(20)).await.unwrap().processes, 3);
        assert_eq!((order(&group).as_str(), freezer.is_frozen(), freezer.standing()), ("1", true, 2));
        let again = freezer.freeze(Duration::ZERO).await.unwrap();
        assert_eq!(again.processes, 3, "frozen already is frozen in time");
        tokio::select! {
            biased;
            () = freezer.running() => panic!("a start did not wait"),
            done = freezer.unfreeze() => done.unwrap(),
        }
        freezer.running().await;
        assert_eq!(order(&group), "0");
    }

    #[tokio::test]
    async fn what_does_not_stand_still_in_time_runs_on() {
        let (still, busy) = (group(true), group(false));
        let freezer = Freezer::new(vec![frozen(&still), frozen(&busy)]);
        let error = freezer.freeze(Duration::from_millis(5)).await.unwrap_err();
        assert!(error.message.contains("after 5 ms"), "{error}");
        assert_eq!((order(&still), order(&busy), freezer.is_frozen()), ("0".into(), "0".into(), false));
    }

    #[tokio::test]
    async fn a_freeze_nobody_waits_for_is_given_up() {
        let busy = group(false);
        let freezer = Freezer::new(vec![frozen(&busy)]);
        let patience = Duration::from_millis(5);
        assert!(tokio::time::timeout(patience, freezer.freeze(Duration::from_secs(60))).await.is_err());
        assert_eq!((order(&busy).as_str(), freezer.is_frozen()), ("0", false));
    }

    #[tokio::test]
    async fn a_thaw_that_fails_half_way_leaves_everything_standing_still() {
        let (first, rest) = (group(true), group(true));
        let freezer = Freezer::new(vec![frozen(&first), frozen(&rest)]);
        freezer.freeze(Duration::from_millis(20)).await.unwrap();
        let thawing = freezer.thawing().await;
        thawing.release(first.path()).unwrap();
        assert_eq!(order(&first), "0");
        drop(thawing);
        assert_eq!((order(&first), order(&rest), freezer.is_frozen()), ("1".into(), "1".into(), true));
        freezer.thawing().await.complete().unwrap();
        assert_eq!((order(&first), freezer.is_frozen()), ("0".into(), false));
    }
}
