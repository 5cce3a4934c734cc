//! What was run in VMs: a row for each process and each piece of code, begun and ended with its operation.
//!
//! ```text
//! begin_operation + begin_history --> (runs) --> put_output + end_operation      each pair in one transaction
//! ```
//! However an operation ends, its row ends with it, so nothing seems to run that has ended. A row is marked when a rollback
//! takes back what it did, and never deleted for it; it goes by retention only.

use crate::{
    StoreError, Tx, View,
    row::{json, json_option, named, parsed, parsed_option, time, time_option, to_json},
};
use jiff::Timestamp;
use offshoot_types::{
    Actor, AgentName, ContextName, EventId, ExecStatus, Labels, Operation, OperationId, OperationKind,
    OperationOutcome, OperationState, Owner, SnapshotId, TransactionId, VmId, VmName,
};
use rusqlite::{Row, params};
use std::time::Duration;

/// Bytes of a command line or of code that a row keeps.
pub const KEPT_WHAT: usize = 16 * 1024;
/// Bytes that a row keeps of each end of a stream.
pub const KEPT_END: usize = 8 * 1024;
/// Bytes that a row keeps of an error, and of a value.
pub const KEPT_TEXT: usize = 4 * 1024;

/// What is known when it begins; the rest is known of its operation and its VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHistory {
    pub operation: OperationId,
    pub agent: Option<AgentName>,
    /// The command line or the code; at most [`KEPT_WHAT`] bytes of it are kept.
    pub what: String,
    pub language: Option<String>,
    pub context: Option<ContextName>,
    pub user: String,
    pub cwd: Option<String>,
    pub transaction: Option<TransactionId>,
}

/// What is known when it has ended, besides what its operation says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryEnd {
    /// As measured in the guest.
    pub wall: Option<Duration>,
    /// As the guest said it, where that was not known before.
    pub language: Option<String>,
    pub interrupted: bool,
    /// At most [`KEPT_TEXT`] bytes of each are kept.
    pub error: Option<String>,
    pub result: Option<String>,
    /// `None`: nobody knows what it said.
    pub output: Option<HistoryOutput>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryOutput {
    /// The guest dropped what was beyond the caller's own limit.
    pub truncated: bool,
    pub stdout: HistoryStream,
    pub stderr: HistoryStream,
}

/// One stream of a program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryStream {
    /// How much of it there was.
    pub bytes: u64,
    /// How much of that nobody read, and so nobody has.
    pub lost: u64,
    /// How many of the bytes that were read are in a file, from the first on.
    pub file: u64,
    /// BLAKE3 of all of it, if all of it was read.
    pub hash: Option<[u8; 32]>,
    /// Its beginning: all that was read, or [`KEPT_END`] bytes; nothing if output is not kept.
    pub head: Vec<u8>,
    /// The last [`KEPT_END`] bytes, or as many as there are beyond the beginning.
    pub tail: Vec<u8>,
}

/// One run as it stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRecord {
    pub operation: OperationId,
    pub owner: Owner,
    /// `Exec` or `Context`.
    pub kind: OperationKind,
    pub vm: VmId,
    /// Then.
    pub vm_name: VmName,
    pub actor: Actor,
    pub agent: Option<AgentName>,
    pub what: String,
    /// More than `what` has if that is cut.
    pub what_bytes: u64,
    pub language: Option<String>,
    pub context: Option<ContextName>,
    pub user: String,
    pub cwd: Option<String>,
    pub transaction: Option<TransactionId>,
    /// The nearest state before it that is kept.
    pub before: Option<SnapshotId>,
    /// Nothing had changed the VM between that and its beginning.
    pub exact: bool,
    /// The first state that was kept after it had ended and before it was taken back.
    pub after: Option<SnapshotId>,
    /// Its place in the order of all that happened.
    pub begun: EventId,
    pub started: Timestamp,
    /// `None` while it runs.
    pub ended: Option<Timestamp>,
    /// It did not succeed, or nobody knows whether it did. `None` while it runs.
    pub failed: Option<bool>,
    pub wall: Option<Duration>,
    pub status: Option<ExecStatus>,
    pub state: OperationState,
    pub interrupted: bool,
    pub error: Option<String>,
    pub result: Option<String>,
    pub undone_by: Option<OperationId>,
    /// What it said; without the bytes themselves unless they were asked for.
    pub output: Option<HistoryOutput>,
}

