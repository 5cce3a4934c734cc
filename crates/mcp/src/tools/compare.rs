//! `diff`: what changed.

use super::{Arguments, Effect};
use crate::{call::Call, reply::Reply};
use offshoot_api::v1::{self, DiffCounts, DiffRequest, DiffSubject, Difference};
use offshoot_types::{Failure, SnapshotId};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

/// Differences of each kind in one answer.
const LIMIT: u32 = 200;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Diff {
    /// The later state: name or id of a VM (as it is now), or of a snapshot as `VM@NAME` or id; the session's VM if absent.
    to: Option<String>,
    /// The earlier state, written likewise, or the name of a snapshot of `to`; the snapshot that `to` came of if absent.
    from: Option<String>,
}

impl Arguments for Diff {
    const NAME: &'static str = "diff";
    const TITLE: &'static str = "Compare two states";
    const DESCRIPTION: &'static str = "Says what differs between two states of VMs: files added, modified and removed, \
        packages and processes. Without arguments: what changed in the session's VM since its last snapshot.";
    const EFFECT: Effect = Effect::Reads;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let to = match self.to {
            Some(to) => to,
            None => call.vm(None).await?.to_string(),
        };
        let from = self.from.map(|from| earlier(&to, from));
        let request = DiffRequest { from, to, kinds: Vec::new(), limit: Some(LIMIT) };
        let diff = call.unless_cancelled("comparing", call.client().diff(&request)).await?;
        let data = json!({ "differs": diff.differs, "from": diff.from, "to": diff.to });
        Ok(Reply::new(told(&diff), data))
    }
}

/// A bare name is a VM's if `to` is a snapshot, and else a snapshot's of `to`.
fn earlier(to: &str, from: String) -> String {
    let complete = from.contains('@') || to.contains('@') || from.parse::<SnapshotId>().is_ok();
    if complete { from } else { format!("{to}@{from}") }
}

fn subject(subject: &DiffSubject) -> String {
    match &subject.snapshot {
        Some(snapshot) => format!("snapshot {snapshot} of {}", subject.name),
        None => format!("{} now", subject.name),
    }
}

fn sign(difference: Difference) -> char {
    match difference {
        Difference::Added => '+',
        Difference::Modified => '~',
        Difference::Removed => '-',
    }
}

fn told(diff: &v1::Diff) -> String {
    let mut text = format!("from {} to {}", subject(&diff.from), subject(&diff.to));
    if !diff.differs {
        text.push_str(": nothing differs");
        return text;
    }
    if let Some(files) = &diff.files {
        section(
            &mut text,
            "files",
            &files.counts,
            files.changes.iter().map(|change| {
                let size =
                    change.to.as_ref().map(|facts| format!(" ({} bytes)", facts.size)).unwrap_or_default();
                format!("{} {}{size}", sign(change.difference), change.path)
            }),
        );
    }
    if let Some(packages) = &diff.packages {
        section(
            &mut text,
            "packages",
            &packages.counts,
            packages.changes.iter().map(|change| {
                let versions: Vec<&str> =
                    [&change.from, &change.to].into_iter().flatten().map(String::as_str).collect();
                format!("{} {} {}", sign(change.difference), change.name, versions.join(" -> "))
            }),
        );
    }
    if let Some(processes) = &diff.processes {
        section(
            &mut text,
            "processes",
            &processes.counts,
            processes.changes.iter().map(|change| {
                format!(
                    "{} {} ({}, {} -> {})",
                    sign(change.difference),
                    change.command,
                    change.user,
                    change.from,
                    change.to
                )
            }),
        );
    }
    text
}

fn section(text: &mut String, what: &str, counts: &DiffCounts, lines: impl Iterator<Item = String>) {
    let DiffCounts { added, modified, removed, more, left_out, unknown } = counts;
    if let Some(why) = unknown {
        text.push_str(&format!("\n--- {what}: not known ({why})"));
        return;
    }
    text.push_str(&format!("\n--- {what}: {added} added, {modified} modified, {removed} removed"));
    for line in lines {
        text.push_str(&format!("\n{line}"));
    }
    if more + left_out > 0 {
        let hidden = more + left_out;
        text.push_str(&format!(
            "\n({hidden} more are not shown: `exec` with `find` and `-newer` looks closer)"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_a_snapshot_of_the_later_vm() {
        assert_eq!(earlier("web", "before".into()), "web@before");
        assert_eq!(earlier("web", "a@b".into()), "a@b");
        assert_eq!(earlier("web@late", "other".into()), "other");
    }

    #[test]
    fn a_section_counts_what_it_does_not_show() {
        let counts = DiffCounts { added: 3, more: 2, ..DiffCounts::default() };
        let mut text = String::new();
        section(&mut text, "files", &counts, ["+ /a".to_owned()].into_iter());
        assert!(
            text.starts_with("\n--- files: 3 added, 0 modified, 0 removed\n+ /a\n(2 more are not shown"),
            "{text}"
        );
        let counts = DiffCounts { unknown: Some("no dpkg".into()), ..DiffCounts::default() };
        text.clear();
        section(&mut text, "packages", &counts, std::iter::empty());
        assert_eq!(text, "\n--- packages: not known (no dpkg)");
    }
}
