//! The chain through the audit rows, and the proof that nobody changed it.
//!
//! ```text
//! checkpoint          row n             row n+1                    head
//! (seq n-1, hash) --> hash(prev, n) --> hash(prev, n+1) --> ... == (seq, hash)
//!       ^                                   |
//!       +------ attested by a row `audit-pruned` of the chain
//! ```
//! An edited row breaks its own hash; an inserted, missing or swapped one breaks the numbering or the next row's
//! `prev_hash`; a cut tail misses the head; a cut front misses the checkpoint, which a row of the remaining chain
//! must attest. Whoever can write the file could rebuild all of it: against that, keep an [`AuditHead`] elsewhere
//! and verify with it as the anchor.

use crate::{StoreError, View, row::hash};
use rusqlite::Row;
use serde::{Deserialize, Serialize};
use std::fmt;

pub(crate) const PRUNED: &str = "audit-pruned";

/// The last row of a chain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AuditHead {
    pub seq: u64,
    pub hash: [u8; 32],
}

impl AuditHead {
    pub const EMPTY: Self = Self { seq: 0, hash: [0; 32] };
}
impl fmt::Display for AuditHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, blake3::Hash::from_bytes(self.hash).to_hex())
    }
}
impl fmt::Debug for AuditHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "audit:{self}")
    }
}
impl std::str::FromStr for AuditHead {
    type Err = StoreError;
    /// The form [`fmt::Display`] writes: `SEQ:64 hex digits`.
    fn from_str(text: &str) -> Result<Self, StoreError> {
        let parse = || {
            let (seq, hash) = text.split_once(':')?;
            Some(Self { seq: seq.parse().ok()?, hash: *blake3::Hash::from_hex(hash).ok()?.as_bytes() })
        };
        parse().ok_or_else(|| StoreError::Invalid { what: "audit head", detail: format!("`{text}`") })
    }
}

/// The fields of a row that its hash covers, exactly as stored.
#[derive(Debug)]
pub(crate) struct Link {
    pub seq: u64,
    pub at: i64,
    pub actor: String,
    pub action: String,
    pub target: String,
    pub decision: String,
    pub rules: String,
    pub revision: String,
    pub operation: Option<String>,
    pub detail: String,
}

/// Every field is preceded by its length, so no two different rows feed the hash the same bytes.
pub(crate) fn link_hash(prev: &[u8; 32], link: &Link) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("offshoot audit chain, version 1");
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(prev);
    field(&link.seq.to_le_bytes());
    field(&link.at.to_le_bytes());
    for text in [&link.actor, &link.action, &link.target, &link.decision, &link.rules, &link.revision] {
        field(text.as_bytes());
    }
    // Absent is not the same as empty.
    field(&[u8::from(link.operation.is_some())]);
    field(link.operation.as_deref().unwrap_or("").as_bytes());
    field(link.detail.as_bytes());
    *hasher.finalize().as_bytes()
}

/// What a check of the whole chain found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditVerdict {
    Intact(AuditReport),
    Broken(AuditFault),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditReport {
    /// Rows read and verified.
    pub rows: u64,
    /// Rows up to this one were pruned.
    pub pruned_through: u64,
    pub head: AuditHead,
    /// Whether the anchor lies in the verified stretch; one older than the pruned rows proves nothing.
    pub anchor_checked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditFault {
    #[error("audit row {seq} was changed: its hash does not match its content")]
    Edited { seq: u64 },
    #[error("audit row {seq} does not follow the row before it")]
    Unlinked { seq: u64 },
    #[error("audit rows {from} to {to} are missing")]
    Missing { from: u64, to: u64 },
    #[error("the audit ends at row {found}, but {expected} were written")]
    Truncated { found: u64, expected: u64 },
    #[error("the audit's recorded head does not match its last row {seq}")]
    HeadMismatch { seq: u64 },
    #[error("the audit begins after row {seq}, but no row attests that the earlier ones were pruned")]
    UnattestedCheckpoint { seq: u64 },
    #[error("the anchor {anchor} is not part of the audit: it was rewritten")]
    AnchorMismatch { anchor: AuditHead },
}

/// The content of the row that attests a checkpoint.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Attestation {
    pub through: String,
}

impl Attestation {
    pub fn of(checkpoint: &AuditHead) -> Self {
        Self { through: checkpoint.to_string() }
    }
}

