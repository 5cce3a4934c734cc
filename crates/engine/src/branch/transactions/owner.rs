//! Who may change a VM: the stack of its open transactions. Plain synchronous data, no I/O, no clock.
//!
//! ```text
//!  claim --> Beginning --open--> Open --committing, rolling_back--> Ending --ended--> (gone, and all within it)
//!               | dropped          ^                | stays_open (a commit that could not be written)
//!               v                  '----------------+
//!             (gone)                                | stays_rolling_back (tried again; a destroy is admitted)
//!                                                   v
//!                                              RollingBack --rolling_back--> Ending ...
//! ```
//! The innermost is the last of the stack. One that ends takes those above it with it. Whether a call may change the
//! VM is asked when its turn has come, so that nothing that waited in the VM's queue slips in or behind.

use crate::{
    operations::Ticket,
    sync::lock,
    work::{Use, Work},
};
use jiff::Timestamp;
use offshoot_types::{
    Actor, Command, ErrorCode, Failure, FileAccess, RollbackCause, SnapshotId, TransactionId, VmName,
};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub(crate) struct Ownership {
    stack: Mutex<Vec<Level>>,
    /// Held while a transaction begins or ends, so that on one VM only one does at a time.
    pub turn: tokio::sync::Mutex<()>,
    /// Of the VM: whoever owns it works with it.
    work: Work,
    claims: Work,
}

/// What somebody wants to become the owner for.
#[derive(Debug, Clone)]
pub(crate) struct Claimant {
    pub id: TransactionId,
    /// The innermost open transaction; `None` wants the VM for itself.
    pub parent: Option<TransactionId>,
    pub purpose: Purpose,
    pub actor: Actor,
    /// When it is rolled back by itself.
    pub deadline: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Transaction,
    /// Owned while its forks run, so that nothing is lost when it continues as one of them.
    Race,
}

#[derive(Debug)]
struct Level {
    claimant: Claimant,
    /// What it goes back to; `None` while it begins, and for a race.
    snapshot: Option<SnapshotId>,
    /// Of the operation from its beginning to its end.
    ticket: Option<Ticket>,
    phase: Phase,
    /// A rollback of it has failed: a destroy is admitted from then on, also while it is tried again.
    stuck: bool,
    /// Why it is to be rolled back, for whoever watches it.
    wish: watch::Sender<Option<RollbackCause>>,
    ended: CancellationToken,
    /// It is counted from its claim to its end.
    _counted: [Use; 2],
}

/// For whoever watches one transaction.
#[derive(Debug)]
pub(crate) struct Watched {
    pub wish: watch::Receiver<Option<RollbackCause>>,
    /// Cancelled once it has ended.
    pub ended: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Beginning,
    Open,
    Ending,
    RollingBack,
}

/// What a call wants of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Passes always.
    Read,
    Change,
    /// Also admitted while a rollback does not succeed: no VM is without an exit.
    Destroy,
}

impl Access {
    pub fn of(command: &Command) -> Self {
        match command {
            Command::Destroy { .. } => Self::Destroy,
            // What is attached to was admitted when it began: its caller takes up the streams again.
            Command::Attach { .. }
            | Command::Files { access: FileAccess::Read, .. }
            | Command::Inspect { .. }
            | Command::InspectSnapshot { .. }
            | Command::VerifySnapshot { .. }
            | Command::ExportSnapshot { .. }
            | Command::Diff { .. } => Self::Read,
            _ => Self::Change,
        }
    }
}

/// Why a call is not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Somebody else's.
    Owned { by: TransactionId, purpose: Purpose, deadline: Timestamp },
    /// The transaction the call names is over, or another VM's.
    NotOpen { id: TransactionId },
    /// It is being ended just now, or its rollback is still to succeed.
    Ending { id: TransactionId },
    /// A savepoint begins in the innermost transaction only.
    NotInnermost { id: TransactionId, innermost: TransactionId },
}