/// Of `h`, one row of the history.
pub(crate) const COLUMNS: &str = "h.*, o.actor AS actor, o.state AS state, o.exec_status AS exec_status,
    (SELECT undone_by FROM undone_operations u WHERE u.operation = h.operation AND u.until IS NULL) AS undone_by,
    (SELECT s.id FROM snapshots s WHERE s.vm = h.vm AND s.taken > h.ended_at AND s.origin <> 'rebase'
        AND s.taken < coalesce((SELECT min(since) FROM undone_operations u WHERE u.operation = h.operation),
            9223372036854775807)
     ORDER BY s.taken LIMIT 1) AS after_snapshot,
    w.operation AS said, w.truncated, w.stdout_bytes, w.stdout_lost, w.stdout_file, w.stdout_hash,
    w.stderr_bytes, w.stderr_lost, w.stderr_file, w.stderr_hash";
/// The bytes of its streams, which take a while to read.
pub(crate) const BYTES: &str = ", w.stdout_head, w.stdout_tail, w.stderr_head, w.stderr_tail";
pub(crate) const JOINED: &str = "LEFT JOIN operations o ON o.id = h.operation
    LEFT JOIN history_output w ON w.operation = h.operation";

pub(crate) fn from_row(row: &Row<'_>, bytes: bool) -> Result<HistoryRecord, rusqlite::Error> {
    let said: Option<String> = row.get("said")?;
    Ok(HistoryRecord {
        operation: parsed(row, "operation")?,
        owner: parsed(row, "owner")?,
        kind: named(row, "kind")?,
        vm: parsed(row, "vm")?,
        vm_name: parsed(row, "vm_name")?,
        actor: json(row, "actor")?,
        agent: parsed_option(row, "agent")?,
        what: row.get("what")?,
        what_bytes: row.get("what_bytes")?,
        language: row.get("language")?,
        context: parsed_option(row, "context")?,
        user: row.get("user")?,
        cwd: row.get("cwd")?,
        transaction: parsed_option(row, "transaction_id")?,
        before: parsed_option(row, "snapshot")?,
        exact: row.get("exact")?,
        after: parsed_option(row, "after_snapshot")?,
        begun: EventId(row.get("begun")?),
        started: time(row, "started")?,
        ended: time_option(row, "ended")?,
        failed: row.get("failed")?,
        wall: row.get::<_, Option<u64>>("wall")?.map(Duration::from_micros),
        status: json_option(row, "exec_status")?,
        state: json(row, "state")?,
        interrupted: row.get("interrupted")?,
        error: row.get("error")?,
        result: row.get("result")?,
        undone_by: parsed_option(row, "undone_by")?,
        output: said.map(|_| output(row, bytes)).transpose()?,
    })
}

fn output(row: &Row<'_>, bytes: bool) -> Result<HistoryOutput, rusqlite::Error> {
    let ends = |column: &str| if bytes { row.get(column) } else { Ok(Vec::new()) };
    Ok(HistoryOutput {
        truncated: row.get("truncated")?,
        stdout: HistoryStream {
            bytes: row.get("stdout_bytes")?,
            lost: row.get("stdout_lost")?,
            file: row.get("stdout_file")?,
            hash: row.get("stdout_hash")?,
            head: ends("stdout_head")?,
            tail: ends("stdout_tail")?,
        },
        stderr: HistoryStream {
            bytes: row.get("stderr_bytes")?,
            lost: row.get("stderr_lost")?,
            file: row.get("stderr_file")?,
            hash: row.get("stderr_hash")?,
            head: ends("stderr_head")?,
            tail: ends("stderr_tail")?,
        },
    })
}

