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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, entry};

    async fn chain(rows: usize) -> Fixture {
        let f = Fixture::new();
        for n in 0..rows {
            f.store.audit_entry(entry(&format!("action-{n}"))).await.unwrap();
        }
        f
    }

    async fn fault(f: &Fixture, anchor: Option<AuditHead>) -> AuditFault {
        match f.store.audit_verify(anchor).await.unwrap() {
            AuditVerdict::Broken(fault) => fault,
            AuditVerdict::Intact(report) => panic!("not noticed: {report:?}"),
        }
    }

    #[tokio::test]
    async fn an_untouched_chain_is_intact_from_the_first_row_to_the_head() {
        for rows in [0, 1, 5] {
            let f = chain(rows).await;
            let head = f.store.audit_head().await.unwrap();
            let verdict = f.store.audit_verify(Some(head)).await.unwrap();
            let AuditVerdict::Intact(report) = verdict else { panic!("{verdict:?}") };
            assert_eq!((report.rows, report.head, report.anchor_checked), (rows as u64, head, true));
        }
    }

    #[tokio::test]
    async fn every_column_of_an_edited_row_is_noticed() {
        const EDITS: &[&str] = &[
            "at = at + 1",
            "actor = '{\"kind\":\"daemon\"}'",
            "action = 'other'",
            "target = 'other'",
            "decision = 'deny'",
            "rules = '[]'",
            "revision = 'other'",
            "operation = ''",
            "detail = 'other'",
            "hash = zeroblob(32)",
        ];
        for edit in EDITS {
            let f = chain(4).await;
            let sql = format!("DROP TRIGGER audit_is_never_edited; UPDATE audit SET {edit} WHERE seq = 2");
            f.tamper(sql.leak()).await;
            assert_eq!(fault(&f, None).await, AuditFault::Edited { seq: 2 }, "{edit}");
        }
    }

    #[tokio::test]
    async fn a_moved_boundary_between_two_fields_is_an_edit() {
        let f = chain(3).await;
        f.tamper(
            "DROP TRIGGER audit_is_never_edited;
             UPDATE audit SET action = action || 'v', target = 'm' WHERE seq = 2",
        )
        .await;
        assert_eq!(fault(&f, None).await, AuditFault::Edited { seq: 2 });
    }

    #[tokio::test]
    async fn missing_swapped_and_inserted_rows_are_noticed() {
        let f = chain(5).await;
        f.tamper("DELETE FROM audit WHERE seq IN (2, 3)").await;
        assert_eq!(fault(&f, None).await, AuditFault::Missing { from: 2, to: 3 });

        let f = chain(5).await;
        f.tamper(
            "DROP TRIGGER audit_is_never_edited;
             UPDATE audit SET seq = 99 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 3;
             UPDATE audit SET seq = 3 WHERE seq = 99",
        )
        .await;
        assert_eq!(fault(&f, None).await, AuditFault::Unlinked { seq: 2 });

        let f = chain(2).await;
        f.tamper(
            "INSERT INTO audit SELECT 3, at, actor, 'forged', target, decision, rules, revision, operation,
                 detail, hash, hash FROM audit WHERE seq = 2",
        )
        .await;
        assert_eq!(fault(&f, None).await, AuditFault::Edited { seq: 3 });
    }

    #[tokio::test]
    async fn a_cut_tail_is_noticed_by_the_head_and_a_cut_head_too_by_an_anchor() {
        let f = chain(5).await;
        let anchor = f.store.audit_head().await.unwrap();
        f.tamper("DELETE FROM audit WHERE seq > 3").await;
        assert_eq!(fault(&f, None).await, AuditFault::Truncated { found: 3, expected: 5 });
        f.tamper("UPDATE audit_head SET seq = 3, hash = (SELECT hash FROM audit WHERE seq = 3)").await;
        assert!(matches!(f.store.audit_verify(None).await.unwrap(), AuditVerdict::Intact(_)));
        assert_eq!(fault(&f, Some(anchor)).await, AuditFault::Truncated { found: 3, expected: 5 });
        for n in 0..3 {
            f.store.audit_entry(entry(&format!("rewritten-{n}"))).await.unwrap();
        }
        assert_eq!(fault(&f, Some(anchor)).await, AuditFault::AnchorMismatch { anchor });
    }

    #[tokio::test]
    async fn a_cut_front_is_noticed_unless_a_row_attests_it() {
        let f = chain(5).await;
        f.tamper("DELETE FROM audit WHERE seq <= 2").await;
        assert_eq!(fault(&f, None).await, AuditFault::Missing { from: 1, to: 2 });
        let f = chain(5).await;
        f.tamper(
            "UPDATE audit_checkpoint SET seq = 2, hash = (SELECT hash FROM audit WHERE seq = 2);
             DELETE FROM audit WHERE seq <= 2",
        )
        .await;
        assert_eq!(fault(&f, None).await, AuditFault::UnattestedCheckpoint { seq: 2 });
    }

    #[tokio::test]
    async fn our_own_sql_cannot_edit_a_row_by_mistake() {
        let f = chain(1).await;
        let edit = |tx: &crate::Tx<'_>| tx.execute("edit", "UPDATE audit SET detail = 'x'", []);
        assert!(f.store.transaction(edit).await.is_err());
    }

    #[test]
    fn a_head_round_trips_as_text() {
        let head = AuditHead { seq: 7, hash: [0xAB; 32] };
        assert_eq!(head.to_string().parse::<AuditHead>().unwrap(), head);
        for bad in ["", "7", "7:ab", "x:00"] {
            assert!(bad.parse::<AuditHead>().is_err(), "{bad:?}");
        }
    }
}
