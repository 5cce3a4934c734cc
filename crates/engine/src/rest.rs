//! What a VM does by itself: it rests when nothing is asked of it or its time is up, and goes on when somebody asks.
//!
//! ```text
//! running --nothing under way for `idle_suspend`--> suspended --a request that needs the guest--> running
//!    |                                                                (`wake`; the request waits)
//!    '--deadline, once no transaction is open--> suspended | stopped | destroyed   (`on_timeout`)
//! ```
//! Resting is a change like any other, in the order of the queue: what was asked before is done first, and what is asked
//! meanwhile waits and then wakes the VM. Why it is suspended is written before it is, so that no crash makes of a VM
//! that rests one that somebody has suspended.

use crate::{
    admission::RequestKind,
    core::Authority,
    driver::{Driver, saga_of},
    error,
    reaper::Reap,
    request::Request,
    saga::{Input, beside},
};
use offshoot_store::VmRecord;
use offshoot_types::{
    ErrorCode, Failure, Lifetime, OnTimeout, Operation, OperationId, OperationKind, OperationOutcome,
    VmState, VmStateName, Wake,
};
use std::time::Duration;
use tokio::time::Instant;

/// After an attempt to rest that failed.
const AGAIN: Duration = Duration::from_secs(60);
/// Between two looks at the wall clock, which may be set.
const LOOK: Duration = Duration::from_secs(60);
/// How long a guest whose time is up may take to shut down by itself.
const GRACE: Duration = Duration::from_secs(10);

/// Why a VM rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// For so long nothing was asked of it.
    Idle(Duration),
    TimeIsUp,
}

impl Driver {
    /// Resolves when the VM is to rest.
    pub fn to_rest(&self) -> impl Future<Output = Why> + use<> {
        let (row, core, shared) = (&self.machine.row, self.core.clone(), self.machine.shared.clone());
        let state = row.state.name();
        let kept = row.spec.lifetime == Lifetime::Kept;
        let span = row.life.idle_suspend.filter(|_| kept && state == VmStateName::Running);
        let lives = matches!(state, VmStateName::Running | VmStateName::Paused);
        let (deadline, after) = (row.deadline.filter(|_| kept && lives), self.rest_after);
        async move {
            if span.is_none() && deadline.is_none() {
                return std::future::pending().await;
            }
            tokio::time::sleep_until(after).await;
            let idle = async {
                match span {
                    Some(span) => shared.work.idle_for(span).await,
                    None => std::future::pending().await,
                }
                Why::Idle(span.unwrap_or_default())
            };
            let due = async {
                let Some(deadline) = deadline else { return std::future::pending().await };
                while let Some(left) = left(deadline, core.now()) {
                    tokio::time::sleep(left.min(LOOK)).await;
                }
                // It has a deadline of its own, and is undone by then.
                shared.ownership.free().await;
                Why::TimeIsUp
            };
            tokio::select! {
                biased;
                why = due => why,
                why = idle => why,
            }
        }
    }

    /// Rests. An attempt that fails leaves the VM as it is and is made again after a while.
    pub async fn rest(&mut self, why: Why) {
        self.rest_after = Instant::now() + AGAIN;
        let (kind, reason) = match (why, self.machine.row.life.on_timeout) {
            (Why::Idle(span), _) => {
                (OperationKind::Suspend, format!("nothing was asked of it for {} s", span.as_secs_f32()))
            }
            (Why::TimeIsUp, OnTimeout::Suspend) => (OperationKind::Suspend, "its time is up".into()),
            (Why::TimeIsUp, OnTimeout::Stop) => match self.core.ends_as(self.machine.row.provider) {
                OperationKind::Stop => (OperationKind::Stop, "its time is up".into()),
                kind => (kind, "its time is up, and a stop would lose what it has written".into()),
            },
            (Why::TimeIsUp, OnTimeout::Destroy) => {
                // As anybody's destroy, and again until it is gone. A closed reaper means that the engine ends.
                let _ = self.core.reaper.send(Reap { vm: self.machine.id(), reason: "its time is up" });
                return;
            }
        };
        let slept = kind == OperationKind::Suspend;
        if let Err(failure) = self.rest_by(kind, reason, slept).await {
            self.unsettled(&failure);
        }
        if !self.machine.state().has_process() {
            self.rest_after = Instant::now();
        }
    }

