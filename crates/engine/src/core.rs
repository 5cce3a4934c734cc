//! What every part of an engine shares: options, store, live operations, tasks.

use crate::{
    Census, Options,
    history::History,
    keys::Keys,
    manager::Manager,
    operations::{Operations, Ticket},
    pool::Pool,
    reaper::Reap,
    requests::Requests,
    snapshots::Snapshots,
    state_dir::{Layout, StateDirLock},
    tasks::{TaskKind, Tasks},
    trace::{Scope, TraceEvent},
    unwritten::{self, Unwritten, write_once},
};
use offshoot_policy::Grant;
use offshoot_provider::Provider;
use offshoot_store::{AuditDecision, AuditEntry, NewEvent, NewOperation, Store, StoreError, Tx};
use offshoot_types::{
    Actor, AgentName, ErrorCode, EventKind, Failure, Operation, OperationId, OperationKind, OperationOutcome,
    OperationState, Owner, ProviderKind, VmId, VmName,
};
use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(crate) struct Core {
    pub options: Options,
    pub layout: Layout,
    pub store: Store,
    pub manager: Manager,
    pub operations: Operations,
    pub tasks: Tasks,
    pub reaper: mpsc::UnboundedSender<Reap>,
    pub snapshots: Snapshots,
    pub pool: Pool,
    pub keys: Keys,
    pub requests: Requests,
    pub history: History,
    pub unwritten: Unwritten,
    /// Held while unused disk layers are removed.
    pub collecting: tokio::sync::Mutex<()>,
    pub census: watch::Sender<Census>,
    /// Cancelled when drivers, links and pumps shall let go; the VMs live on.
    pub closing: CancellationToken,
    /// Let go of once every task has ended and the store is closed: nothing of ours touches the directory then.
    pub lock: Mutex<Option<StateDirLock>>,
}

/// On whose word something is done.
#[derive(Debug, Clone)]
pub(crate) enum Authority {
    /// Policy permitted it.
    Granted(Box<Grant>),
    /// The daemon's own duty: recovery, reaping, an observed exit.
    Daemon,
}

impl Authority {
    pub fn actor(&self) -> Actor {
        match self {
            Self::Granted(grant) => grant.actor().clone(),
            Self::Daemon => Actor::Daemon,
        }
    }

    /// On whose behalf the actor says it asks.
    pub fn agent(&self) -> Option<AgentName> {
        match self {
            Self::Granted(grant) => grant.agent().cloned(),
            Self::Daemon => None,
        }
    }
}

impl Core {
    /// The last thing an engine does.
    pub async fn let_go(&self) {
        self.store.close().await;
        drop(crate::sync::lock(&self.lock).take());
    }

    pub fn now(&self) -> jiff::Timestamp {
        self.options.clock.now()
    }

    pub fn provider(&self, kind: ProviderKind) -> Result<Arc<dyn Provider>, Failure> {
        self.options.providers.iter().find(|provider| provider.kind() == kind).cloned().ok_or_else(|| {
            Failure::new(ErrorCode::Unavailable, format!("provider `{kind}` is not part of this daemon"))
                .hint("`offshoot doctor` lists the providers of this host")
        })
    }

    /// The change by which a VM's process is ended without losing anything of the VM: a stop, or a suspension of one whose
    /// disk is its memory.
    pub fn ends_as(&self, provider: ProviderKind) -> OperationKind {
        // Of a provider that is not there nothing can be ended: whichever is tried says so.
        match self.provider(provider) {
            Ok(provider) if !provider.keeps_disk() => OperationKind::Suspend,
            _ => OperationKind::Stop,
        }
    }

    /// The row of an operation that is about to be begun, with the decision that allowed it.
    pub fn new_operation(
        &self,
        authority: &Authority,
        kind: OperationKind,
        vm: Option<(VmId, &VmName)>,
        owner: &Owner,
        reason: String,
    ) -> NewOperation {
        let actor = authority.actor();
        let request = match authority {
            Authority::Granted(grant) => grant.request(),
            Authority::Daemon => None,
        };
        let target = vm.map_or_else(|| "daemon".into(), |(id, _)| id.to_string());
        let detail = match vm {
            Some((_, name)) => format!("{kind} `{name}`: {reason}"),
            None => format!("{kind}: {reason}"),
        };
        let (decision, rules, revision) = match authority {
            Authority::Granted(grant) => (
                AuditDecision::Permit,
                grant.rules().iter().map(ToString::to_string).collect(),
                grant.revision().to_string(),
            ),
            Authority::Daemon => (AuditDecision::Recorded, Vec::new(), String::new()),
        };
        NewOperation {
            id: OperationId::new(),
            kind,
            owner: owner.clone(),
            labels: Default::default(),
            node: self.options.node.clone(),
            vm: vm.map(|(id, _)| id),
            actor: actor.clone(),
            reason,
            obligation: None,
            idempotency: None,
            request,
            audit: AuditEntry { actor, action: kind.to_string(), target, decision, rules, revision, detail },
        }
    }