impl Refused {
    pub fn failure(&self, vm: &VmName) -> Failure {
        match self {
            Self::Owned { by, purpose: Purpose::Transaction, deadline } => Failure::new(
                ErrorCode::InTransaction,
                format!("VM `{vm}` belongs to transaction {by} until it ends, at {deadline} at the latest"),
            )
            .hint("act within it by naming it, or wait for its end"),
            Self::Owned { by, purpose: Purpose::Race, .. } => Failure::new(
                ErrorCode::InTransaction,
                format!("VM `{vm}` belongs to race {by} until that has a winner"),
            )
            .hint("wait for its end"),
            Self::NotOpen { id } => Failure::new(
                ErrorCode::WrongState,
                format!("transaction {id} is not open on VM `{vm}`: it has ended, or is another VM's"),
            )
            .hint("what is done without naming a transaction is not undone with it; begin a new one"),
            Self::Ending { id } => Failure::new(
                ErrorCode::WrongState,
                format!("transaction {id} of VM `{vm}` is being ended: nothing more can be done in it"),
            )
            .hint(format!("wait for its end; `offshoot status {vm}` shows how it ended")),
            Self::NotInnermost { id, innermost } => Failure::new(
                ErrorCode::WrongState,
                format!(
                    "a savepoint begins in the innermost transaction of VM `{vm}`, {innermost}, not in {id}"
                ),
            ),
        }
    }
}

/// One open transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenLevel {
    pub id: TransactionId,
    pub snapshot: Option<SnapshotId>,
    pub actor: Actor,
}

/// The right to open a transaction; dropped, it is as if nobody had asked.
#[derive(Debug)]
#[must_use = "dropping it gives the VM back"]
pub(crate) struct Claim<'a> {
    ownership: &'a Ownership,
    id: TransactionId,
}

impl Claim<'_> {
    /// From now on calls within it are admitted. Gives the ticket back if the VM was destroyed meanwhile.
    pub fn open(
        self,
        snapshot: Option<SnapshotId>,
        ticket: Option<Ticket>,
    ) -> Result<Watched, Option<Box<Ticket>>> {
        let mut stack = self.ownership.stack();
        match stack.iter_mut().find(|level| level.claimant.id == self.id) {
            Some(level) => {
                (level.phase, level.snapshot, level.ticket) = (Phase::Open, snapshot, ticket);
                Ok(level.watched())
            }
            None => Err(ticket.map(Box::new)),
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let begins = |level: &Level| level.claimant.id == self.id && level.phase == Phase::Beginning;
        self.ownership.stack().retain(|level| !begins(level));
    }
}

impl Ownership {
    /// Of a VM whose work is counted there.
    pub fn of(work: Work) -> Self {
        Self { work, ..Self::default() }
    }

    /// Resolves once nobody owns the VM.
    pub async fn free(&self) {
        self.claims.ended().await;
    }

    fn level(&self, claimant: Claimant, phase: Phase) -> Level {
        Level::new(claimant, phase, [self.work.begin(), self.claims.begin()])
    }

