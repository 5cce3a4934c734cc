//! State that branches, as text: snapshots, what guests attest, rollbacks, transactions, live contexts.

use crate::view::{Table, age, ended, fields, mebibytes, seconds, size};
use jiff::Timestamp;
use offshoot_api::v1::{Attestations, LiveContext, Reseeded, RolledBack, Snapshot, Transaction};
use offshoot_types::{SnapshotId, SnapshotKind};
use std::collections::HashSet;

/// How a snapshot is named on the command line: `web@before`, or its id.
pub fn reference(snapshot: &Snapshot) -> String {
    match &snapshot.name {
        Some(name) => format!("{}@{name}", snapshot.vm_name),
        None => snapshot.id.to_string(),
    }
}

/// One line per snapshot.
pub fn table(snapshots: &[Snapshot], now: Timestamp) -> String {
    let mut table = Table::new(&HEADING);
    for snapshot in snapshots {
        table.row(cells(snapshot, now, ""));
    }
    table.render()
}

/// The same, each below the one it came of.
pub fn tree(snapshots: &[Snapshot], now: Timestamp) -> String {
    let mut table = Table::new(&HEADING);
    let known: HashSet<SnapshotId> = snapshots.iter().map(|snapshot| snapshot.id).collect();
    let is_root = |snapshot: &&Snapshot| snapshot.parent.is_none_or(|parent| !known.contains(&parent));
    // Not by recursion: a chain may be as long as a VM's life.
    let mut ahead: Vec<(&Snapshot, String, String)> = Vec::new();
    ahead.extend(snapshots.iter().filter(is_root).rev().map(|root| (root, String::new(), String::new())));
    while let Some((snapshot, mark, indent)) = ahead.pop() {
        table.row(cells(snapshot, now, &mark));
        let children: Vec<&Snapshot> =
            snapshots.iter().filter(|other| other.parent == Some(snapshot.id)).collect();
        let last = children.len().saturating_sub(1);
        let below = |(index, child)| match index == last {
            true => (child, format!("{indent}└ "), format!("{indent}  ")),
            false => (child, format!("{indent}├ "), format!("{indent}│ ")),
        };
        ahead.extend(children.into_iter().enumerate().map(below).rev());
    }
    table.render()
}

const HEADING: [&str; 6] = ["SNAPSHOT", "KIND", "ORIGIN", "STATE", "SIZE", "CREATED"];

fn cells(snapshot: &Snapshot, now: Timestamp, mark: &str) -> [String; 6] {
    let current = if snapshot.current { " *" } else { "" };
    [
        format!("{mark}{}{current}", reference(snapshot)),
        kind(snapshot).into(),
        snapshot.origin.to_string(),
        snapshot.state.to_string(),
        size(snapshot.size_bytes),
        format!("{} ago", age(snapshot.created, now)),
    ]
}

fn kind(snapshot: &Snapshot) -> &'static str {
    match (snapshot.kind, snapshot.quiesced) {
        (SnapshotKind::DiskOnly, _) => "disk",
        (SnapshotKind::Full, true) => "full",
        (SnapshotKind::Full, false) => "full, unquiesced",
    }
}

/// Everything known of one snapshot, a line each.
pub fn details(snapshot: &Snapshot, now: Timestamp) -> String {
    let mut lines = vec![("snapshot", reference(snapshot)), ("id", snapshot.id.to_string())];
    lines.push(("of", format!("{} ({})", snapshot.vm_name, snapshot.vm)));
    lines.push(("kind", kind(snapshot).into()));
    lines.push(("origin", snapshot.origin.to_string()));
    lines.push(("state", snapshot.state.to_string()));
    if let Some(parent) = snapshot.parent {
        lines.push(("parent", parent.to_string()));
    }
    if snapshot.current {
        lines.push(("current", "the VM continues from it".into()));
    }
    let memory = mebibytes(snapshot.memory_mib);
    lines.push(("size", format!("{}, of a VM with {memory} of memory", size(snapshot.size_bytes))));
    lines.push(("created", format!("{} ({} ago)", seconds(snapshot.created), age(snapshot.created, now))));
    if let Some(note) = &snapshot.note {
        lines.push(("note", note.clone()));
    }
    fields(&lines)
}

/// What a guest said was renewed in it, on one line.
pub fn attested(said: &Attestations) -> String {
    let mut parts = vec![
        format!("random {}", reseeded(&said.kernel_random)),
        format!("clock within {:.1} ms", said.clock_offset_ns.unsigned_abs() as f64 / 1e6),
        format!("hostname {}", said.hostname),
        format!("machine id {}", said.machine_id),
    ];
    if !said.ssh_host_keys.is_empty() {
        parts.push(format!("{} new ssh host keys", said.ssh_host_keys.len()));
    }
    for live in &said.interpreters {
        parts.push(format!("{} `{}` {}", live.language, live.context, reseeded(&live.random)));
    }
    parts.push(format!("{} connections cut", said.connections_dropped));
    if said.processes_not_reseeded > 0 {
        parts.push(format!("{} processes with random numbers of before", said.processes_not_reseeded));
    }
    for hook in said.hooks.iter().filter(|hook| hook.status != 0) {
        parts.push(format!("hook `{}` exited with {}", hook.name, hook.status));
    }
    parts.join(", ")
}

