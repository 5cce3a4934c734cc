//! Requests with an idempotency key: what each was and what it answered, so that a repeat is answered and not carried out.
//!
//! ```text
//! claim --> (under way) --answered / not kept--> repeats get the answer, or are told there is none
//!              |  \--released--> as if it had never come: nothing was done
//!              \--the daemon dies--> repeats are told which operations it had begun
//! ```
//! A row is on disk before anything is done in its name. It is forgotten after [`KEPT`], and earlier where one owner
//! has more than [`MAX_REQUESTS`].

use crate::{
    StoreError, Tx, View,
    operations::{COLUMNS, from_row},
    retention::DAY,
    row::{hash, json, parsed, to_json},
};
use offshoot_types::{Actor, Failure, Operation, Owner, RequestId};
use rusqlite::{Row, params};
use std::time::Duration;

/// How long a key is remembered.
pub const KEPT: Duration = DAY;
/// Requests of one owner that are remembered; the oldest go first.
const MAX_REQUESTS: u32 = 10_000;
/// Bytes of one answer that are kept.
pub const MAX_ANSWER: usize = 64 << 10;
/// Bytes of all answers to one owner; the oldest go first, and it is then known only that they were given.
const MAX_ANSWERS: u64 = 64 << 20;
/// The bounds of an owner are looked at with every so many claims.
const TRIM_EVERY: i64 = 64;

/// A request about to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRequest {
    pub id: RequestId,
    pub caller: Actor,
    /// 1 to 255 bytes; what they may be is the transport's to say.
    pub key: String,
    /// Of all that makes two requests the same.
    pub fingerprint: [u8; 32],
}

/// A request that came before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    pub id: RequestId,
    pub fingerprint: [u8; 32],
    pub content: Option<[u8; 32]>,
    /// `None` while it is under way, and for good if its daemon ended in its middle.
    pub outcome: Option<RequestOutcome>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestOutcome {
    Answered {
        status: u16,
        media_type: Option<String>,
        body: Vec<u8>,
    },
    Failed(Failure),
    /// It was carried out, and its answer was a stream, a secret or too large.
    NotKept,
}

/// What [`Tx::claim_request`] found or made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    New,
    Known(RequestRecord),
}

fn record_of(row: &Row<'_>) -> Result<RequestRecord, rusqlite::Error> {
    let outcome: Option<String> = row.get("outcome")?;
    let outcome = match outcome.as_deref() {
        None => None,
        Some("answered") => Some(RequestOutcome::Answered {
            status: row.get("status")?,
            media_type: row.get("media_type")?,
            body: row.get("body")?,
        }),
        Some("failed") => Some(RequestOutcome::Failed(json(row, "failure")?)),
        Some(_) => Some(RequestOutcome::NotKept),
    };
    Ok(RequestRecord {
        id: parsed(row, "id")?,
        fingerprint: hash(row, "fingerprint")?,
        content: row.get("content")?,
        outcome,
    })
}

impl View<'_> {
    /// The operations that a request has begun, oldest first.
    pub fn operations_of_request(&self, request: RequestId) -> Result<Vec<Operation>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM operations WHERE request = ?1 ORDER BY id");
        self.many("list the operations of a request", &sql, params![request.to_string()], from_row)
    }
}

