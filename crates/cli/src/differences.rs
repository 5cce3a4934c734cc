//! What differs between two states, as text: a line each, a letter first.

use crate::{
    printer::{Printer, Style},
    view::size,
};
use offshoot_api::v1::{
    Diff, DiffCounts, Difference, DiskKind, FileDifference, FileFacts, PackageDifference, PackageManager,
    ProcessDifference, bytes_of,
};
use std::fmt::Write as _;

/// One line for each difference; a heading for each kind, if more than one was compared.
pub fn text(diff: &Diff, printer: &Printer) -> String {
    let mut sections: Vec<(&str, Vec<(Difference, String)>)> = Vec::new();
    if let Some(found) = &diff.files {
        sections.push(("Files:", found.changes.iter().map(file).collect()));
    }
    if let Some(found) = &diff.packages {
        sections.push(("Packages:", found.changes.iter().map(package).collect()));
    }
    if let Some(found) = &diff.processes {
        sections.push(("Processes:", found.changes.iter().map(process).collect()));
    }
    let headed = sections.len() > 1;
    let mut text = String::new();
    for (heading, lines) in sections.into_iter().filter(|(_, lines)| !lines.is_empty()) {
        if headed {
            text += &format!("{}\n", printer.out_styled(Style::Bold, heading));
        }
        for (difference, line) in lines {
            let (letter, style) = match difference {
                Difference::Added => ("A", Style::Green),
                Difference::Modified => ("M", Style::Yellow),
                Difference::Removed => ("D", Style::Red),
            };
            text += &format!("{} {line}\n", printer.out_styled(style, letter));
        }
    }
    text
}

/// One line for each kind that was compared.
pub fn counts(diff: &Diff) -> String {
    let mut text = String::new();
    for (what, counts) in kinds(diff) {
        let line = match &counts.unknown {
            Some(_) => "not known".to_owned(),
            None => {
                format!("{} added, {} modified, {} removed", counts.added, counts.modified, counts.removed)
            }
        };
        let _ = writeln!(text, "{what:<10} {line}");
    }
    text
}

/// What is not among the lines.
pub fn notes(diff: &Diff, stat: bool) -> Vec<String> {
    let mut notes = Vec::new();
    for (what, counts) in kinds(diff) {
        if let Some(why) = &counts.unknown {
            notes.push(format!("{what}: not compared: {why}"));
        }
        if counts.more > 0 && !stat {
            notes.push(format!("{what}: and {} more; `--limit` shows more of them", counts.more));
        }
        if counts.left_out > 0 {
            notes.push(format!("{what}: {} are nested too deeply to be compared", counts.left_out));
        }
    }
    if notes.is_empty() && !diff.differs {
        notes.push("nothing differs".into());
    }
    notes
}

fn kinds(diff: &Diff) -> Vec<(&'static str, &DiffCounts)> {
    let all = [
        ("files", diff.files.as_ref().map(|found| &found.counts)),
        ("packages", diff.packages.as_ref().map(|found| &found.counts)),
        ("processes", diff.processes.as_ref().map(|found| &found.counts)),
    ];
    all.into_iter().filter_map(|(what, counts)| Some((what, counts?))).collect()
}

fn file(change: &FileDifference) -> (Difference, String) {
    let mut line = escaped(&bytes_of(&change.path, change.path_base64.as_ref()));
    let detail = match (&change.from, &change.to) {
        (Some(from), Some(to)) => changed(from, to),
        (Some(only), None) | (None, Some(only)) => {
            if only.kind == DiskKind::Directory {
                line.push('/');
            }
            alone(only)
        }
        (None, None) => String::new(),
    };
    if !detail.is_empty() {
        line += &format!("  ({detail})");
    }
    (change.difference, line)
}

/// Of something that is there on one side only.
fn alone(facts: &FileFacts) -> String {
    match facts.kind {
        DiskKind::File => size(facts.size),
        DiskKind::Directory => String::new(),
        DiskKind::Symlink => format!("-> {}", target(facts)),
        other => kind(other).into(),
    }
}

/// In what it differs.
fn changed(from: &FileFacts, to: &FileFacts) -> String {
    let mut parts = Vec::new();
    if from.kind != to.kind {
        parts.push(format!("{} -> {}", kind(from.kind), kind(to.kind)));
    } else if from.size != to.size {
        parts.push(format!("{} -> {}", size(from.size), size(to.size)));
    }
    if from.mode != to.mode && from.kind == to.kind {
        parts.push(format!("mode {:o} -> {:o}", from.mode, to.mode));
    }
    if (from.uid, from.gid) != (to.uid, to.gid) {
        parts.push(format!("owner {}:{} -> {}:{}", from.uid, from.gid, to.uid, to.gid));
    }
    if target(from) != target(to) && from.kind == to.kind {
        parts.push(format!("target {} -> {}", target(from), target(to)));
    }
    if from.device != to.device && from.kind == to.kind {
        parts.push("another device".into());
    }
    if parts.is_empty() {
        parts.push(format!("{}, other content", size(to.size)));
    }
    parts.join(", ")
}

fn target(facts: &FileFacts) -> String {
    let text = facts.target.as_deref().unwrap_or_default();
    escaped(&bytes_of(text, facts.target_base64.as_ref()))
}

const fn kind(kind: DiskKind) -> &'static str {
    match kind {
        DiskKind::File => "file",
        DiskKind::Directory => "directory",
        DiskKind::Symlink => "symlink",
        DiskKind::Fifo => "fifo",
        DiskKind::Socket => "socket",
        DiskKind::CharDevice => "character device",
        DiskKind::BlockDevice => "block device",
    }
}

