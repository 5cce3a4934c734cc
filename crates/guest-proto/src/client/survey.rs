//! What a VM is made of, as the host sees it: long answers, page by page, each item checked for form and order.

use super::{
    ClientError,
    call::{Call, Context},
};
use crate::message::{
    ChangedPath, Contents, DiskEntry, DiskKind, HostOpen, MAX_PAGE, MAX_SURVEY_COMMAND, MAX_SURVEY_PATH,
    Paged, ProcessInfo, SurveyRequest, path_order,
};
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;
use std::cmp::Ordering;

/// Bytes of a user's name.
const MAX_USER: usize = 255;

/// Whether an item may come after the one before it.
type Judge<T> = fn(previous: Option<&T>, item: &T) -> Result<(), String>;

/// A long answer. Dropping it ends the work in the guest.
#[derive(Debug)]
pub struct Pages<T> {
    call: Call,
    judge: Judge<T>,
    last: Option<T>,
    left_out: u64,
    over: bool,
}

pub(super) async fn changes(context: Context) -> Result<Pages<ChangedPath>, ClientError> {
    open(context, SurveyRequest::Changes, judge_change).await
}

pub(super) async fn processes(context: Context) -> Result<Pages<ProcessInfo>, ClientError> {
    open(context, SurveyRequest::Processes, judge_process).await
}

/// One for each of `paths`, in their order.
pub(super) async fn contents(context: Context, paths: Vec<Vec<u8>>) -> Result<Vec<Contents>, ClientError> {
    let (operation, wanted) = (context.operation, paths.len());
    let paths = paths.into_iter().map(ByteBuf::from).collect();
    let mut pages = open::<Contents>(context, SurveyRequest::Contents { paths }, |_, _| Ok(())).await?;
    let mut found = Vec::with_capacity(wanted);
    while let Some(page) = pages.next().await? {
        found.extend(page);
        if found.len() > wanted {
            break;
        }
    }
    match found.len() == wanted {
        true => Ok(found),
        false => Err(ClientError::protocol(operation, format!("{} answers for {wanted} files", found.len()))),
    }
}

async fn open<T>(context: Context, request: SurveyRequest, judge: Judge<T>) -> Result<Pages<T>, ClientError> {
    let mut call = Call::open(context, &HostOpen::Survey(request)).await?;
    call.reply::<()>().await?;
    Ok(Pages { call, judge, last: None, left_out: 0, over: false })
}

impl<T: DeserializeOwned + Clone> Pages<T> {
    /// The next items, however long the guest works on them; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<T>>, ClientError> {
        loop {
            if self.over {
                return Ok(None);
            }
            match self.call.soon::<Paged<T>>().await? {
                Paged::Working => {}
                Paged::Page(items) => {
                    self.check(&items)
                        .map_err(|problem| ClientError::protocol(self.call.context.operation, problem))?;
                    return Ok(Some(items));
                }
                Paged::End { left_out } => {
                    self.left_out = left_out;
                    self.over = true;
                }
                Paged::Failed(error) => {
                    self.over = true;
                    return Err(ClientError::Guest(error));
                }
            }
        }
    }

    /// How many items were too long to be told; known at the end.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    fn check(&mut self, items: &[T]) -> Result<(), String> {
        if items.is_empty() || items.len() > MAX_PAGE {
            return Err(format!("{} items on one page", items.len()));
        }
        let mut previous = self.last.as_ref();
        for item in items {
            (self.judge)(previous, item)?;
            previous = Some(item);
        }
        self.last = items.last().cloned();
        Ok(())
    }
}

/// Paths come in order, so none comes twice and none below what is no directory is missed.
fn judge_change(previous: Option<&ChangedPath>, item: &ChangedPath) -> Result<(), String> {
    check_path(&item.path)?;
    if let Some(previous) = previous
        && path_order(&previous.path, &item.path) != Ordering::Less
    {
        return Err("paths that are not in order".into());
    }
    if item.now.is_none() && item.image.is_none() {
        return Err("a path that neither is nor was there".into());
    }
    [&item.now, &item.image].into_iter().flatten().try_for_each(check_entry)
}

