//! One piece of code, from the question whether it may run to what is left of it.
//!
//! ```text
//! hazard? --deny--> refused        --ask--> held until approved
//!    v
//! transaction (its snapshot is before anything) --> run --> commit | roll back
//! ```
//! Where nothing is to be kept there is no transaction. Where there is one, whatever happens in the middle undoes it: the
//! daemon's death, the guest's, a deadline. What a rollback goes back to is the snapshot that was taken for this very code.

use super::{
    Asker,
    approvals::{PATIENCE, Subject},
    config::{Config, OnRisk},
    run::{Listener, Piece, Ran, Site, check_requirements},
    settings::SLACK,
};
use offshoot_api::{
    ClientError,
    v1::{BeginTransaction, RemoveSnapshotQuery, Snapshot, TakeSnapshot, Transaction, Vm},
};
use offshoot_code::Hazard;
use offshoot_policy::Declined;
use offshoot_types::{
    Command, ContextCode, ErrorCode, Failure, SnapshotId, SnapshotOrigin, SnapshotRef, TransactionState,
    VmRef,
};
use serde_json::json;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};
use tokio::{sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How the note of a state begins that a failure left.
const AFTER_FAILURE: &str = "after a failure\n";
/// So many of them stay for each VM; nobody else would remove them.
const KEPT_FAILURES: usize = 8;

/// Answers that are waited for, by their question.
#[derive(Debug, Default)]
pub struct Waiting(Mutex<HashMap<Uuid, oneshot::Sender<bool>>>);

impl Waiting {
    /// Tells whoever waits for it; `false` if nobody does.
    pub fn answer(&self, id: Uuid, approved: bool) -> bool {
        let waits = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        waits.is_some_and(|waits| waits.send(approved).is_ok())
    }

    fn wait(&self, id: Uuid) -> oneshot::Receiver<bool> {
        let (sender, receiver) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        receiver
    }
}

/// What the steps of one request have in common.
#[derive(Debug)]
pub struct Steps<'a> {
    pub asker: &'a Asker,
    pub vm: &'a Vm,
    pub config: &'a Config,
    pub approvals: &'a [String],
    pub requirements: &'a [String],
    /// Somebody who can be asked in the middle.
    pub waiting: Option<&'a Waiting>,
    pub cancel: &'a CancellationToken,
}

/// What became of a step.
#[derive(Debug)]
pub enum Step {
    Ran(Box<Ran>, Kept),
    /// Nothing ran: it waits for an approval by this id.
    Held {
        approval: Uuid,
        reason: String,
    },
}

/// What is left of a piece of code besides what it did.
#[derive(Debug, Default)]
pub struct Kept {
    /// The state before it.
    pub before: Option<SnapshotId>,
    /// The state that a failure left.
    pub failed: Option<SnapshotId>,
    pub rolled_back: bool,
    /// Why the state is not what it should be.
    pub problem: Option<String>,
}