    /// Opens the ticket of an operation that is on disk.
    pub fn opened(&self, operation: Operation) -> Ticket {
        let scope = scope(&operation);
        TraceEvent::OperationAccepted { kind: operation.kind }.emit(&scope);
        let ticket = self.operations.open(operation);
        self.count();
        ticket
    }

    /// Writes the outcome and answers the waiters. If the store fails they are told that instead: an outcome
    /// that is not on disk did not happen.
    pub async fn close(&self, ticket: Ticket, outcome: OperationOutcome) -> Operation {
        self.close_with(ticket, outcome, |_| Ok(())).await
    }

    /// As [`close`](Self::close), with what belongs to the outcome in the same write.
    pub async fn close_with(
        &self,
        ticket: Ticket,
        outcome: OperationOutcome,
        also: impl Fn(&Tx<'_>) -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Operation {
        let (id, ending) = (ticket.id(), outcome.clone());
        let write: unwritten::Write = Arc::new(move |tx| {
            also(tx)?;
            tx.end_operation(id, &ending)
        });
        // Whoever ran something has its status already, and may ask for the next thing now.
        let told = matches!(ticket.operation().kind, OperationKind::Exec | OperationKind::Context);
        let written = match (told, write.clone()) {
            (true, write) => self.store.transaction_patient(move |tx| write(tx)).await,
            (false, write) => write_once(&self.store, write).await,
        };
        let outcome = match written {
            Ok(()) => outcome,
            Err(error) => {
                self.store_failed("end an operation", &error);
                self.unwritten.add(ticket.operation().kind, write);
                OperationOutcome::Failed { failure: error.into() }
            }
        };
        let (now, mut operation) = (self.now(), ticket.operation().clone());
        let word = match &outcome {
            OperationOutcome::Done => "done",
            OperationOutcome::Failed { failure } => failure.message.as_str(),
            OperationOutcome::Interrupted { undone: true } => "interrupted, undone",
            OperationOutcome::Interrupted { undone: false } => "interrupted, completed",
        };
        let took = now.duration_since(operation.created).try_into().unwrap_or(Duration::ZERO);
        TraceEvent::OperationEnded { kind: operation.kind, outcome: word, took }.emit(&scope(&operation));
        operation.state = OperationState::Ended { outcome: outcome.clone() };
        operation.updated = now;
        ticket.close(outcome, now);
        self.count();
        operation
    }

    /// Answers the waiters of an operation whose outcome is on disk already, written together with what it did.
    pub fn closed(&self, ticket: Ticket, outcome: OperationOutcome) {
        ticket.close(outcome, self.now());
        self.count();
    }

    /// Writes an event that belongs to no move.
    pub async fn event(&self, owner: Owner, vm: Option<(VmId, VmName)>, kind: EventKind) {
        let event = NewEvent { owner, vm, operation: None, actor: Actor::Daemon, kind };
        if let Err(error) = self.store.emit(event).await {
            self.store_failed("write an event", &error);
        }
    }

    pub fn store_failed(&self, operation: &str, error: &offshoot_store::StoreError) {
        let failure = Failure::from(error);
        let text = failure.cause.unwrap_or(failure.message);
        TraceEvent::StoreFailed { operation, error: &text }.emit(&Scope::default());
    }

    /// Publishes what keeps us busy. Called after every change of it.
    pub fn count(&self) {
        let census = self.manager.census(&self.operations);
        self.census.send_if_modified(|old| {
            let changed = *old != census;
            *old = census;
            changed
        });
    }

    /// Runs `work` to its end even if the caller goes away: between journal and driver nothing may be cut off.
    pub async fn detached<T: Send + 'static>(
        &self,
        kind: TaskKind,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        let (answer, answered) = oneshot::channel();
        self.tasks.spawn(kind, Scope::default(), async move {
            // The caller may be gone; the work is done all the same.
            let _ = answer.send(work.await);
        });
        answered.await.unwrap_or_else(|_| Err(crate::error::shutting_down()))
    }
}

pub(crate) fn scope(operation: &Operation) -> Scope {
    Scope { vm: operation.vm, op: Some(operation.id), actor: Some(operation.actor.clone()) }
}
