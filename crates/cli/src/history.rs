//! What was run, in words.

use crate::view::{Table, age, fields, seconds, size};
use jiff::Timestamp;
use offshoot_api::v1::{
    ExitStatus, HistoryEntry, HistoryKind, HistoryOutput, HistoryStateName, Output, Replay,
};
use std::time::Duration;

/// Characters of a command in a table.
const WIDTH: usize = 48;

/// One line each.
pub fn table(entries: &[HistoryEntry], with_vm: bool, now: Timestamp) -> String {
    let heading = ["ID", "VM", "WHO", "WHAT", "EXIT", "TOOK", "AGO", "MARKS"];
    let with_vm = |column: &usize| with_vm || *column != 1;
    let heading: Vec<&str> =
        (0..heading.len()).filter(with_vm).filter_map(|column| heading.get(column).copied()).collect();
    let mut table = Table::new(&heading);
    for entry in entries {
        let cells = [
            entry.id.to_string(),
            entry.vm_name.to_string(),
            who(entry),
            first_line(&entry.what),
            exit(entry),
            entry.duration_us.map_or_else(|| "-".into(), took),
            age(entry.started, now),
            marks(entry),
        ];
        table.row(cells.into_iter().enumerate().filter(|(column, _)| with_vm(column)).map(|(_, cell)| cell));
    }
    table.render()
}

/// All that is known of one.
pub fn details(entry: &HistoryEntry) -> String {
    let mut lines = vec![
        ("id", entry.id.to_string()),
        ("vm", format!("{} {}", entry.vm_name, entry.vm)),
        ("actor", entry.actor.clone()),
    ];
    let mut add = |name, value: Option<String>| lines.extend(value.map(|value| (name, value)));
    add("agent", entry.agent.as_ref().map(ToString::to_string));
    add(
        "kind",
        Some(match entry.kind {
            HistoryKind::Exec => "exec".into(),
            HistoryKind::Code => "code".into(),
        }),
    );
    add("context", entry.context.as_ref().map(ToString::to_string));
    add("language", entry.language.clone());
    let cut = entry.what_bytes > entry.what.len() as u64;
    add("what", Some(entry.what.trim_end().to_owned()));
    add(
        "cut",
        cut.then(|| format!("{} of {} are shown", size(entry.what.len() as u64), size(entry.what_bytes))),
    );
    add("user", Some(entry.user.clone()));
    add("directory", entry.cwd.clone());
    add("started", Some(seconds(entry.started)));
    add("took", entry.duration_us.map(took));
    add("exit", Some(exit(entry)));
    add("error", entry.error.clone());
    add("result", entry.result.clone());
    add("problem", entry.problem.as_ref().map(|problem| problem.message.clone()));
    add("transaction", entry.transaction.map(|id| id.to_string()));
    add(
        "before",
        entry.before.as_ref().map(|before| match before.exact {
            true => before.snapshot.to_string(),
            false => format!("{}, the nearest that is kept", before.snapshot),
        }),
    );
    add("after", entry.snapshot_after.map(|id| id.to_string()));
    add("undone by", entry.undone_by.map(|id| id.to_string()));
    add("stdout", entry.stdout.as_ref().map(stream));
    add("stderr", entry.stderr.as_ref().map(stream));
    let mut text = fields(&lines);
    for (name, stream) in [("stdout", &entry.stdout), ("stderr", &entry.stderr)] {
        if let Some(said) = stream.as_ref().and_then(said) {
            text.push_str(&format!("\n{name}:\n{}\n", crate::printer::visible(said.trim_end())));
        }
    }
    text
}

/// How it went this time.
pub fn replay(replay: &Replay) -> String {
    let entry = &replay.entry;
    let with = |text: String, same: Option<bool>| match same {
        Some(true) => format!("{text}, as the first time"),
        Some(false) => format!("{text}, unlike the first time"),
        None => format!("{text}; nobody knows how it was the first time"),
    };
    let stream = |output: &Option<HistoryOutput>, same| {
        with(output.as_ref().map_or_else(|| "unknown".into(), stream), same)
    };
    let from = match replay.from.exact {
        true => format!("{}, just before it", replay.from.snapshot),
        false => format!("{}, the nearest that is kept", replay.from.snapshot),
    };
    let mut text = fields(&[
        ("id", entry.id.to_string()),
        ("from", from),
        ("exit", with(exit(entry), replay.same.exit)),
        ("stdout", stream(&entry.stdout, replay.same.stdout)),
        ("stderr", stream(&entry.stderr, replay.same.stderr)),
    ]);
    for (name, stream) in [("stdout", &entry.stdout), ("stderr", &entry.stderr)] {
        if let Some(said) = stream.as_ref().and_then(said) {
            text.push_str(&format!("\n{name}:\n{}\n", crate::printer::visible(said.trim_end())));
        }
    }
    text
}

