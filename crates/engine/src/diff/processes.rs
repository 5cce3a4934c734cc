//! What runs, by command and user: a pid means nothing in another VM.

use super::{Differences, LookedAt, ProcessChange, Subject, report::Gathered, side::Side};
use offshoot_guest_proto::message::ProcessInfo;
use offshoot_types::{ErrorCode, Failure};
use std::collections::BTreeMap;

/// More than a VM can plausibly hold.
const MOST: usize = 65_536;
/// Bytes of their command lines.
const MOST_BYTES: usize = 16 << 20;

/// By user and command: how many.
type Counts = BTreeMap<(Vec<u8>, String), u64>;

pub(super) async fn compare(
    from: &Side,
    to: &Side,
    limit: usize,
) -> Result<Differences<ProcessChange>, Failure> {
    let disk = |subject: &Subject| subject.looked_at == Some(LookedAt::Disk);
    if let Some(subject) = [&from.subject, &to.subject].into_iter().find(|subject| disk(subject)) {
        let what = match subject.snapshot {
            Some(snapshot) => format!("snapshot {snapshot} of `{}`", subject.name),
            None => format!("`{}`", subject.name),
        };
        return Ok(Differences::unknown(format!("{what} is a disk without memory: nothing runs in it")));
    }
    let (before, mut after) = tokio::try_join!(count(from), count(to))?;
    let mut gathered = Gathered::new(limit);
    let mut all: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for (key, from) in before {
        let to = after.remove(&key).unwrap_or(0);
        all.insert(key, (from, to));
    }
    all.extend(after.into_iter().map(|(key, to)| (key, (0, to))));
    for ((command, user), (from, to)) in all {
        if from != to {
            gathered.push(ProcessChange { user, command, from, to });
        }
    }
    Ok(gathered.done(0))
}

async fn count(side: &Side) -> Result<Counts, Failure> {
    let mut pages = side.client.processes().await.map_err(|error| side.refused(&error))?;
    let (mut counts, mut seen, mut bytes) = (Counts::new(), 0, 0);
    while let Some(page) = pages.next().await.map_err(|error| side.failure(&error))? {
        seen += page.len();
        bytes += page.iter().map(|process| process.command.len()).sum::<usize>();
        if seen > MOST || bytes > MOST_BYTES {
            let message = format!("`{}` tells of more processes than can be", side.subject.name);
            return Err(Failure::new(ErrorCode::Guest, message)
                .hint("`--files` and `--packages` leave the processes out"));
        }
        for ProcessInfo { command, user, .. } in page {
            *counts.entry((command, user)).or_default() += 1;
        }
    }
    Ok(counts)
}
