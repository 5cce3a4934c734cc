//! The service's messages.

use crate::e2b::envd::connect::{null_is_default, number};
use jiff::Timestamp;
use offshoot_guest_proto::message::{Entry, EntryChange, EntryEvent, FileKind};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;

#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub struct Empty {}

/// Of `Stat`, `MakeDir` and `Remove`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PathRequest {
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct MoveRequest {
    #[serde(deserialize_with = "null_is_default")]
    pub source: String,
    #[serde(deserialize_with = "null_is_default")]
    pub destination: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ListDirRequest {
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    #[serde(deserialize_with = "number")]
    pub depth: Option<u32>,
}

/// Of `WatchDir` and `CreateWatcher`. There are no network mounts in a VM, so none has to be allowed.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WatchRequest {
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    #[serde(deserialize_with = "null_is_default")]
    pub recursive: bool,
    #[serde(deserialize_with = "null_is_default")]
    pub include_entry: bool,
}

/// Of `GetWatcherEvents` and `RemoveWatcher`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WatcherRequest {
    #[serde(deserialize_with = "null_is_default")]
    pub watcher_id: String,
}

#[derive(Debug, Serialize)]
pub struct EntryResponse {
    pub entry: EntryInfo,
}

#[derive(Debug, Serialize)]
pub struct ListDirResponse {
    pub entries: Vec<EntryInfo>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateWatcherResponse {
    pub watcher_id: String,
}

#[derive(Debug, Serialize)]
pub struct WatcherEventsResponse {
    pub events: Vec<FilesystemEvent>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryInfo {
    name: String,
    r#type: FileType,
    path: String,
    #[serde(serialize_with = "as_text")]
    size: u64,
    mode: u32,
    permissions: String,
    owner: String,
    group: String,
    modified_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink_target: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    is_symlink: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum FileType {
    #[serde(rename = "FILE_TYPE_UNSPECIFIED")]
    Unspecified,
    #[serde(rename = "FILE_TYPE_FILE")]
    File,
    #[serde(rename = "FILE_TYPE_DIRECTORY")]
    Directory,
    #[serde(rename = "FILE_TYPE_SYMLINK")]
    Symlink,
}

/// As proto3's JSON has numbers of 64 bits.
fn as_text<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

/// The last name of a path.
pub fn name_of(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit('/').next() {
        Some(name) if !name.is_empty() => name,
        _ => "/",
    }
}

impl From<Entry> for EntryInfo {
    fn from(entry: Entry) -> Self {
        let Entry { path, stat, target, owner, group, attributes } = entry;
        // Of a link, what it leads to; of one that leads nowhere, what it is.
        let r#type = match target.unwrap_or(stat.kind) {
            FileKind::File => FileType::File,
            FileKind::Directory => FileType::Directory,
            FileKind::Symlink => FileType::Symlink,
            FileKind::Other => FileType::Unspecified,
        };
        // A guest may say any time, also one that nobody can write down.
        let modified = Timestamp::from_nanosecond(stat.modified_ns.into()).unwrap_or_default();
        Self {
            name: name_of(&path).to_owned(),
            r#type,
            size: stat.size,
            mode: stat.mode & 0o777,
            permissions: permissions(stat.kind, stat.mode),
            owner,
            group,
            modified_time: modified.to_string(),
            symlink_target: stat.symlink_target,
            metadata: attributes,
            is_symlink: stat.kind == FileKind::Symlink,
            path,
        }
    }
}

/// As Go writes a file's mode: `drwxr-xr-x`, `Lrwxrwxrwx`, `dtrwxrwxrwx`.
fn permissions(kind: FileKind, mode: u32) -> String {
    let kinds = [
        (kind == FileKind::Directory, 'd'),
        (kind == FileKind::Symlink, 'L'),
        (kind == FileKind::Other, '?'),
        (mode & 0o4000 != 0, 'u'),
        (mode & 0o2000 != 0, 'g'),
        (mode & 0o1000 != 0, 't'),
    ];
    let mut text: String = kinds.iter().filter(|(so, _)| *so).map(|(_, letter)| letter).collect();
    if text.is_empty() {
        text.push('-');
    }
    text.extend((0..9).map(|bit| if mode & (0o400 >> bit) == 0 { '-' } else { ['r', 'w', 'x'][bit % 3] }));
    text
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FilesystemEvent {
    /// Relative to the directory that is watched.
    name: String,
    r#type: EventType,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<Box<EntryInfo>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum EventType {
    #[serde(rename = "EVENT_TYPE_CREATE")]
    Create,
    #[serde(rename = "EVENT_TYPE_WRITE")]
    Write,
    #[serde(rename = "EVENT_TYPE_REMOVE")]
    Remove,
    #[serde(rename = "EVENT_TYPE_RENAME")]
    Rename,
    #[serde(rename = "EVENT_TYPE_CHMOD")]
    Chmod,
}

impl FilesystemEvent {
    /// `None` if what happened is not known.
    pub fn of(event: EntryEvent, directory: &str) -> Option<Self> {
        let r#type = match event.change {
            EntryChange::Created => EventType::Create,
            EntryChange::Written => EventType::Write,
            EntryChange::Removed => EventType::Remove,
            EntryChange::Renamed => EventType::Rename,
            EntryChange::AttributesChanged => EventType::Chmod,
            EntryChange::Overflow => return None,
        };
        let below = event.path.strip_prefix(directory.trim_end_matches('/'));
        let name = match below.and_then(|below| below.strip_prefix('/')) {
            Some(name) => name.to_owned(),
            None if event.path == directory => ".".to_owned(),
            None => event.path,
        };
        Some(Self { name, r#type, entry: event.entry.map(|entry| Box::new((*entry).into())) })
    }
}

/// One of `WatchDir`'s stream.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum WatchDirResponse {
    Start {},
    Filesystem(FilesystemEvent),
    Keepalive {},
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_guest_proto::message::FileStat;
    use serde_json::json;

    fn entry(kind: FileKind, mode: u32) -> Entry {
        let modified_ns = 1_500_000_000;
        let stat = FileStat { kind, size: 5, mode, uid: 0, gid: 0, modified_ns, symlink_target: None };
        let (owner, group) = ("user".into(), "staff".into());
        Entry { path: "/home/user/f".into(), stat, target: None, owner, group, attributes: BTreeMap::new() }
    }

    #[test]
    fn an_entry_is_told_in_the_words_of_the_wire() {
        let file = serde_json::to_value(EntryInfo::from(entry(FileKind::File, 0o4644))).unwrap();
        let expected = json!({
            "name": "f", "type": "FILE_TYPE_FILE", "path": "/home/user/f", "size": "5", "mode": 420,
            "permissions": "urw-r--r--", "owner": "user", "group": "staff",
            "modifiedTime": "1970-01-01T00:00:01.5Z", "isSymlink": false,
        });
        assert_eq!(file, expected);
        let mut link = entry(FileKind::Symlink, 0o777);
        (link.target, link.stat.symlink_target) = (Some(FileKind::Directory), Some("/srv".into()));
        let link = serde_json::to_value(EntryInfo::from(link)).unwrap();
        assert_eq!((&link["type"], &link["isSymlink"]), (&json!("FILE_TYPE_DIRECTORY"), &json!(true)));
        assert_eq!((&link["permissions"], &link["symlinkTarget"]), (&json!("Lrwxrwxrwx"), &json!("/srv")));
        let root = EntryInfo::from(Entry { path: "/".into(), ..entry(FileKind::Directory, 0o755) });
        assert_eq!((root.name.as_str(), root.permissions.as_str()), ("/", "drwxr-xr-x"));
        assert_eq!(permissions(FileKind::Directory, 0o1777), "dtrwxrwxrwx");
        assert_eq!(permissions(FileKind::File, 0o640), "-rw-r-----");
    }

    #[test]
    fn an_event_names_what_is_below_the_directory() {
        let event = |path: &str, directory| {
            let event = EntryEvent { change: EntryChange::Written, path: path.into(), entry: None };
            FilesystemEvent::of(event, directory).unwrap().name
        };
        assert_eq!(event("/home/user/a/b", "/home/user"), "a/b");
        assert_eq!(event("/a", "/"), "a");
        assert_eq!(event("/home/user", "/home/user"), ".");
        let lost = EntryEvent { change: EntryChange::Overflow, path: "/".into(), entry: None };
        assert_eq!(FilesystemEvent::of(lost, "/"), None);
    }
}
