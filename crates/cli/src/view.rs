//! VMs, events and sizes as text.

use crate::{duration::Span, printer::visible};
use jiff::Timestamp;
use offshoot_api::v1::{Daemon, Event, EventDetail, LastStart, Life, OutcomeName, Pool, TransactionEnd, Vm};
use offshoot_types::{AutoSnapshot, Bytes, StartedFrom};
use std::{fmt::Write, time::Duration};

/// Columns padded to their widest cell, two blanks between them.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| visible(&cell).into_owned()).collect());
    }

    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// One line per VM.
pub fn vm_table(vms: &[Vm], now: Timestamp) -> String {
    let heading = ["NAME", "STATE", "IMAGE", "ISOLATION", "MEMORY", "CPUS", "SNAPSHOTS", "CREATED"];
    let mut table = Table::new(&heading);
    for vm in vms {
        table.row([
            vm.name.to_string(),
            match vm.transaction {
                Some(_) => format!("{}, in transaction", vm.state),
                None => vm.state.to_string(),
            },
            vm.image.to_string(),
            vm.isolation.to_string(),
            mebibytes(vm.memory_mib),
            vm.cpus.to_string(),
            vm.snapshots.map_or_else(|| "-".into(), |count| count.to_string()),
            format!("{} ago", age(vm.created, now)),
        ]);
    }
    table.render()
}

/// Everything known of one VM, a line each.
pub fn vm_details(vm: &Vm, now: Timestamp) -> String {
    let mut lines =
        vec![("name", vm.name.to_string()), ("id", vm.id.to_string()), ("state", vm.state.to_string())];
    if let Some(failure) = &vm.failure {
        lines.push(("failed at", failure.step.clone()));
        lines.push(("because", failure.reason.clone()));
    }
    lines.push(("generation", vm.generation.to_string()));
    lines.push(("image", format!("{} ({})", vm.image, vm.image_digest.short())));
    lines.push(("runs on", format!("{}, isolation {}", vm.provider, vm.isolation)));
    lines.push((
        "resources",
        format!("{} memory, {} cpus, {} disk", mebibytes(vm.memory_mib), vm.cpus, mebibytes(vm.disk_mib)),
    ));
    if let Some(guest) = &vm.guest {
        lines.push(("guest", format!("kernel {}, {:?}", guest.kernel, guest.health).to_lowercase()));
    }
    if let Some(usage) = &vm.usage {
        let own = usage
            .own_memory_bytes
            .map_or_else(String::new, |own| format!("; a snapshot copies {} of its memory", size(own)));
        let (pss, cpu) = (size(usage.pss_bytes), usage.cpu_ms as f64 / 1000.0);
        lines.push(("uses", format!("{pss} of host memory, {cpu:.1} s of CPU{own}")));
    }
    if let Some(open) = &vm.transaction {
        let left = (open.deadline.as_second() - now.as_second()).max(0);
        lines.push(("transaction", format!("{}, rolled back in {left} s unless it ends before", open.id)));
    }
    if let Some(count) = vm.snapshots.filter(|count| *count > 0) {
        lines.push(("snapshots", format!("{count}: `offshoot snapshot list {}` shows them", vm.name)));
    }
    let policy = vm.snapshot_policy;
    if policy.mode != AutoSnapshot::Never || policy.auto_rollback {
        let back = if policy.auto_rollback { ", and back to it when one fails" } else { "" };
        let when = match policy.mode {
            AutoSnapshot::Never | AutoSnapshot::BeforeExec => "before each command",
            AutoSnapshot::OnFailure if policy.auto_rollback => "before each command and after one that fails",
            AutoSnapshot::OnFailure => "after each command that fails",
            AutoSnapshot::BeforeRisky => "before each command that looks risky",
        };
        lines.push(("policy", format!("a snapshot {when}{back}")));
    }
    if let Some(span) = vm.life.idle_suspend_ms {
        lines.push(("when idle", format!("suspended after {}", span_of(span))));
    }
    if let Some(when) = time_is_up(&vm.life, now) {
        lines.push(("lifetime", when));
    }
    if let Some(snapshot) = vm.suspended_to {
        lines.push(("continues", format!("from snapshot {snapshot} when it is started")));
    }
    if let Some(start) = &vm.last_start {
        lines.push(("begun from", begun_from(start)));
    }
    if let Some(said) = &vm.attestations {
        lines.push(("renewed", crate::branches::attested(said)));
    }
    if !vm.labels.is_empty() {
        let labels: Vec<String> = vm.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        lines.push(("labels", labels.join(" ")));
    }
    lines.push(("created", format!("{} ({} ago)", seconds(vm.created), age(vm.created, now))));
    if let Some(started) = vm.started_at {
        lines.push(("started", format!("{} ({} ago)", seconds(started), age(started, now))));
    }
    fields(&lines)
}