    fn stack(&self) -> MutexGuard<'_, Vec<Level>> {
        lock(&self.stack)
    }

    /// Makes the claimant the innermost owner. Nobody else is admitted from now on.
    pub fn claim(&self, claimant: Claimant) -> Result<Claim<'_>, Refused> {
        let mut stack = self.stack();
        let innermost = stack.last().map(|level| (level.claimant.id, level.phase));
        match (claimant.parent, innermost) {
            (None, None) => {}
            (None, Some(_)) => return Err(owned(&stack)),
            (Some(id), None) => return Err(Refused::NotOpen { id }),
            (Some(id), Some((innermost, phase))) if id == innermost => {
                if phase != Phase::Open {
                    return Err(Refused::Ending { id });
                }
            }
            (Some(id), Some((innermost, _))) if stack.iter().any(|level| level.claimant.id == id) => {
                return Err(Refused::NotInnermost { id, innermost });
            }
            (Some(id), Some(_)) => return Err(Refused::NotOpen { id }),
        }
        let id = claimant.id;
        stack.push(self.level(claimant, Phase::Beginning));
        Ok(Claim { ownership: self, id })
    }

    /// Takes over a transaction that an earlier daemon left open: it is to be rolled back.
    pub fn adopt(&self, claimant: Claimant, snapshot: SnapshotId) -> Watched {
        let level = Level { snapshot: Some(snapshot), ..self.level(claimant, Phase::RollingBack) };
        level.wish.send_replace(Some(RollbackCause::DaemonDied));
        let watched = level.watched();
        self.stack().push(level);
        watched
    }

    /// As [`admit`](Self::admit), for what somebody who was admitted already does on the way: also while what it is part
    /// of begins or ends.
    pub fn admit_part(&self, within: Option<TransactionId>) -> Result<(), Refused> {
        match within {
            Some(id) if self.stack().iter().any(|level| level.claimant.id == id) => Ok(()),
            _ => self.admit(within, Access::Change),
        }
    }

    /// Whether a call that names `within` may do this to the VM now.
    pub fn admit(&self, within: Option<TransactionId>, access: Access) -> Result<(), Refused> {
        let stack = self.stack();
        let named = within.map(|id| (id, stack.iter().find(|level| level.claimant.id == id)));
        match named {
            _ if access == Access::Read => Ok(()),
            None if stack.is_empty() => Ok(()),
            _ if access == Access::Destroy && stack.iter().any(|level| level.stuck) => Ok(()),
            None => Err(owned(&stack)),
            Some((_, Some(level))) if level.phase == Phase::Open => match stack.last() {
                // A savepoint within it is being ended: what is asked now would be undone with it, or not.
                Some(last) if last.phase != Phase::Open => Err(Refused::Ending { id: last.claimant.id }),
                _ => Ok(()),
            },
            Some((id, Some(_))) => Err(Refused::Ending { id }),
            Some((id, None)) => Err(Refused::NotOpen { id }),
        }
    }

    /// Begins to commit a transaction and all within it, outermost first: calls in them are refused from now on.
    pub fn committing(&self, id: TransactionId) -> Result<Vec<OpenLevel>, Refused> {
        self.ending(id, |phase| phase == Phase::Open)
    }

    /// As [`committing`](Self::committing), to roll it back: also one whose rollback is tried again.
    pub fn rolling_back(&self, id: TransactionId) -> Result<Vec<OpenLevel>, Refused> {
        self.ending(id, |phase| matches!(phase, Phase::Open | Phase::RollingBack))
    }

    fn ending(&self, id: TransactionId, may: impl Fn(Phase) -> bool) -> Result<Vec<OpenLevel>, Refused> {
        let mut stack = self.stack();
        let at = stack.iter().position(|level| level.claimant.id == id).ok_or(Refused::NotOpen { id })?;
        // What it lies in must be whole, and what lies in it goes with it.
        let outer = stack[..at].iter().find(|level| level.phase != Phase::Open);
        if let Some(level) = outer.or(stack[at..].iter().find(|level| !may(level.phase))) {
            return Err(Refused::Ending { id: level.claimant.id });
        }
        let ending = stack[at..].iter_mut().map(|level| {
            level.phase = Phase::Ending;
            level.view()
        });
        Ok(ending.collect())
    }

    /// It could not be ended and goes on.
    pub fn stays_open(&self, id: TransactionId) {
        self.stays(id, Phase::Open);
    }

    /// Its rollback has failed and is tried again.
    pub fn stays_rolling_back(&self, id: TransactionId, cause: RollbackCause) {
        self.stays(id, Phase::RollingBack);
        self.wish(id, cause);
    }

    fn stays(&self, id: TransactionId, phase: Phase) {
        let mut stack = self.stack();
        let at = stack.iter().position(|level| level.claimant.id == id).unwrap_or(stack.len());
        for level in &mut stack[at..] {
            level.phase = phase;
            level.stuck |= phase == Phase::RollingBack;
        }
    }

    /// Asks whoever watches it to roll it back; the first cause counts.
    pub fn wish(&self, id: TransactionId, cause: RollbackCause) {
        let stack = self.stack();
        if let Some(level) = stack.iter().find(|level| level.claimant.id == id) {
            level.wish.send_if_modified(|wish| {
                let first = wish.is_none();
                wish.get_or_insert(cause);
                first
            });
        }
    }

    /// It has ended, with all within it. Returns their tickets, innermost first, to be closed.
    pub fn ended(&self, id: TransactionId) -> Vec<Ticket> {
        let mut stack = self.stack();
        let at = stack.iter().position(|level| level.claimant.id == id).unwrap_or(stack.len());
        gone(stack.split_off(at))
    }

    /// The VM is gone, and every transaction with it.
    pub fn abandon(&self) -> Vec<Ticket> {
        gone(std::mem::take(&mut *self.stack()))
    }

    /// Those that are open or being ended, outermost first.
    pub fn levels(&self) -> Vec<OpenLevel> {
        self.stack().iter().map(Level::view).collect()
    }
}

impl Level {
    fn new(claimant: Claimant, phase: Phase, counted: [Use; 2]) -> Self {
        let (wish, ended) = (watch::Sender::new(None), CancellationToken::new());
        Self {
            claimant,
            snapshot: None,
            ticket: None,
            phase,
            stuck: phase == Phase::RollingBack,
            wish,
            ended,
            _counted: counted,
        }
    }