fn package(change: &PackageDifference) -> (Difference, String) {
    let manager = match change.manager {
        PackageManager::Dpkg => "",
        PackageManager::Pip => " [pip]",
    };
    let shown = |version: &String| escaped(version.as_bytes());
    let versions = match (&change.from, &change.to) {
        (Some(from), Some(to)) => format!("{} -> {}", shown(from), shown(to)),
        (Some(only), None) | (None, Some(only)) => shown(only),
        (None, None) => String::new(),
    };
    (change.difference, format!("{} {versions}{manager}", escaped(change.name.as_bytes())))
}

fn process(change: &ProcessDifference) -> (Difference, String) {
    let command = escaped(&bytes_of(&change.command, change.command_base64.as_ref()));
    let mut line = format!("{command}  ({}", escaped(change.user.as_bytes()));
    match (change.from, change.to) {
        (0, 1) | (1, 0) => {}
        (0, count) | (count, 0) => line += &format!(", {count} of them"),
        (from, to) => line += &format!(", {from} -> {to} of them"),
    }
    (change.difference, line + ")")
}

/// Guest bytes on one line: what is no text, and what would drive the terminal, is shown and not obeyed.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c.is_control() {
                true => text.extend(c.escape_default()),
                false => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| text += &format!("\\x{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printer::{ColorChoice, Format};

    fn diff() -> Diff {
        let id = "00000000-0000-7000-8000-000000000001";
        let facts = |kind: &str, size: u64| serde_json::json!({"kind": kind, "mode": 0o644, "uid": 0, "gid": 0, "size": size});
        let with = |mut facts: serde_json::Value, key: &str, value: serde_json::Value| {
            facts[key] = value;
            facts
        };
        let link = |to: &str| with(facts("symlink", 0), "target", to.into());
        serde_json::from_value(serde_json::json!({
            "from": {"vm": id, "name": "web", "snapshot": id, "looked_at": "memory"},
            "to": {"vm": id, "name": "web", "looked_at": "running"},
            "differs": true,
            "files": {"added": 40, "modified": 5, "removed": 1, "more": 37, "left_out": 2, "changes": [
                {"difference": "added", "path": "/new", "to": facts("directory", 0)},
                {"difference": "added", "path": "/new/a\n\u{1b}[2J", "to": facts("file", 2048)},
                {"difference": "added", "path": "/\u{fffd}", "path_base64": "L/8=", "to": link("/etc")},
                {"difference": "modified", "path": "/same", "from": facts("file", 5), "to": facts("file", 5)},
                {"difference": "modified", "path": "/grown", "from": facts("file", 5),
                    "to": with(with(facts("file", 6), "mode", 0o755.into()), "uid", 1000.into())},
                {"difference": "modified", "path": "/was", "from": facts("file", 5), "to": facts("directory", 0)},
                {"difference": "modified", "path": "/link", "from": link("/a"), "to": link("/b")},
                {"difference": "removed", "path": "/old", "from": facts("fifo", 0)},
            ]},
            "packages": {"added": 1, "modified": 1, "removed": 0, "more": 0, "left_out": 0, "changes": [
                {"difference": "modified", "manager": "dpkg", "name": "bash:amd64", "from": "5.1", "to": "5.2"},
                {"difference": "added", "manager": "pip", "name": "requests", "to": "2.0"},
            ]},
            "processes": {"added": 1, "modified": 1, "removed": 1, "more": 0, "left_out": 0, "changes": [
                {"difference": "added", "user": "root", "command": "sleep 1000", "from": 0, "to": 1},
                {"difference": "modified", "user": "user", "command": "worker", "from": 2, "to": 4},
                {"difference": "removed", "user": "user", "command": "[x]", "from": 3, "to": 0},
            ]},
        }))
        .unwrap()
    }

    fn printer() -> Printer {
        Printer::new(Format::Text, ColorChoice::Never)
    }

    #[test]
    fn each_difference_is_one_line_whatever_a_guest_calls_it() {
        insta::assert_snapshot!(text(&diff(), &printer()), @r"
        Files:
        A /new/
        A /new/a\n\u{1b}[2J  (2.0 KiB)
        A /\xff  (-> /etc)
        M /same  (5 B, other content)
        M /grown  (5 B -> 6 B, mode 644 -> 755, owner 0:0 -> 1000:0)
        M /was  (file -> directory)
        M /link  (target /a -> /b)
        D /old  (fifo)
        Packages:
        M bash:amd64 5.1 -> 5.2
        A requests 2.0 [pip]
        Processes:
        A sleep 1000  (root)
        M worker  (user, 2 -> 4 of them)
        D [x]  (user, 3 of them)
        ");
    }

    #[test]
    fn one_kind_alone_has_no_heading() {
        let one = Diff { files: None, processes: None, ..diff() };
        assert_eq!(text(&one, &printer()), "M bash:amd64 5.1 -> 5.2\nA requests 2.0 [pip]\n");
    }

    #[test]
    fn counts_are_a_line_for_each_kind_and_notes_say_what_is_missing() {
        let mut diff = diff();
        if let Some(found) = &mut diff.processes {
            found.counts.unknown = Some("`web` is a disk".into());
        }
        insta::assert_snapshot!(counts(&diff), @r"
        files      40 added, 5 modified, 1 removed
        packages   1 added, 1 modified, 0 removed
        processes  not known
        ");
        insta::assert_snapshot!(notes(&diff, false).join("\n"), @r"
        files: and 37 more; `--limit` shows more of them
        files: 2 are nested too deeply to be compared
        processes: not compared: `web` is a disk
        ");
        assert_eq!(notes(&diff, true).len(), 2, "who asked for counts is not told that lines are missing");
    }
}