/// When a VM rests by itself, a line each.
pub fn life_details(life: &Life, now: Timestamp) -> String {
    fields(&[
        ("idle-suspend", life.idle_suspend_ms.map_or_else(|| "never".into(), span_of)),
        ("wake", life.wake.to_string()),
        ("lifetime", time_is_up(life, now).unwrap_or_else(|| "never ends".into())),
    ])
}

/// `2h, then suspend, in 57 min`.
fn time_is_up(life: &Life, now: Timestamp) -> Option<String> {
    let span = span_of(life.timeout_ms?);
    let left = life.deadline.map_or_else(String::new, |deadline| format!(", in {}", age(now, deadline)));
    Some(format!("{span}, then {}{left}", life.on_timeout))
}

fn span_of(milliseconds: u64) -> String {
    Span(Duration::from_millis(milliseconds)).to_string()
}

/// What a VM's process was begun from, and why not from the pool.
fn begun_from(start: &LastStart) -> String {
    let from = match start.from {
        StartedFrom::Pool => "the warm pool",
        StartedFrom::Template => "its image's template",
        StartedFrom::Snapshot => "a snapshot",
        StartedFrom::Boot => "its image's kernel",
    };
    match &start.not_pooled {
        Some(why) => format!("{from}; not from the pool: {why}"),
        None => from.into(),
    }
}

/// The pool in a line, and one more for each kind of VM that has something ready or in trouble.
fn pool_lines(pool: &Pool) -> Vec<(&'static str, String)> {
    let size = match (pool.most, pool.fixed) {
        (0, _) => "off".to_owned(),
        (count, true) => format!("{count} of each kind"),
        (most, false) => format!("up to {most} of each kind"),
    };
    let none = if pool.most > 0 && pool.shelves.is_empty() { ", none wanted yet" } else { "" };
    let mut lines = vec![("pool", format!("{size}{none}"))];
    for shelf in &pool.shelves {
        let making = if shelf.making { ", one is being made" } else { "" };
        let trouble = shelf.trouble.as_ref().map_or_else(String::new, |why| format!("; {why}"));
        let kind = format!(
            "{}, {} memory, {} cpus, {} disk",
            shelf.image_digest.short(),
            mebibytes(shelf.memory_mib),
            shelf.cpus,
            mebibytes(shelf.disk_mib)
        );
        let counts = format!("{} claimed, {} missed", shelf.claimed, shelf.missed);
        let (ready, target) = (shelf.ready, shelf.target);
        lines.push(("", format!("{kind}: {ready} of {target} ready{making}, {counts}{trouble}")));
    }
    lines
}

/// The daemon and what keeps it busy.
pub fn daemon_details(daemon: &Daemon) -> String {
    let record = &daemon.record;
    let mut lines = vec![
        ("daemon", format!("process {}, {}, version {}", record.pid, record.mode.as_str(), record.version)),
        ("since", seconds(record.started)),
        ("socket", record.socket.display().to_string()),
        ("state", record.state_dir.display().to_string()),
        ("images", daemon.images_dir.display().to_string()),
        ("vms", format!("{}, of which {} have a process", daemon.vms, daemon.live_vms)),
        ("busy with", format!("{} operations, {} processes", daemon.operations, daemon.execs)),
    ];
    lines.extend(pool_lines(&daemon.pool));
    fields(&lines)
}

/// `key  value` lines, aligned.
pub fn fields(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    lines.iter().map(|(key, value)| format!("{key:<width$}  {}\n", visible(value))).collect()
}