    fn watched(&self) -> Watched {
        Watched { wish: self.wish.subscribe(), ended: self.ended.clone() }
    }

    fn view(&self) -> OpenLevel {
        let Claimant { id, actor, .. } = &self.claimant;
        OpenLevel { id: *id, snapshot: self.snapshot, actor: actor.clone() }
    }
}

/// Refuses in the name of the outermost: that one's end gives the VM back.
fn owned(stack: &[Level]) -> Refused {
    let Some(Level { claimant: Claimant { id, purpose, deadline, .. }, .. }) = stack.first() else {
        unreachable!("asked with an owner only")
    };
    Refused::Owned { by: *id, purpose: *purpose, deadline: *deadline }
}

fn gone(levels: Vec<Level>) -> Vec<Ticket> {
    let tickets = levels.into_iter().rev().filter_map(|level| {
        level.ended.cancel();
        level.ticket
    });
    tickets.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::Operations;
    use offshoot_types::{Operation, OperationId, OperationKind, OperationState, VmId, VmRef};

    fn claimant(parent: Option<TransactionId>) -> Claimant {
        Claimant {
            id: TransactionId::new(),
            parent,
            purpose: Purpose::Transaction,
            actor: Actor::Daemon,
            deadline: Timestamp::UNIX_EPOCH,
        }
    }
    fn ticket() -> Ticket {
        Operations::default().open(Operation {
            id: OperationId::new(),
            kind: OperationKind::Transaction,
            vm: None,
            actor: Actor::Daemon,
            reason: "test".into(),
            state: OperationState::Pending,
            undone_by: None,
            created: Timestamp::UNIX_EPOCH,
            updated: Timestamp::UNIX_EPOCH,
        })
    }
    fn begin(ownership: &Ownership, parent: Option<TransactionId>) -> TransactionId {
        let claim = ownership.claim(claimant(parent)).unwrap();
        let id = claim.id;
        claim.open(Some(SnapshotId::new()), Some(ticket())).unwrap();
        id
    }
    fn owner(refused: Result<(), Refused>) -> TransactionId {
        match refused {
            Err(Refused::Owned { by, .. }) => by,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_owned_vm_is_changed_within_its_transaction_only_and_read_by_everyone() {
        let ownership = Ownership::default();
        assert_eq!(ownership.admit(None, Access::Change), Ok(()));
        let id = begin(&ownership, None);
        assert_eq!(ownership.admit(Some(id), Access::Change), Ok(()));
        for access in [Access::Change, Access::Destroy] {
            assert_eq!(owner(ownership.admit(None, access)), id);
        }
        assert_eq!(ownership.admit(None, Access::Read), Ok(()));
        let other = TransactionId::new();
        assert_eq!(ownership.admit(Some(other), Access::Change), Err(Refused::NotOpen { id: other }));
        assert_eq!(ownership.committing(id).unwrap().len(), 1);
        assert_eq!(ownership.ended(id).len(), 1);
        assert_eq!(ownership.admit(None, Access::Change), Ok(()));
        assert_eq!(
            ownership.admit(Some(id), Access::Change),
            Err(Refused::NotOpen { id }),
            "what is asked for in a transaction is not done outside of it"
        );
    }

    #[test]
    fn a_beginning_that_is_cut_off_gives_the_vm_back() {
        let ownership = Ownership::default();
        let claim = ownership.claim(claimant(None)).unwrap();
        assert_eq!(owner(ownership.admit(None, Access::Change)), claim.id, "also before it is open");
        let id = claim.id;
        assert_eq!(ownership.admit(Some(id), Access::Change), Err(Refused::Ending { id }));
        drop(claim);
        assert_eq!(ownership.admit(None, Access::Change), Ok(()));
    }

    #[test]
    fn savepoints_begin_in_the_innermost_and_end_with_what_they_lie_in() {
        let ownership = Ownership::default();
        let outer = begin(&ownership, None);
        assert_eq!(owner(ownership.claim(claimant(None)).map(|_| ())), outer);
        let inner = begin(&ownership, Some(outer));
        assert_eq!(
            ownership.claim(claimant(Some(outer))).map(|_| ()),
            Err(Refused::NotInnermost { id: outer, innermost: inner })
        );
        assert_eq!(ownership.admit(Some(outer), Access::Change), Ok(()), "done in the innermost");
        assert_eq!(owner(ownership.admit(None, Access::Change)), outer, "the outermost's end gives it back");
        let levels: Vec<_> = ownership.rolling_back(outer).unwrap().iter().map(|level| level.id).collect();
        assert_eq!(levels, [outer, inner]);
        assert_eq!(ownership.admit(Some(inner), Access::Change), Err(Refused::Ending { id: inner }));
        assert_eq!(ownership.rolling_back(inner), Err(Refused::Ending { id: outer }));
        assert_eq!(ownership.ended(outer).len(), 2);
        assert!(ownership.levels().is_empty());
    }

    #[test]
    fn nothing_is_done_around_a_savepoint_that_is_being_ended() {
        let ownership = Ownership::default();
        let outer = begin(&ownership, None);
        let inner = begin(&ownership, Some(outer));
        ownership.rolling_back(inner).unwrap();
        assert_eq!(ownership.admit(Some(outer), Access::Change), Err(Refused::Ending { id: inner }));
        ownership.ended(inner);
        assert_eq!(ownership.admit(Some(outer), Access::Change), Ok(()));
        begin(&ownership, Some(outer));
    }

    #[test]
    fn a_rollback_that_fails_can_be_tried_again_not_committed_and_leaves_destroy_as_the_exit() {
        let ownership = Ownership::default();
        let claim = ownership.claim(claimant(None)).unwrap();
        let id = claim.id;
        let watched = claim.open(Some(SnapshotId::new()), Some(ticket())).unwrap();
        ownership.rolling_back(id).unwrap();
        assert_eq!(ownership.committing(id), Err(Refused::Ending { id }), "only one end can win");
        ownership.stays_rolling_back(id, RollbackCause::Deadline);
        assert_eq!(*watched.wish.borrow(), Some(RollbackCause::Deadline));
        ownership.wish(id, RollbackCause::Denied);
        assert_eq!(*watched.wish.borrow(), Some(RollbackCause::Deadline), "the first cause counts");
        assert_eq!(ownership.admit(Some(id), Access::Change), Err(Refused::Ending { id }));
        assert_eq!(ownership.committing(id), Err(Refused::Ending { id }));
        assert_eq!(ownership.admit(None, Access::Destroy), Ok(()));
        assert!(ownership.rolling_back(id).is_ok());
        assert_eq!(ownership.admit(None, Access::Destroy), Ok(()), "also while it is tried again");
        assert!(!watched.ended.is_cancelled());
        ownership.ended(id);
        assert!(watched.ended.is_cancelled());
    }

    #[test]
    fn a_commit_that_was_not_written_leaves_all_of_it_open() {
        let ownership = Ownership::default();
        let outer = begin(&ownership, None);
        let inner = begin(&ownership, Some(outer));
        ownership.committing(outer).unwrap();
        ownership.stays_open(outer);
        assert_eq!(ownership.admit(Some(inner), Access::Change), Ok(()));
        assert_eq!(ownership.abandon().len(), 2);
        assert_eq!(ownership.admit(None, Access::Change), Ok(()));
    }

    #[test]
    fn a_refusal_names_the_owner_its_deadline_and_what_to_do() {
        let vm = "a".parse().unwrap();
        let (by, deadline) = (TransactionId::new(), Timestamp::UNIX_EPOCH);
        let failure = Refused::Owned { by, purpose: Purpose::Transaction, deadline }.failure(&vm);
        assert_eq!(failure.code, ErrorCode::InTransaction);
        assert!(
            failure.message.contains(&by.to_string()) && failure.message.contains("1970-01-01T00:00:00Z")
        );
        assert!(failure.hint.unwrap().contains("naming it"));
        let over = Refused::NotOpen { id: by }.failure(&vm);
        assert_eq!(over.code, ErrorCode::WrongState, "waiting does not help: {over:?}");
    }

    #[test]
    fn reading_is_told_from_changing_by_the_command() {
        let vm = VmRef::Id(VmId::new());
        let files = |access| Command::Files { vm: vm.clone(), access, path: "/x".into() };
        assert_eq!(Access::of(&files(FileAccess::Read)), Access::Read);
        assert_eq!(Access::of(&files(FileAccess::Write)), Access::Change);
        assert_eq!(Access::of(&Command::Inspect { vm: Some(vm.clone()) }), Access::Read);
        assert_eq!(Access::of(&Command::Connect { vm: vm.clone(), port: 80 }), Access::Change);
        let attach = Command::Attach { vm: vm.clone(), exec: offshoot_types::ExecId::new() };
        assert_eq!(Access::of(&attach), Access::Read);
        assert_eq!(Access::of(&Command::Destroy { vm }), Access::Destroy);
    }
}