fn reseeded(random: &Reseeded) -> String {
    match random {
        Reseeded::Yes => "reseeded".into(),
        Reseeded::HostProvided => "from the host".into(),
        Reseeded::No { reason } => format!("not reseeded ({reason})"),
    }
}

/// What a rollback came to, for people; the VM's name is the data.
pub fn rolled_back(vm: &str, done: &RolledBack) -> String {
    let mut text = format!("`{vm}` continues from snapshot {}", done.to);
    match done.undone.len() {
        0 => {}
        1 => text += "; 1 command since is undone",
        count => text += &format!("; {count} commands since are undone"),
    }
    if done.undo.is_some() {
        text += &format!("\n`offshoot undo {vm}` takes that back");
    }
    text
}

/// One line per open transaction.
pub fn transactions(transactions: &[Transaction], now: Timestamp) -> String {
    let mut table = Table::new(&["TRANSACTION", "SAVEPOINT OF", "STATE", "BEGUN", "ENDS IN"]);
    for open in transactions {
        table.row([
            open.id.to_string(),
            open.parent.map_or_else(|| "-".into(), |parent| parent.to_string()),
            open.end.as_ref().map_or_else(|| "open".into(), ended),
            format!("{} ago", age(open.begun, now)),
            age(now, open.deadline),
        ]);
    }
    table.render()
}

/// One line per live context.
pub fn contexts(contexts: &[LiveContext]) -> String {
    let mut table = Table::new(&["CONTEXT", "LANGUAGE", "STATE", "PID", "AGE"]);
    for live in contexts {
        let (now, then) = (Timestamp::UNIX_EPOCH, i64::try_from(live.age_ms / 1000).unwrap_or(i64::MAX));
        let then = Timestamp::from_second(-then).unwrap_or(now);
        table.row([
            live.context.to_string(),
            live.language.to_string(),
            if live.busy { "busy" } else { "idle" }.into(),
            live.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
            age(then, now),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: u8) -> String {
        format!("00000000-0000-7000-8000-00000000000{digit}")
    }

    fn snapshot(digit: u8, parent: Option<u8>, name: Option<&str>) -> Snapshot {
        serde_json::from_value(serde_json::json!({
            "id": id(digit), "name": name, "vm": id(9), "vm_name": "web", "kind": "full",
            "origin": if name.is_some() { "manual" } else { "auto" }, "state": "durable",
            "parent": parent.map(id), "quiesced": true, "size_bytes": 3 << 20, "memory_mib": 256,
            "current": digit == 4, "created": "1970-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(60).unwrap()
    }

    #[test]
    fn a_tree_shows_what_came_of_what_and_where_the_vm_is() {
        // The parent of 5 is removed: it stands by itself.
        let snapshots = [
            snapshot(1, None, Some("first")),
            snapshot(2, Some(1), None),
            snapshot(3, Some(2), Some("deep")),
            snapshot(4, Some(1), Some("second")),
            snapshot(5, Some(7), None),
        ];
        insta::assert_snapshot!(tree(&snapshots, now()), @r"
        SNAPSHOT                                KIND  ORIGIN  STATE    SIZE     CREATED
        web@first                               full  manual  durable  3.0 MiB  60 s ago
        ├ 00000000-0000-7000-8000-000000000002  full  auto    durable  3.0 MiB  60 s ago
        │ └ web@deep                            full  manual  durable  3.0 MiB  60 s ago
        └ web@second *                          full  manual  durable  3.0 MiB  60 s ago
        00000000-0000-7000-8000-000000000005    full  auto    durable  3.0 MiB  60 s ago
        ");
    }

    #[test]
    fn details_say_how_a_snapshot_is_named() {
        insta::assert_snapshot!(details(&snapshot(4, Some(1), Some("second")), now()), @r"
        snapshot  web@second
        id        00000000-0000-7000-8000-000000000004
        of        web (00000000-0000-7000-8000-000000000009)
        kind      full
        origin    manual
        state     durable
        parent    00000000-0000-7000-8000-000000000001
        current   the VM continues from it
        size      3.0 MiB, of a VM with 256M of memory
        created   1970-01-01 00:00:00Z (60 s ago)
        ");
    }

    #[test]
    fn what_a_guest_attests_is_one_line_with_every_gap_named() {
        let said: Attestations = serde_json::from_value(serde_json::json!({
            "kernel_random": {"reseeded": "yes"}, "clock_offset_ns": -1_500_000, "hostname": "web-1",
            "machine_id": "abc", "ssh_host_keys": ["SHA256:x"], "connections_dropped": 2,
            "interpreters": [
                {"context": "main", "language": "python", "random": {"reseeded": "yes"}},
                {"context": "js", "language": "javascript", "random": {"reseeded": "no", "reason": "busy"}},
            ],
            "processes_not_reseeded": 3, "took_us": 1000,
            "hooks": [{"name": "good", "status": 0}, {"name": "bad", "status": 7}],
        }))
        .unwrap();
        insta::assert_snapshot!(attested(&said), @"random reseeded, clock within 1.5 ms, hostname web-1, machine id abc, 1 new ssh host keys, python `main` reseeded, javascript `js` not reseeded (busy), 2 connections cut, 3 processes with random numbers of before, hook `bad` exited with 7");
    }
}
