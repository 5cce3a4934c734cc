//! Audit rows: who was allowed or refused what, by which rules, and what came of it. Appended only.

use crate::{
    AuditHead, StoreError, Tx, View,
    audit_chain::{Link, link_hash},
    row::{hash, json, named, parsed_option, time, to_json, to_name},
};
use jiff::Timestamp;
use offshoot_types::{Actor, OperationId};
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditDecision {
    Permit,
    Deny,
    Require,
    /// Nothing was decided: a consequence of an earlier decision, or an observation.
    Recorded,
}

impl AuditDecision {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permit => "permit",
            Self::Deny => "deny",
            Self::Require => "require",
            Self::Recorded => "recorded",
        }
    }
}
impl fmt::Display for AuditDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a new audit row says; the store adds time, operation and the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    pub actor: Actor,
    pub action: String,
    pub target: String,
    pub decision: AuditDecision,
    pub rules: Vec<String>,
    /// The policy revision that decided; empty if nothing was decided.
    pub revision: String,
    pub detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    pub seq: u64,
    pub at: Timestamp,
    pub operation: Option<OperationId>,
    pub entry: AuditEntry,
    pub hash: [u8; 32],
}

fn from_row(row: &Row<'_>) -> Result<AuditRow, rusqlite::Error> {
    Ok(AuditRow {
        seq: row.get("seq")?,
        at: time(row, "at")?,
        operation: parsed_option(row, "operation")?,
        entry: AuditEntry {
            actor: json(row, "actor")?,
            action: row.get("action")?,
            target: row.get("target")?,
            decision: named(row, "decision")?,
            rules: json(row, "rules")?,
            revision: row.get("revision")?,
            detail: row.get("detail")?,
        },
        hash: hash(row, "hash")?,
    })
}

impl View<'_> {
    /// Audit rows after `after`, oldest first.
    pub fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        let sql = "SELECT seq, at, actor, action, target, decision, rules, revision, operation, detail, hash
            FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        self.many("read the audit", sql, params![after, limit], from_row)
    }

    /// Where the chain ends. Kept elsewhere, it proves later that nothing before it was changed or cut off.
    pub fn audit_head(&self) -> Result<AuditHead, StoreError> {
        let sql = "SELECT seq, hash FROM audit_head";
        let head = self.one("read the audit head", sql, [], |row| {
            Ok(AuditHead { seq: row.get("seq")?, hash: hash(row, "hash")? })
        })?;
        Ok(head.unwrap_or(AuditHead::EMPTY))
    }
}

impl Tx<'_> {
    /// Appends an audit row of its own, for what has no operation: a denial, above all.
    pub fn audit_entry(&self, entry: &AuditEntry) -> Result<AuditHead, StoreError> {
        self.append_audit(entry, None)
    }

    pub(crate) fn append_audit(
        &self,
        entry: &AuditEntry,
        operation: Option<OperationId>,
    ) -> Result<AuditHead, StoreError> {
        let before = self.audit_head()?;
        // Hashed as stored: verification never depends on how a later version writes JSON.
        let link = Link {
            seq: before.seq + 1,
            at: self.now_micros(),
            actor: to_json(&entry.actor),
            action: entry.action.clone(),
            target: entry.target.clone(),
            decision: to_name(&entry.decision),
            rules: to_json(&entry.rules),
            revision: entry.revision.clone(),
            operation: operation.map(|id| id.to_string()),
            detail: entry.detail.clone(),
        };
        let hash = link_hash(&before.hash, &link);
        let sql = "INSERT INTO audit (seq, at, actor, action, target, decision, rules, revision, operation,
                detail, prev_hash, hash)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
        let params = params![
            link.seq,
            link.at,
            link.actor,
            link.action,
            link.target,
            link.decision,
            link.rules,
            link.revision,
            link.operation,
            link.detail,
            before.hash,
            hash,
        ];
        self.execute("append to the audit", sql, params)?;
        self.execute(
            "advance the audit head",
            "UPDATE audit_head SET seq = ?1, hash = ?2",
            params![link.seq, hash],
        )?;
        Ok(AuditHead { seq: link.seq, hash })
    }
}