fn link_from(row: &Row<'_>) -> Result<(Link, [u8; 32], [u8; 32]), rusqlite::Error> {
    let link = Link {
        seq: row.get("seq")?,
        at: row.get("at")?,
        actor: row.get("actor")?,
        action: row.get("action")?,
        target: row.get("target")?,
        decision: row.get("decision")?,
        rules: row.get("rules")?,
        revision: row.get("revision")?,
        operation: row.get("operation")?,
        detail: row.get("detail")?,
    };
    Ok((link, hash(row, "prev_hash")?, hash(row, "hash")?))
}

impl View<'_> {
    pub(crate) fn audit_checkpoint(&self) -> Result<AuditHead, StoreError> {
        let sql = "SELECT seq, hash FROM audit_checkpoint";
        let checkpoint = self.one("read the audit checkpoint", sql, [], |row| {
            Ok(AuditHead { seq: row.get("seq")?, hash: hash(row, "hash")? })
        })?;
        Ok(checkpoint.unwrap_or(AuditHead::EMPTY))
    }

    /// Reads the whole chain and checks every link. `anchor` is a head somebody kept outside this file.
    pub fn audit_verify(&self, anchor: Option<AuditHead>) -> Result<AuditVerdict, StoreError> {
        let checkpoint = self.audit_checkpoint()?;
        let head = self.audit_head()?;
        let walked = self.walk(Walk::from(checkpoint, anchor))?;
        let walk = match walked {
            Ok(walk) => walk,
            Err(fault) => return Ok(AuditVerdict::Broken(fault)),
        };
        Ok(match walk.finish(head) {
            Ok(report) => AuditVerdict::Intact(report),
            Err(fault) => AuditVerdict::Broken(fault),
        })
    }

    fn walk(&self, mut walk: Walk) -> Result<Result<Walk, AuditFault>, StoreError> {
        let run = || -> Result<Result<Walk, AuditFault>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "SELECT seq, at, actor, action, target, decision, rules, revision, operation, detail,
                    prev_hash, hash
                 FROM audit ORDER BY seq",
            )?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (link, prev, hash) = link_from(row)?;
                if let Err(fault) = walk.step(&link, prev, hash) {
                    return Ok(Err(fault));
                }
            }
            Ok(Ok(walk))
        };
        run().map_err(|error| self.fault("verify the audit", error))
    }
}

/// The walk along the chain so far.
#[derive(Debug)]
struct Walk {
    checkpoint: AuditHead,
    anchor: Option<AuditHead>,
    last: AuditHead,
    rows: u64,
    attested: bool,
    anchor_checked: bool,
}

impl Walk {
    fn from(checkpoint: AuditHead, anchor: Option<AuditHead>) -> Self {
        let attested = checkpoint == AuditHead::EMPTY;
        let anchor_checked = anchor == Some(checkpoint);
        Self { checkpoint, anchor, last: checkpoint, rows: 0, attested, anchor_checked }
    }

    fn step(&mut self, link: &Link, prev: [u8; 32], hash: [u8; 32]) -> Result<(), AuditFault> {
        let seq = link.seq;
        let expected = self.last.seq + 1;
        if seq > expected {
            return Err(AuditFault::Missing { from: expected, to: seq - 1 });
        }
        if seq < expected || prev != self.last.hash {
            return Err(AuditFault::Unlinked { seq });
        }
        if link_hash(&prev, link) != hash {
            return Err(AuditFault::Edited { seq });
        }
        if link.action == PRUNED
            && serde_json::from_str::<Attestation>(&link.detail).ok()
                == Some(Attestation::of(&self.checkpoint))
        {
            self.attested = true;
        }
        self.last = AuditHead { seq, hash };
        self.rows += 1;
        self.anchor_checked |= self.anchor == Some(self.last);
        Ok(())
    }

    fn finish(self, head: AuditHead) -> Result<AuditReport, AuditFault> {
        if self.last.seq < head.seq {
            return Err(AuditFault::Truncated { found: self.last.seq, expected: head.seq });
        }
        if self.last != head {
            return Err(AuditFault::HeadMismatch { seq: self.last.seq });
        }
        if !self.attested {
            return Err(AuditFault::UnattestedCheckpoint { seq: self.checkpoint.seq });
        }
        match self.anchor {
            Some(anchor) if anchor.seq > head.seq => {
                Err(AuditFault::Truncated { found: head.seq, expected: anchor.seq })
            }
            Some(anchor) if !self.anchor_checked && anchor.seq >= self.checkpoint.seq => {
                Err(AuditFault::AnchorMismatch { anchor })
            }
            _ => Ok(AuditReport {
                rows: self.rows,
                pruned_through: self.checkpoint.seq,
                head,
                anchor_checked: self.anchor_checked,
            }),
        }
    }
}