impl Tx<'_> {
    /// Records a request, unless the caller sent one with the same key less than `KEPT` (a day) ago.
    pub fn claim_request(&self, new: &NewRequest) -> Result<Claimed, StoreError> {
        let caller = new.caller.to_string();
        let sql = "DELETE FROM requests WHERE caller = ?1 AND key = ?2 AND created < ?3";
        self.execute("forget an old request", sql, params![caller, new.key, self.requests_since()])?;
        let sql = "SELECT * FROM requests WHERE caller = ?1 AND key = ?2";
        if let Some(known) = self.one("find a request", sql, params![caller, new.key], record_of)? {
            return Ok(Claimed::Known(known));
        }
        let sql = "INSERT INTO requests (id, owner, caller, key, fingerprint, created)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let owner = new.caller.owner();
        let (id, now) = (new.id.to_string(), self.now_micros());
        let params = params![id, owner.as_str(), caller, new.key, new.fingerprint, now];
        self.execute("record a request", sql, params)?;
        if self.connection.last_insert_rowid() % TRIM_EVERY == 0 {
            self.trim_requests(&owner, MAX_REQUESTS, MAX_ANSWERS)?;
        }
        Ok(Claimed::New)
    }

    /// Records how a request ended. One that was forgotten meanwhile stays so.
    pub fn end_request(
        &self,
        id: RequestId,
        content: Option<[u8; 32]>,
        outcome: &RequestOutcome,
    ) -> Result<(), StoreError> {
        let (word, status, media_type, body) = match outcome {
            RequestOutcome::Answered { status, media_type, body } if body.len() <= MAX_ANSWER => {
                ("answered", Some(*status), media_type.as_deref(), Some(body))
            }
            RequestOutcome::Failed(_) => ("failed", None, None, None),
            RequestOutcome::Answered { .. } | RequestOutcome::NotKept => ("not-kept", None, None, None),
        };
        let failure = match outcome {
            RequestOutcome::Failed(failure) => Some(to_json(failure)),
            RequestOutcome::Answered { .. } | RequestOutcome::NotKept => None,
        };
        let sql = "UPDATE requests SET content = ?2, outcome = ?3, status = ?4, media_type = ?5, body = ?6,
            failure = ?7 WHERE id = ?1";
        let params = params![id.to_string(), content, word, status, media_type, body, failure];
        self.execute("record an answer", sql, params).map(drop)
    }

    /// Forgets a request by which nothing was done.
    pub fn release_request(&self, id: RequestId) -> Result<(), StoreError> {
        let sql = "DELETE FROM requests WHERE id = ?1";
        self.execute("forget a request", sql, params![id.to_string()]).map(drop)
    }

    /// Removes one batch of those that are too old.
    pub(crate) fn prune_requests(&self, batch: u32) -> Result<u64, StoreError> {
        let sql = "DELETE FROM requests WHERE seq IN (SELECT seq FROM requests WHERE created < ?1 LIMIT ?2)";
        let removed = self.execute("prune requests", sql, params![self.requests_since(), batch])?;
        Ok(removed as u64)
    }

    fn requests_since(&self) -> i64 {
        self.now_micros().saturating_sub(i64::try_from(KEPT.as_micros()).unwrap_or(i64::MAX))
    }

    /// Keeps an owner within bounds. What is under way stays.
    fn trim_requests(&self, owner: &Owner, most: u32, bytes: u64) -> Result<(), StoreError> {
        let sql = "DELETE FROM requests WHERE owner = ?1 AND outcome IS NOT NULL AND seq <= coalesce(
            (SELECT seq FROM requests WHERE owner = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2), 0)";
        self.execute("forget the oldest requests", sql, params![owner.as_str(), most])?;
        let sql = "UPDATE requests SET outcome = 'not-kept', status = NULL, media_type = NULL, body = NULL
            WHERE seq IN (SELECT seq FROM (
                SELECT seq, sum(length(body)) OVER (ORDER BY seq DESC) AS total FROM requests
                WHERE owner = ?1 AND body IS NOT NULL) WHERE total > ?2)";
        self.execute("forget the oldest answers", sql, params![owner.as_str(), bytes]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, actor};
    use jiff::SignedDuration;

    async fn claim(f: &Fixture, key: &str) -> (RequestId, Claimed) {
        let id = RequestId::new();
        let new = NewRequest { id, caller: actor(), key: key.into(), fingerprint: [1; 32] };
        (id, f.store.transaction(move |tx| tx.claim_request(&new)).await.unwrap())
    }
    async fn answered(f: &Fixture, key: &str, bytes: usize) {
        let (id, claimed) = claim(f, key).await;
        assert_eq!(claimed, Claimed::New, "{key}");
        let outcome = RequestOutcome::Answered { status: 200, media_type: None, body: vec![0; bytes] };
        f.store.transaction(move |tx| tx.end_request(id, None, &outcome)).await.unwrap();
    }
    async fn outcome(f: &Fixture, key: &str) -> Option<RequestOutcome> {
        match claim(f, key).await.1 {
            Claimed::Known(record) => record.outcome,
            Claimed::New => panic!("{key} is not known"),
        }
    }

    #[tokio::test]
    async fn a_key_is_known_for_a_day() {
        let f = Fixture::new();
        answered(&f, "k", 1).await;
        f.clock.advance(SignedDuration::from_hours(23));
        assert!(outcome(&f, "k").await.is_some());
        f.clock.advance(SignedDuration::from_hours(2));
        assert_eq!(claim(&f, "k").await.1, Claimed::New);
        f.clock.advance(SignedDuration::from_hours(25));
        assert_eq!(f.store.prune(Default::default()).await.unwrap().requests, 1);
    }

    #[tokio::test]
    async fn an_owner_is_kept_within_bounds_by_what_is_oldest_and_has_ended() {
        let f = Fixture::new();
        let (_, under_way) = claim(&f, "first").await;
        assert_eq!(under_way, Claimed::New);
        for key in ["a", "b", "c"] {
            answered(&f, key, 10).await;
        }
        let trim =
            |most, bytes| f.store.transaction(move |tx| tx.trim_requests(&Owner::default(), most, bytes));
        trim(2, 15).await.unwrap();
        assert_eq!(outcome(&f, "first").await, None, "it is under way");
        assert_eq!(outcome(&f, "b").await, Some(RequestOutcome::NotKept));
        assert!(matches!(outcome(&f, "c").await, Some(RequestOutcome::Answered { .. })));
        assert_eq!(claim(&f, "a").await.1, Claimed::New);
    }
}
