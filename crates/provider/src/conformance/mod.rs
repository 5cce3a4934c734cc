//! What every provider must do, as checks that run on the fake and on every real one.
//!
//! A provider's test implements [`Harness`] and calls [`conformance_tests!`](crate::conformance_tests), which
//! makes one test of each check. A check makes its own VM and leaves nothing behind; [`Harness::leftovers`] is
//! asked after each.

mod channel;
mod checkpoint;
mod disk;
mod lifecycle;
mod recovery;
mod session;

use crate::{BootPlan, Exit, Instance, InstanceError, InstanceRecord, Provider};
use async_trait::async_trait;
use std::{
    fmt,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// What the checks need of a host.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Why this host cannot run the checks, for providers that a host may do without.
    fn unavailable(&self) -> Option<String> {
        None
    }

    /// The provider of one daemon. Each call is another daemon's on the same host.
    fn provider(&self) -> Arc<dyn Provider>;

    /// A VM that was never started, with its directories and disk.
    fn plan(&self) -> BootPlan;

    /// What a daemon writes down before it boots this plan.
    fn record(&self, plan: &BootPlan) -> InstanceRecord;

    /// A new disk layer over `below`, nobody's yet.
    fn layer(&self, below: &Path) -> PathBuf;

    /// An empty directory for one checkpoint.
    fn checkpoint_dir(&self) -> PathBuf;

    /// As a daemon that dies after it has permitted the start and before the keeper has begun.
    fn permit_start(&self, plan: &BootPlan);

    /// Kills the VMM as a stranger would.
    async fn kill_vmm(&self, record: &InstanceRecord);

    /// Processes, sockets and control groups that still exist of this instance.
    async fn leftovers(&self, record: &InstanceRecord) -> Vec<String>;
}

/// Why a provider does not conform.
pub struct Violation(String);

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Violation {
    pub fn new(message: impl fmt::Display) -> Self {
        Self(message.to_string())
    }
}

/// With its sources; this is why a violation is no error itself.
impl<E: std::error::Error> From<E> for Violation {
    fn from(error: E) -> Self {
        let first: &dyn std::error::Error = &error;
        let chain: Vec<String> =
            std::iter::successors(Some(first), |e| e.source()).map(ToString::to_string).collect();
        Self(chain.join(": "))
    }
}

pub type Outcome<T = ()> = Result<T, Violation>;
type Run = for<'a> fn(&'a dyn Harness) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// One named check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    pub name: &'static str,
    run: Run,
}

impl Check {
    /// By name; a wrong name is a violation too.
    pub async fn run(name: &str, harness: &dyn Harness) -> Outcome {
        let check = CHECKS.iter().find(|check| check.name == name);
        let check = check.ok_or_else(|| Violation(format!("there is no check `{name}`")))?;
        if let Some(why) = harness.unavailable() {
            eprintln!("skipped: {name}: {why}");
            return Ok(());
        }
        (check.run)(harness).await
    }
}

macro_rules! checks {
    ($($module:ident::$name:ident,)*) => {
        /// Every check; `conformance_tests!` names the same ones.
        pub const CHECKS: &[Check] = &[$(Check {
            name: stringify!($name),
            run: |harness| Box::pin($module::$name(harness)),
        },)*];
    };
}

checks! {
    lifecycle::boot_pause_resume_stop,
    lifecycle::two_starts_of_one_instance_or_disk_are_refused,
    lifecycle::isolation_is_never_lowered,
    lifecycle::graceful_stop_is_the_guests_own,
    lifecycle::forced_stop_climbs_the_ladder,
    lifecycle::killed_vmm_is_seen_within_a_second,
    session::exec_passes_output_and_status,
    session::a_process_survives_the_loss_of_its_session,
    session::files_come_back_as_they_were_written,
    channel::reopening_in_the_middle_of_a_transfer_recovers,
    channel::a_paused_guest_is_silent_and_goes_on_where_it_was,
    recovery::a_vm_without_a_daemon_is_adopted_undisturbed,
    recovery::an_ended_vm_is_adopted_as_ended,
    recovery::a_start_that_was_only_permitted_never_happens,
    recovery::reclaim_leaves_nothing_and_may_be_repeated,
    recovery::an_abandoned_boot_is_reclaimed,
    checkpoint::a_state_restored_beside_is_the_same_and_its_source_goes_on,
    checkpoint::two_restores_of_one_state_differ_once_thawed,
    checkpoint::a_restored_guest_stands_still_until_it_is_thawed,
    checkpoint::the_state_of_a_restored_vm_holds_what_came_before,
    checkpoint::a_held_vm_stands_still_until_it_is_resumed,
    checkpoint::a_state_of_the_disk_alone_is_booted,
    checkpoint::a_checkpoint_whose_answer_was_lost_is_asked_for_again,
    checkpoint::a_state_that_does_not_fit_is_refused_and_leaves_nothing,
    disk::a_disk_in_memory_is_carried_into_the_next_vm,
}

