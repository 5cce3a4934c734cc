//! Requests with an idempotency key: each is carried out once, whoever sends it again and however often.
//!
//! ```text
//! claim --new--> Claim (held by whoever carries it out) --settle--> the outcome is on disk, or nothing was done
//!   |               \--dropped: nobody knows how it ended
//!   \--known--> Earlier: what a repeat is told
//! ```

use crate::{Engine, core::Core, sync::lock};
use offshoot_store::{Claimed, NewRequest, RequestOutcome, RequestRecord, StoreError};
use offshoot_types::{
    ErrorCode, Failure, Operation, OperationKind, OperationOutcome, OperationState, RequestId,
};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

/// For what the daemon before this one was making to be taken back or found done.
const RECOVERY: Duration = Duration::from_secs(30);

/// Those that are under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests(Arc<Mutex<HashSet<RequestId>>>);

/// What has become of a request by the time it is claimed.
#[derive(Debug)]
pub enum RequestClaim {
    /// It is new: whoever holds this carries it out.
    New(Claim),
    /// It came before.
    Earlier(Earlier),
}

/// A request that came before.
#[derive(Debug)]
pub struct Earlier {
    pub id: RequestId,
    pub fingerprint: [u8; 32],
    /// Of a body that was hashed as it came.
    pub content: Option<[u8; 32]>,
    pub standing: Standing,
}

/// How far a request is that came before.
#[derive(Debug)]
pub enum Standing {
    UnderWay,
    Ended(RequestOutcome),
    /// It was carried out by these operations, and its answer is not kept.
    NotKept(Vec<Operation>),
    /// Nobody carries it out any more, and how it ended is not on disk. These are the operations that it had begun.
    Unknown(Vec<Operation>),
}

/// The duty to carry out one request. Dropping it without [`settle`](Self::settle) leaves its outcome unknown.
#[derive(Debug)]
#[must_use = "a request that was claimed has to be settled"]
pub struct Claim {
    id: RequestId,
    core: Arc<Core>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.core.requests.0).remove(&self.id);
    }
}

/// How a request ended, as its transport saw it.
#[derive(Debug)]
pub enum Ending {
    Answered {
        status: u16,
        media_type: Option<String>,
        body: Vec<u8>,
    },
    /// The answer is not to be kept: a stream, or a secret.
    NotKept,
    Failed(Failure),
    /// What it was to be done with never came in full, so that nothing was.
    Incomplete,
}

impl Engine {
    /// Records a request before anything is done in its name. A failure means that nothing was recorded.
    pub async fn claim_request(&self, new: NewRequest) -> Result<RequestClaim, Failure> {
        let core = self.core().clone();
        core.manager.check_open()?;
        let id = new.id;
        let mut lost = None;
        loop {
            // Known here before it can be found on disk, so that no repeat takes it for one that was left behind.
            lock(&core.requests.0).insert(id);
            let claim = Claim { id, core: core.clone() };
            let asked = new.clone();
            match core.store.transaction(move |tx| tx.claim_request(&asked)).await? {
                Claimed::New => return Ok(RequestClaim::New(claim)),
                Claimed::Known(record) => {
                    let earlier = core.earlier(record).await?;
                    match &earlier.standing {
                        // It may have ended between the look at the record and the look at what is under way. What
                        // is not under way any more is on record, so that a second look tells.
                        Standing::Unknown(operations) if lost != Some(earlier.id) => {
                            // The start of this daemon takes the making of a VM back, or finds it done.
                            for making in operations.iter().filter(|one| one.kind == OperationKind::Create) {
                                core.wait(making.id, Some(RECOVERY)).await?;
                            }
                            lost = Some(earlier.id);
                        }
                        Standing::Unknown(operations) if taken_back(operations) => {
                            let id = earlier.id;
                            core.store.transaction(move |tx| tx.release_request(id)).await?;
                        }
                        _ => return Ok(RequestClaim::Earlier(earlier)),
                    }
                }
            }
        }
    }

    /// Takes up a request whose daemon ended in its middle; `None` if somebody else has just done so.
    pub fn resume_request(&self, id: RequestId) -> Option<Claim> {
        let core = self.core().clone();
        let free = lock(&core.requests.0).insert(id);
        free.then_some(Claim { id, core })
    }
}