/// What may have made it go another way.
pub fn notes(replay: &Replay) -> Vec<String> {
    let mut notes = Vec::new();
    if !replay.missing_env.is_empty() {
        let names = replay.missing_env.join(", ");
        notes.push(format!(
            "without these variables, whose values were not written down: {names}; --env sets them"
        ));
    }
    if replay.missing_input {
        notes.push("without the input it had, which was not written down".into());
    }
    if replay.kept {
        notes.push(format!("kept VM `{}`", replay.entry.vm_name));
    }
    notes
}

fn who(entry: &HistoryEntry) -> String {
    entry.agent.as_ref().map_or_else(|| entry.actor.clone(), ToString::to_string)
}

/// The first line that says something.
fn first_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.next().unwrap_or_default();
    let shown: String = line.chars().take(WIDTH).collect();
    let more = shown.len() < line.len() || lines.next().is_some();
    format!("{shown}{}", if more { "..." } else { "" })
}

fn exit(entry: &HistoryEntry) -> String {
    match (entry.state, entry.exit) {
        (HistoryStateName::Running, _) => "running".into(),
        (HistoryStateName::Ended, _) if entry.interrupted => "interrupted".into(),
        (_, Some(ExitStatus::Exited { code })) => code.to_string(),
        (_, Some(ExitStatus::Signaled { signal })) => format!("signal {signal}"),
        (_, Some(ExitStatus::TimedOut)) => "timeout".into(),
        (HistoryStateName::Interrupted, None) => "unknown".into(),
        (HistoryStateName::Failed | HistoryStateName::Ended, None) => "failed".into(),
    }
}

fn marks(entry: &HistoryEntry) -> String {
    let marks = [
        ("undone", entry.undone_by.is_some()),
        ("transaction", entry.transaction.is_some()),
        ("snapshot", entry.before.as_ref().is_some_and(|before| before.exact)),
    ];
    marks.into_iter().filter_map(|(mark, set)| set.then_some(mark)).collect::<Vec<_>>().join(" ")
}

fn took(microseconds: u64) -> String {
    let took = Duration::from_micros(microseconds);
    match took.as_millis() {
        0..10 => format!("{:.1} ms", took.as_secs_f64() * 1e3),
        10..1000 => format!("{} ms", took.as_millis()),
        1000..120_000 => format!("{:.1} s", took.as_secs_f64()),
        _ => format!("{} min", took.as_secs() / 60),
    }
}

fn stream(output: &HistoryOutput) -> String {
    let kept = match output.kept_bytes {
        Some(kept) if kept < output.bytes => format!(", of which {} are kept", size(kept)),
        _ => String::new(),
    };
    let lost = match output.lost_bytes {
        0 => String::new(),
        lost => format!(", of which {} were lost", size(lost)),
    };
    format!("{}{kept}{lost}", size(output.bytes))
}

/// Both ends, and what is left out between them; nothing of what is no text.
fn said(output: &HistoryOutput) -> Option<String> {
    let text = |part: &Option<Output>| match part {
        Some(Output::Utf8(text)) => Some(text.clone()),
        Some(other) => other.clone().into_bytes().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        None => None,
    };
    let head = text(&output.head)?;
    let Some(tail) = text(&output.tail) else { return Some(head) };
    let shown = |part: &Option<Output>| {
        part.clone().and_then(Output::into_bytes).map_or(0, |bytes| bytes.len() as u64)
    };
    match output.bytes.saturating_sub(shown(&output.head) + shown(&output.tail)) {
        0 => Some(format!("{head}{tail}")),
        between => Some(format!("{head}\n... {} ...\n{tail}", size(between))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_its_first_line_and_a_time_has_one_unit() {
        assert_eq!(first_line("\n  x = 1\n"), "x = 1");
        assert_eq!(first_line("x = 1\ny = 2"), "x = 1...");
        assert_eq!(first_line(&"é".repeat(100)).chars().count(), WIDTH + 3);
        assert_eq!([took(1_500), took(999_999), took(61_000_000)], ["1.5 ms", "999 ms", "61.0 s"]);
    }

    #[test]
    fn what_is_left_out_between_both_ends_is_told() {
        let part = |text: &str| Some(Output::Utf8(text.into()));
        let output = |bytes, tail| HistoryOutput {
            bytes,
            lost_bytes: 0,
            kept_bytes: Some(4),
            hash: None,
            head: part("head"),
            tail,
        };
        assert_eq!(said(&output(4, None)).unwrap(), "head");
        assert_eq!(said(&output(8, part("tail"))).unwrap(), "headtail");
        assert_eq!(said(&output(2056, part("tail"))).unwrap(), "head\n... 2.0 KiB ...\ntail");
        assert_eq!(stream(&output(4096, None)), "4.0 KiB, of which 4 B are kept");
    }
}