/// Makes one `#[tokio::test]` of each check for the harness that an expression makes.
#[macro_export]
macro_rules! conformance_tests {
    ($harness:expr) => {
        $crate::conformance_tests! { @each $harness;
            boot_pause_resume_stop
            two_starts_of_one_instance_or_disk_are_refused
            isolation_is_never_lowered
            graceful_stop_is_the_guests_own
            forced_stop_climbs_the_ladder
            killed_vmm_is_seen_within_a_second
            exec_passes_output_and_status
            a_process_survives_the_loss_of_its_session
            files_come_back_as_they_were_written
            reopening_in_the_middle_of_a_transfer_recovers
            a_paused_guest_is_silent_and_goes_on_where_it_was
            a_vm_without_a_daemon_is_adopted_undisturbed
            an_ended_vm_is_adopted_as_ended
            a_start_that_was_only_permitted_never_happens
            reclaim_leaves_nothing_and_may_be_repeated
            an_abandoned_boot_is_reclaimed
            a_state_restored_beside_is_the_same_and_its_source_goes_on
            two_restores_of_one_state_differ_once_thawed
            a_restored_guest_stands_still_until_it_is_thawed
            the_state_of_a_restored_vm_holds_what_came_before
            a_held_vm_stands_still_until_it_is_resumed
            a_state_of_the_disk_alone_is_booted
            a_checkpoint_whose_answer_was_lost_is_asked_for_again
            a_state_that_does_not_fit_is_refused_and_leaves_nothing
            a_disk_in_memory_is_carried_into_the_next_vm
        }
    };
    (@each $harness:expr; $($check:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            let harness = $harness;
            if let Err(violation) = $crate::conformance::Check::run(stringify!($check), &harness).await {
                panic!("{violation:?}");
            }
        })*

        #[test]
        fn every_check_is_a_test() {
            let tests = [$(stringify!($check)),*];
            let checks: Vec<&str> = $crate::conformance::CHECKS.iter().map(|check| check.name).collect();
            assert_eq!(tests[..], checks[..]);
        }
    };
}

/// Ends a check with a sentence unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Violation::new(format_args!($($message)+)));
        }
    };
}
use ensure;

async fn boot(harness: &dyn Harness, plan: &BootPlan) -> Outcome<Box<dyn Instance>> {
    match harness.provider().boot(plan).await {
        Ok(instance) => {
            let (recorded, expected) = (instance.record(), harness.record(plan));
            ensure!(*recorded == expected, "the record is {recorded:?}, written down was {expected:?}");
            Ok(instance)
        }
        Err(error) => {
            let tail = error.console_tail.join("\n");
            let undo = format!("{:?}", error.undo);
            let Violation(chain) = error.into();
            Err(Violation(format!("{chain}\nundo: {undo}\nconsole:\n{tail}")))
        }
    }
}

async fn exit_within(mut exit: watch::Receiver<Option<Exit>>, limit: Duration) -> Outcome<Exit> {
    match tokio::time::timeout(limit, exit.wait_for(Option::is_some)).await {
        Ok(Ok(exit)) => exit.clone().ok_or_else(|| Violation::new("no exit after all")),
        Ok(Err(_)) => Err(Violation::new("the exit is not told any more")),
        Err(_) => Err(Violation::new(format_args!("no exit was seen within {limit:?}"))),
    }
}

/// Ends a check: the VM is reclaimed, whatever state it is in, and nothing may be left.
async fn finish(harness: &dyn Harness, record: &InstanceRecord) -> Outcome {
    let report = harness.provider().reclaim(record).await;
    ensure!(report.failed.is_empty(), "reclaim failed: {:?}", report.failed);
    nothing_left(harness, record).await
}

async fn nothing_left(harness: &dyn Harness, record: &InstanceRecord) -> Outcome {
    let left = harness.leftovers(record).await;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn is_ended<T>(result: &Result<T, InstanceError>) -> bool {
    matches!(result, Err(InstanceError::Ended { .. }))
}