fn check_path(path: &[u8]) -> Result<(), String> {
    let named = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    // Without the root's own name, which is empty.
    let plain = path.strip_prefix(b"/").is_some_and(|rest| rest.split(|&byte| byte == b'/').all(named));
    match (plain || path == b"/") && path.len() <= MAX_SURVEY_PATH {
        true => Ok(()),
        false => Err(format!("a path of {} bytes that is none", path.len())),
    }
}

fn check_entry(entry: &DiskEntry) -> Result<(), String> {
    if entry.mode > 0o7777 {
        return Err(format!("mode {:o}", entry.mode));
    }
    let link = entry.target.as_ref().map(|target| target.len());
    if link.is_some() != (entry.kind == DiskKind::Symlink)
        || link.is_some_and(|length| length > MAX_SURVEY_PATH)
    {
        return Err("a symlink without a target, or the other way round".into());
    }
    Ok(())
}

fn judge_process(_: Option<&ProcessInfo>, item: &ProcessInfo) -> Result<(), String> {
    match (item.command.len(), item.user.len()) {
        (..=MAX_SURVEY_COMMAND, ..=MAX_USER) => Ok(()),
        (command, user) => Err(format!("a command line of {command} bytes of a user of {user}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Stamp;

    fn entry(kind: DiskKind) -> DiskEntry {
        let target = (kind == DiskKind::Symlink).then(|| ByteBuf::from(*b"t"));
        let stamp = Stamp { inode: 1, modified_ns: 2, changed_ns: 3 };
        DiskEntry { kind, mode: 0o644, uid: 0, gid: 0, size: 0, stamp, target, device: None }
    }

    fn at(path: &[u8]) -> ChangedPath {
        ChangedPath { path: path.to_vec(), now: Some(entry(DiskKind::File)), image: None }
    }

    #[test]
    fn paths_in_order_are_admitted_whatever_bytes_their_names_have() {
        let mut previous = None;
        for path in [b"/".as_slice(), b"/a", b"/a/b", b"/a-b", b"/a\xff", b"/..."] {
            let item = at(path);
            let judged = judge_change(previous.as_ref(), &item);
            match path {
                b"/..." => assert!(judged.is_err(), "it comes before `/a`"),
                _ => assert_eq!(judged, Ok(()), "{path:?}"),
            }
            previous = Some(item);
        }
    }

    #[test]
    fn what_is_no_path_or_no_entry_is_refused() {
        let deep = vec![b'/'; 1].into_iter().chain([b'x'; MAX_SURVEY_PATH]).collect::<Vec<_>>();
        for path in [b"".as_slice(), b"a", b"//", b"/a/", b"/a//b", b"/..", b"/a/../b", b"/a\0", &deep] {
            assert!(judge_change(None, &at(path)).is_err(), "{path:?}");
        }
        assert!(judge_change(Some(&at(b"/a")), &at(b"/a")).is_err(), "twice the same");
        let nothing = ChangedPath { now: None, ..at(b"/a") };
        assert!(judge_change(None, &nothing).is_err());
        let bad: [fn(&mut DiskEntry); 3] = [
            |entry| entry.mode = 0o10_000,
            |entry| entry.target = Some(ByteBuf::from(*b"t")),
            |entry| entry.kind = DiskKind::Symlink,
        ];
        for spoil in bad {
            let mut spoilt = entry(DiskKind::File);
            spoil(&mut spoilt);
            let item = ChangedPath { image: Some(spoilt), ..at(b"/a") };
            assert!(judge_change(None, &item).is_err(), "{item:?}");
        }
    }

    #[test]
    fn a_command_line_without_end_is_refused() {
        let process =
            |length| ProcessInfo { pid: 2, parent: 1, user: "u".into(), command: vec![b'x'; length] };
        assert_eq!(judge_process(None, &process(MAX_SURVEY_COMMAND)), Ok(()));
        assert!(judge_process(None, &process(MAX_SURVEY_COMMAND + 1)).is_err());
    }
}