/// One event on one line.
pub fn event_line(event: &Event) -> String {
    let subject = match &event.vm_name {
        Some(name) => format!("`{name}` "),
        None => String::new(),
    };
    let what = match &event.detail {
        EventDetail::StateChanged { from, to, generation, reason, failure } => {
            let from = from.map_or_else(String::new, |from| format!("{from} -> "));
            let failure = failure.as_ref().map_or_else(String::new, |failure| {
                format!(", failed at {}: {}", failure.step, failure.reason)
            });
            format!("{from}{to} (generation {generation}): {reason}{failure}")
        }
        EventDetail::OperationStarted { kind } => format!("{kind} begun by {}", event.actor),
        EventDetail::OperationEnded { kind, outcome, problem } => {
            let outcome = match outcome {
                OutcomeName::Done => "done",
                OutcomeName::Failed => "failed",
                OutcomeName::Interrupted => "interrupted",
            };
            let problem =
                problem.as_ref().map_or_else(String::new, |problem| format!(": {}", problem.message));
            format!("{kind} {outcome}{problem}")
        }
        EventDetail::GuestHealth { responsive: true } => "the guest answers".into(),
        EventDetail::GuestHealth { responsive: false } => "the guest does not answer".into(),
        EventDetail::SnapshotTaken { snapshot, name, origin } => {
            let name = name.as_ref().map_or_else(String::new, |name| format!(" `{name}`"));
            format!("{origin} snapshot{name} taken: {snapshot}")
        }
        EventDetail::SnapshotChanged { snapshot, state, origin } => {
            format!("{origin} snapshot {snapshot} is {state}")
        }
        EventDetail::SnapshotRemoved { snapshot } => format!("snapshot {snapshot} removed"),
        EventDetail::RolledBack { to, undo, generation } => {
            let undo = undo.map_or_else(String::new, |undo| format!(", left behind as {undo}"));
            format!("continues from snapshot {to} (generation {generation}){undo}")
        }
        EventDetail::Rebased { onto, generation } => {
            format!("goes on over the memory of {onto} (generation {generation})")
        }
        EventDetail::Forked { from } => format!("forked from snapshot {from}"),
        EventDetail::TransactionBegun { transaction } => format!("transaction {transaction} begun"),
        EventDetail::TransactionEnded { transaction, end } => {
            format!("transaction {transaction} {}", ended(end))
        }
        EventDetail::Warning { message } => format!("warning: {message}"),
    };
    visible(&format!("{} {subject}{what}", seconds(event.at))).replace('\n', " ")
}

/// How a transaction ended: `committed`, `rolled back: the command exited with 1`.
pub fn ended(end: &TransactionEnd) -> String {
    match (end.committed, &end.reason) {
        (true, _) => "committed".into(),
        (false, Some(reason)) => format!("rolled back: {reason}"),
        (false, None) => "rolled back".into(),
    }
}

/// A size with one unit, rounded: `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    match [("GiB", 30), ("MiB", 20), ("KiB", 10)].into_iter().find(|(_, shift)| bytes >= 1 << shift) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

pub fn mebibytes(mib: u64) -> String {
    Bytes(mib.saturating_mul(1 << 20)).to_string()
}

pub fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// How long ago, in the largest unit that fits. A clock that went back reads as `0 s`.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = (now.as_second() - then.as_second()).max(0);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_guest_words_cannot_move_the_cursor() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(["a-long-name".into(), "running".into()]);
        table.row(["b".into(), "x\x1b[2J".into()]);
        insta::assert_snapshot!(table.render(), @r"
        NAME         STATE
        a-long-name  running
        b            x\u{1b}[2J
        ");
    }

    #[test]
    fn ages_and_sizes_read_naturally() {
        let then = Timestamp::UNIX_EPOCH;
        let after = |seconds| age(then, Timestamp::from_second(seconds).unwrap());
        assert_eq!((after(5), after(600)), ("5 s".into(), "10 min".into()));
        assert_eq!((after(7200), after(300_000)), ("2 h".into(), "3 days".into()));
        assert_eq!(age(Timestamp::from_second(9).unwrap(), then), "0 s");
        assert_eq!(
            (size(12), size(1536), size(3 << 29)),
            ("12 B".into(), "1.5 KiB".into(), "1.5 GiB".into())
        );
    }

    #[test]
    fn an_event_is_one_line_whatever_its_words_hold() {
        let event: Event = serde_json::from_str(
            r#"{"id":1,"at":"2025-01-02T03:04:05Z","owner":"local","vm_name":"web","actor":"uid:0",
                "event":"state-changed","from":"starting","to":"failed","generation":3,
                "reason":"boot\nfailed","failure":{"reason":"no kernel","step":"start/boot"}}"#,
        )
        .unwrap();
        insta::assert_snapshot!(event_line(&event), @"2025-01-02 03:04:05Z `web` starting -> failed (generation 3): boot failed, failed at start/boot: no kernel");
    }
}