impl Steps<'_> {
    pub async fn run(
        &self,
        piece: &Piece,
        hazard: Option<Hazard>,
        listener: &Listener,
    ) -> Result<Step, Failure> {
        self.config.allow(piece.language, &piece.code)?;
        if let Some(hazard) = hazard
            && let Some(held) = self.judge(piece, hazard, listener).await?
        {
            return Ok(held);
        }
        let site = Site { asker: self.asker, vm: self.vm, listener, cancel: self.cancel };
        check_requirements(self.requirements, piece.language, site).await?;
        let Config { snapshot_on_execution, auto_rollback, .. } = *self.config;
        if !snapshot_on_execution && !auto_rollback && hazard.is_none() {
            let ran = piece.run(site).await?;
            let mut kept = Kept::default();
            self.keep_failed(&ran, &mut kept, listener).await;
            return Ok(Step::Ran(Box::new(ran), kept));
        }
        self.undoable(piece, listener).await
    }

    /// Code in a transaction of its own.
    async fn undoable(&self, piece: &Piece, listener: &Listener) -> Result<Step, Failure> {
        let vm = VmRef::Id(self.vm.id);
        let deadline = piece.at_most(self.vm) + SLACK;
        let begin = BeginTransaction { parent: None, deadline_ms: Some(deadline.as_millis() as u64) };
        let begun = self.asker.client.begin(&vm, &begin).await.map_err(ClientError::into_failure)?;
        listener.say("snapshot_created", json!({ "snapshot_id": begun.snapshot, "vm_id": self.vm.id })).await;
        let within = self.asker.within(begun.id);
        let site = Site { asker: &within, vm: self.vm, listener, cancel: self.cancel };
        let ran = piece.run(site).await;
        let failed = !ran.as_ref().is_ok_and(Ran::success);
        let mut kept = Kept { before: Some(begun.snapshot), ..Kept::default() };
        self.end(&begun, failed && self.config.auto_rollback, &mut kept, listener).await;
        let ran = match (ran, &kept.problem) {
            (Ok(ran), _) => ran,
            (Err(failure), None) => return Err(failure),
            (Err(mut failure), Some(problem)) => {
                failure.message = format!("{}; and {problem}", failure.message);
                return Err(failure);
            }
        };
        if !kept.rolled_back && kept.problem.is_none() {
            self.keep_failed(&ran, &mut kept, listener).await;
        }
        Ok(Step::Ran(Box::new(ran), kept))
    }

    async fn end(&self, begun: &Transaction, undo: bool, kept: &mut Kept, listener: &Listener) {
        let (client, vm) = (&self.asker.client, VmRef::Id(self.vm.id));
        let ended = match undo {
            true => client.rollback_transaction(&vm, begun.id).await,
            false => client.commit(&vm, begun.id).await,
        };
        match ended {
            Ok(Transaction { state: TransactionState::Committed, .. }) => {}
            Ok(Transaction { state: TransactionState::RolledBack, .. }) => {
                kept.rolled_back = true;
                kept.failed = self.evidence().await;
                let told = json!({ "snapshot_id": begun.snapshot, "failure_snapshot_id": kept.failed });
                listener.say("rolled_back", told).await;
            }
            Ok(Transaction { state, .. }) => {
                kept.problem = Some(format!(
                    "the transaction around it is {state:?}; it is rolled back as soon as it can be"
                ));
            }
            Err(error) => {
                let what = if undo { "rolled back" } else { "kept" };
                kept.problem =
                    Some(format!("what it did could not be {what}: {}", error.into_failure().message));
            }
        }
        if let Some(problem) = &kept.problem {
            listener.say("rollback_failed", json!({ "error": problem })).await;
        }
    }

    /// The state that the rollback left: kept under an id of its own.
    async fn evidence(&self) -> Option<SnapshotId> {
        let all = self.asker.client.snapshots_of(&VmRef::Id(self.vm.id)).await.ok()?;
        let undo = all.snapshots.into_iter().filter(|snapshot| snapshot.origin == SnapshotOrigin::Undo);
        undo.max_by_key(|snapshot| snapshot.created).map(|snapshot| snapshot.id)
    }

    /// Keeps what a failure left, if that is wanted.
    async fn keep_failed(&self, ran: &Ran, kept: &mut Kept, listener: &Listener) {
        if ran.success() || !self.config.snapshot_on_failure {
            return;
        }
        let note = Some(format!("{AFTER_FAILURE}execution {} ended with {}", ran.execution, ran.exit_code));
        let request = TakeSnapshot { note, ..TakeSnapshot::default() };
        match self.asker.client.snapshot(&VmRef::Id(self.vm.id), &request).await {
            Ok(snapshot) => {
                kept.failed = Some(snapshot.id);
                listener
                    .say("snapshot_created", json!({ "snapshot_id": snapshot.id, "after_failure": true }))
                    .await;
                self.forget_old_failures().await;
            }
            Err(error) => {
                kept.problem = Some(format!("what failed was not kept: {}", error.into_failure().message));
            }
        }
    }

    /// Removes what older failures left, unless somebody gave it a name. What cannot be removed now is by the next failure.
    async fn forget_old_failures(&self) {
        let client = &self.asker.client;
        let Ok(all) = client.snapshots_of(&VmRef::Id(self.vm.id)).await else { return };
        let left = |one: &Snapshot| {
            let note = one.note.as_deref().unwrap_or_default();
            one.origin == SnapshotOrigin::Manual && one.name.is_none() && note.starts_with(AFTER_FAILURE)
        };
        let mut failures: Vec<Snapshot> = all.snapshots.into_iter().filter(left).collect();
        failures.sort_by_key(|one| Reverse(one.created));
        for old in failures.iter().skip(KEPT_FAILURES) {
            // What was taken later depends on it, and stays.
            let merge = RemoveSnapshotQuery { prune: true };
            let removed = client.remove_snapshot(&SnapshotRef::Id(old.id), &merge).await;
            if let Err(error) = removed {
                tracing::info!(snapshot = %old.id, %error, "the state that an old failure left stays");
            }
        }
    }

    /// Whether code with a hazard may run now; if not, why.
    async fn judge(
        &self,
        piece: &Piece,
        hazard: Hazard,
        listener: &Listener,
    ) -> Result<Option<Step>, Failure> {
        let subject = Subject::new(self.vm.id, piece.language, &piece.code);
        match self.config.on_risk {
            OnRisk::Snapshot => return Ok(None),
            OnRisk::Deny => return Err(self.decline(piece, hazard, &subject, Declined::Refused).await),
            OnRisk::Ask => {}
        }
        let actor = &self.asker.call.actor;
        for id in self.approvals {
            if self.asker.approvals().take(actor, id, &subject)? {
                return Ok(None);
            }
        }
        let reason = self.decline(piece, hazard, &subject, Declined::Held).await.message;
        let approval = self.asker.approvals().ask(actor, subject.clone())?;
        let Some(waiting) = self.waiting else { return Ok(Some(Step::Held { approval, reason })) };
        let answer = waiting.wait(approval);
        let question = json!({ "approval_id": approval, "reason": reason, "language": piece.language.as_str(),
            "code": piece.code, "hazard": hazard.as_str(), "vm_id": self.vm.id });
        listener.say("approval_required", question).await;
        let answered = tokio::select! {
            () = self.cancel.cancelled() => None,
            answer = timeout(PATIENCE, answer) => answer.ok().and_then(Result::ok),
        };
        match answered {
            Some(true) if self.asker.approvals().take(actor, &approval.to_string(), &subject)? => Ok(None),
            _ => {
                self.asker.approvals().forget(approval);
                waiting.answer(approval, false);
                let message = match answered {
                    Some(_) => format!("{reason}; it was not approved"),
                    None => format!("{reason}; nobody approved it"),
                };
                Err(Failure::new(ErrorCode::Denied, message))
            }
        }
    }

    /// Puts on record that it does not run, by whose word and under which policy.
    async fn decline(&self, piece: &Piece, hazard: Hazard, subject: &Subject, how: Declined) -> Failure {
        let call = &self.asker.call;
        let done = match how {
            Declined::Held => "is held until it is approved",
            Declined::Refused => "is not run",
        };
        let sentence = format!(
            "{} code (hash {}) for VM `{}` {done}: it {hazard}",
            piece.language,
            subject.digits(),
            self.vm.name
        );
        let denial = call.app.policy.declined(&call.actor, &self.command(piece), how, sentence);
        call.engine.record_denial(&denial).await;
        denial.into()
    }

    /// What would be done.
    fn command(&self, piece: &Piece) -> Command {
        let code = ContextCode {
            context: "declined".parse().expect("letters"),
            language: piece.language.interpreted(),
            code: piece.code.clone(),
            timeout: None,
            user: super::settings::USER.into(),
            cwd: None,
            context_env: BTreeMap::new(),
            env: BTreeMap::new(),
            existing: false,
        };
        Command::RunCode { vm: VmRef::Id(self.vm.id), code: Box::new(code) }
    }
}