impl Core {
    async fn earlier(&self, record: RequestRecord) -> Result<Earlier, Failure> {
        let RequestRecord { id, fingerprint, content, outcome } = record;
        let under_way = lock(&self.requests.0).contains(&id);
        let begun = self.store.read(move |view| view.operations_of_request(id));
        let standing = match outcome {
            Some(RequestOutcome::NotKept) => Standing::NotKept(begun.await?),
            Some(outcome) => Standing::Ended(outcome),
            None if under_way => Standing::UnderWay,
            None => Standing::Unknown(begun.await?),
        };
        Ok(Earlier { id, fingerprint, content, standing })
    }
}

impl Claim {
    /// As it is known to callers, and to the operations begun in its name.
    pub const fn id(&self) -> RequestId {
        self.id
    }

    /// Records how it ended. If that cannot be written, repeats are told that the outcome is not known.
    pub async fn settle(self, content: Option<[u8; 32]>, ending: Ending) {
        let core = &self.core;
        let outcome = match self.outcome(ending).await {
            Ok(outcome) => outcome,
            Err(error) => return core.store_failed("look into what a request has done", &error),
        };
        let id = self.id;
        let written = match outcome {
            Outcome::Known(outcome) => {
                core.store.transaction(move |tx| tx.end_request(id, content, &outcome)).await
            }
            Outcome::Nothing => core.store.transaction(move |tx| tx.release_request(id)).await,
            Outcome::Unknown => Ok(()),
        };
        if let Err(error) = written {
            core.store_failed("record the answer to a request", &error);
        }
    }

    async fn outcome(&self, ending: Ending) -> Result<Outcome, StoreError> {
        let failure = match ending {
            Ending::Answered { status, media_type, body } => {
                return Ok(Outcome::Known(RequestOutcome::Answered { status, media_type, body }));
            }
            Ending::NotKept => return Ok(Outcome::Known(RequestOutcome::NotKept)),
            Ending::Incomplete => return Ok(Outcome::Nothing),
            Ending::Failed(failure) => failure,
        };
        let id = self.id;
        let operations = self.core.store.read(move |view| view.operations_of_request(id)).await?;
        let failed = |operation: &Operation| {
            matches!(&operation.state, OperationState::Ended { outcome: OperationOutcome::Failed { .. } })
        };
        Ok(match failure.code {
            // It goes on without us, or the next daemon settles it.
            ErrorCode::Interrupted if !operations.is_empty() => Outcome::Unknown,
            code if refused(code) && operations.iter().all(failed) => Outcome::Nothing,
            _ => Outcome::Known(RequestOutcome::Failed(failure)),
        })
    }
}

enum Outcome {
    Known(RequestOutcome),
    /// Nothing was done, so that a repeat is a request like any other.
    Nothing,
    Unknown,
}

/// Codes of what is refused before it is begun, or taken back in full. A repeat may well succeed.
const fn refused(code: ErrorCode) -> bool {
    match code {
        ErrorCode::InvalidArgument
        | ErrorCode::MethodNotAllowed
        | ErrorCode::TooLarge
        | ErrorCode::UnsupportedMediaType
        | ErrorCode::KeyReused
        | ErrorCode::AlreadyDone
        | ErrorCode::OutcomeUnknown
        | ErrorCode::NotFound
        | ErrorCode::AlreadyExists
        | ErrorCode::WrongState
        | ErrorCode::StaleGeneration
        | ErrorCode::Busy
        | ErrorCode::InTransaction
        | ErrorCode::InUse
        | ErrorCode::Unauthenticated
        | ErrorCode::RateLimited
        | ErrorCode::Denied
        | ErrorCode::NoResource
        | ErrorCode::Unavailable
        | ErrorCode::ExecFailed
        | ErrorCode::Unsupported => true,
        ErrorCode::Snapshot
        | ErrorCode::Thaw
        | ErrorCode::Timeout
        | ErrorCode::Backend
        | ErrorCode::Image
        | ErrorCode::Guest
        | ErrorCode::Interrupted
        | ErrorCode::Internal => false,
    }
}

/// Whether the start of this daemon took back all that a request had begun: the making of VMs, of which nothing is left.
fn taken_back(operations: &[Operation]) -> bool {
    let undone = |operation: &Operation| {
        let outcome = OperationOutcome::Interrupted { undone: true };
        operation.kind == OperationKind::Create && operation.state == OperationState::Ended { outcome }
    };
    !operations.is_empty() && operations.iter().all(undone)
}