/// The beginning of a text, of at most so many bytes and of whole characters.
fn cut(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    // A character has at most four bytes.
    let end = (most.saturating_sub(3)..=most).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

impl View<'_> {
    /// One run, with what it said as far as the row has it.
    pub fn history_entry(&self, id: OperationId) -> Result<Option<HistoryRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS}{BYTES} FROM history h {JOINED} WHERE h.operation = ?1");
        self.one("read the history", &sql, params![id.to_string()], |row| from_row(row, true))
    }

    /// Whether nothing changed a VM since a snapshot, but what began after `but` or was taken back.
    fn unchanged(&self, vm: VmId, since: SnapshotId, but: OperationId) -> Result<bool, StoreError> {
        // Two questions, each with an index of its own: what began since, and what began before and still runs.
        for when in
            ["begun > (SELECT taken FROM snapshots WHERE id = ?2)", "?2 IS NOT NULL AND phase <> 'ended'"]
        {
            let sql = format!(
                "SELECT 1 FROM operations WHERE vm = ?1 AND id <> ?3 AND {when}
                    AND kind IN ('exec', 'write-files', 'context', 'stop', 'restart') AND NOT EXISTS (
                        SELECT 1 FROM undone_operations WHERE operation = operations.id AND until IS NULL)
                 LIMIT 1"
            );
            let params = params![vm.to_string(), since.to_string(), but.to_string()];
            if self.one("look for changes since a snapshot", &sql, params, |_| Ok(()))?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Tx<'_> {
    /// Writes down what an operation is to run. Call it in the transaction that begins the operation, whose VM it is run
    /// in.
    pub fn begin_history(&self, new: &NewHistory) -> Result<(), StoreError> {
        let operation = self.expect_unfinished(new.operation)?;
        let vm = operation.vm.ok_or_else(|| StoreError::Invalid {
            what: "history",
            detail: format!("operation {} is of no VM", operation.id),
        })?;
        let record = self.expect_vm(vm)?;
        let exact = match record.position {
            Some(snapshot) => self.unchanged(vm, snapshot, operation.id)?,
            None => false,
        };
        let sql = "INSERT INTO history (operation, owner, labels, node, kind, vm, vm_name, agent, begun, started,
                language, context, user, cwd, transaction_id, snapshot, exact, what_bytes, what)
            SELECT id, owner, ?2, node, kind, vm, ?3, ?4, begun, created, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13
            FROM operations WHERE id = ?1";
        let params = params![
            operation.id.to_string(),
            to_json(&Labels::new()),
            record.name.as_str(),
            new.agent.as_ref().map(AgentName::as_str),
            new.language,
            new.context.as_ref().map(ContextName::as_str),
            new.user,
            new.cwd,
            new.transaction.map(|transaction| transaction.to_string()),
            record.position.map(|snapshot| snapshot.to_string()),
            exact,
            new.what.len(),
            cut(&new.what, KEPT_WHAT),
        ];
        self.execute("begin a row of the history", sql, params).map(drop)
    }

    /// Writes down what is known of a run that ends. Call it in the transaction that ends its operation, before that. Of an
    /// operation without a history, of an earlier version for one, nothing is written.
    pub fn put_history(&self, operation: OperationId, end: &HistoryEnd) -> Result<(), StoreError> {
        let id = operation.to_string();
        let sql =
            "UPDATE history SET wall = ?2, language = coalesce(?3, language), interrupted = ?4, error = ?5,
            result = ?6 WHERE operation = ?1";
        let micros = |wall: Duration| i64::try_from(wall.as_micros()).unwrap_or(i64::MAX);
        let kept = |text: &Option<String>| text.as_deref().map(|text| cut(text, KEPT_TEXT).to_owned());
        let params = params![
            id,
            end.wall.map(micros),
            end.language,
            end.interrupted,
            kept(&end.error),
            kept(&end.result)
        ];
        if self.execute("complete a row of the history", sql, params)? == 0 {
            return Ok(());
        }
        let Some(HistoryOutput { truncated, stdout, stderr }) = &end.output else { return Ok(()) };
        let sql = "INSERT OR REPLACE INTO history_output (operation, truncated, stdout_bytes, stdout_lost, stdout_file,
                stderr_bytes, stderr_lost, stderr_file, stdout_hash, stderr_hash, stdout_head, stdout_tail, stderr_head,
                stderr_tail)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
        let params = params![
            id,
            truncated,
            stdout.bytes,
            stdout.lost,
            stdout.file,
            stderr.bytes,
            stderr.lost,
            stderr.file,
            stdout.hash,
            stderr.hash,
            stdout.head,
            stdout.tail,
            stderr.head,
            stderr.tail,
        ];
        self.execute("keep what a program said", sql, params).map(drop)
    }

    /// The row of an operation that has this outcome, told by this event.
    pub(crate) fn end_history(
        &self,
        operation: &Operation,
        outcome: &OperationOutcome,
        event: EventId,
    ) -> Result<(), StoreError> {
        if !matches!(operation.kind, OperationKind::Exec | OperationKind::Context) {
            return Ok(());
        }
        // One that was carried out succeeded if it says so; of one that was not, nobody can say that it did.
        let unsaid = !matches!(outcome, OperationOutcome::Done);
        let failed = matches!(outcome, OperationOutcome::Failed { .. });
        let sql = "UPDATE history SET ended = ?2, ended_at = ?3, failed = max(?4, interrupted, coalesce(
                (SELECT exec_status <> ?5 FROM operations WHERE id = ?1), ?6))
            WHERE operation = ?1 AND ended IS NULL";
        let success = to_json(&ExecStatus::Exited(0));
        let params = params![operation.id.to_string(), self.now_micros(), event.0, failed, success, unsaid];
        self.execute("end a row of the history", sql, params).map(drop)
    }
}

impl HistoryRecord {
    /// How long it took: as measured in the guest, else by our clock. `None` while it runs.
    pub fn duration(&self) -> Option<Duration> {
        let ours =
            || self.ended.map(|ended| ended.duration_since(self.started).try_into().unwrap_or_default());
        self.wall.or_else(ours)
    }
}