    async fn rest_by(&mut self, kind: OperationKind, reason: String, slept: bool) -> Result<(), Failure> {
        if slept {
            self.note_slept(true).await?;
        }
        self.by_itself(kind, &Authority::Daemon, reason, Input::None).await.map(drop)
    }

    /// Carries out a change that nobody has asked for in so many words.
    pub async fn by_itself(
        &mut self,
        kind: OperationKind,
        authority: &Authority,
        reason: String,
        input: Input,
    ) -> Result<OperationId, Failure> {
        let Some(saga) = saga_of(kind) else {
            return Err(Failure::new(ErrorCode::Internal, "this is no change that a driver carries out"));
        };
        let vm = Some((self.machine.id(), self.machine.name()));
        let owner = &self.machine.row.owner;
        let new = self.core.new_operation(authority, kind, vm, owner, reason);
        let begun: Operation = self.core.store.begin_operation(new).await?.into_operation();
        let ticket = self.core.opened(begun);
        let operation = ticket.id();
        let change = self.change(ticket.operation(), GRACE, input);
        let ended = match self.run_saga(saga, None, &change).await {
            // Cut off when it had been done.
            Err(cut)
                if cut.failure.code == ErrorCode::Interrupted
                    && beside::has_switched(&self.machine, operation) =>
            {
                Ok(())
            }
            ended => ended,
        };
        let failed = ended.as_ref().err().map(|unwound| unwound.failure.clone());
        self.conclude(ticket, ended, &change, OperationOutcome::Done).await;
        failed.map_or(Ok(operation), Err)
    }

    /// Somebody who asks for a suspension wants the VM to stay so, also if it has suspended itself already.
    pub async fn stays_suspended(&mut self, asked: RequestKind) -> Result<(), Failure> {
        match asked == RequestKind::Suspend && self.machine.row.slept {
            true => self.note_slept(false).await,
            false => Ok(()),
        }
    }

    async fn note_slept(&mut self, slept: bool) -> Result<(), Failure> {
        let vm = self.machine.id();
        self.machine.write(move |tx| tx.set_vm_slept(vm, slept)).await
    }

    /// Whether the VM goes on for this request, which is not possible while it is suspended.
    pub fn wakes(&self, request: &Request) -> bool {
        let row = &self.machine.row;
        // Whoever wants a state kept, for itself or at the beginning of something, need not know that the VM rests.
        let needs = match request {
            Request::UseGuest(_) => true,
            Request::Change(change) => change.kind == RequestKind::Snapshot,
            Request::Refresh(_) => false,
        };
        needs && goes_on(row)
    }

    /// Continues the VM on behalf of whoever asks.
    pub async fn wake(&mut self, request: &Request) -> Result<(), Failure> {
        // Admitted to it as to the VM that runs: a VM that belongs to a transaction is not woken by others.
        let authority = request.authority().0.clone();
        let reason = "a request needs it".into();
        self.by_itself(OperationKind::Start, &authority, reason, Input::None).await?;
        match self.machine.state() {
            VmStateName::Running => Ok(()),
            _ => Err(error::process_gone(self.machine.name())),
        }
    }
}

/// Whether the VM is suspended and continues for a request that needs its guest.
pub(crate) fn goes_on(row: &VmRecord) -> bool {
    let wants = match row.life.wake {
        Wake::Never => false,
        Wake::Auto => row.slept,
        Wake::Always => true,
    };
    wants && row.state == VmState::Suspended
}

/// How long it is until then; `None` once it is not.
pub(crate) fn left(deadline: jiff::Timestamp, now: jiff::Timestamp) -> Option<Duration> {
    let left = Duration::try_from(deadline.duration_since(now)).ok()?;
    (!left.is_zero()).then_some(left)
}
