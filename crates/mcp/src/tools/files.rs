//! `read_file`, `write_file`, `list_files`.

use super::{Arguments, Effect, exec::USER};
use crate::{call::Call, reply::Reply};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{StreamExt, stream};
use offshoot_api::{
    ClientError,
    v1::{FileKind, FileStat, ListQuery, ReadQuery, WriteQuery},
};
use offshoot_types::{ErrorCode, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Bytes of a file in one answer, unless a call says otherwise, and at most.
const DEFAULT_LENGTH: u64 = 64 * 1024;
const MAX_LENGTH: u64 = 1024 * 1024;
/// Largest picture that is shown as one.
const MAX_PICTURE: u64 = 3 * 1024 * 1024;
/// Entries of a directory in one answer.
const MAX_ENTRIES: usize = 500;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadFile {
    /// Absolute path inside the VM.
    path: String,
    /// First byte to read; 0 if absent.
    #[serde(default)]
    offset: u64,
    /// Most bytes to read, up to 1048576; 65536 if absent.
    length: Option<u64>,
    /// Name or id of a VM; the session's own if absent.
    vm: Option<String>,
    /// Whose permissions count inside the VM, such as `root`; `user` if absent.
    user: Option<String>,
}

impl Arguments for ReadFile {
    const NAME: &'static str = "read_file";
    const TITLE: &'static str = "Read a file";
    const DESCRIPTION: &'static str = "Reads a file of a VM, or a part of it: text as text, PNG and JPEG files as \
        pictures, anything else in base64. If there is more than the answer holds, it says how much and with which \
        `offset` to go on.";
    const EFFECT: Effect = Effect::Reads;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let length = match self.length.unwrap_or(DEFAULT_LENGTH) {
            length @ 1..=MAX_LENGTH => length,
            length => {
                let message = format!("`length`: {length} is not between 1 and {MAX_LENGTH}");
                return Err(Failure::new(ErrorCode::InvalidArgument, message));
            }
        };
        let vm = call.vm(self.vm.as_deref()).await?;
        // All of a picture, or nothing of it is of use.
        let picture = picture_type(&self.path).filter(|_| self.offset == 0 && self.length.is_none());
        let query = ReadQuery {
            path: self.path.clone(),
            offset: self.offset,
            length: Some(if picture.is_some() { MAX_PICTURE + 1 } else { length }),
            user: Some(self.user.unwrap_or_else(|| USER.into())),
        };
        let reading = async {
            let mut download = call.client().read_file(&vm, &query).await?;
            let mut content = Vec::new();
            while let Some(part) = download.content.next().await {
                content.extend_from_slice(&part?);
            }
            Ok::<_, ClientError>((download.stat, content))
        };
        let (stat, content) = call.unless_cancelled("reading the file", reading).await?;
        let size = stat.size.max(self.offset + content.len() as u64);
        // Files of /proc and the like say that they are empty: one that filled the whole part may go on.
        let open_ended = stat.size == 0 && content.len() as u64 >= length;
        if let Some(mime) = picture
            && content.len() as u64 <= MAX_PICTURE
        {
            let data = json!({ "vm": vm.to_string(), "path": self.path, "size": size, "mime": mime });
            let text = format!("{} ({size} bytes, {mime}) follows", self.path);
            return Ok(Reply::new(text, data).with_images(vec![(mime.into(), STANDARD.encode(content))]));
        }
        Ok(part(
            &vm.to_string(),
            &self.path,
            self.offset,
            size,
            open_ended,
            &content[..content.len().min(length as usize)],
        ))
    }
}

/// What a file's name says of a picture in it.
fn picture_type(path: &str) -> Option<&'static str> {
    match path.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
        "png" => Some("image/png"),
        "jpg" | "jpeg" => Some("image/jpeg"),
        _ => None,
    }
}

fn part(vm: &str, path: &str, offset: u64, size: u64, open_ended: bool, content: &[u8]) -> Reply {
    let whole = offset + content.len() as u64 >= size && !open_ended;
    let (encoding, text, taken) = as_text(content, whole);
    let end = offset + taken as u64;
    let mut head = format!("{path}: bytes {offset} to {end} of {size}");
    if encoding == Encoding::Base64 {
        head.push_str(", in base64");
    }
    let mut shown = format!("{head}\n---\n{text}");
    let next = (end < size || open_ended).then_some(end);
    if let Some(next) = next {
        let follow = match open_ended {
            true => "more may follow".to_owned(),
            false => format!("{} bytes follow", size - next),
        };
        shown.push_str(&format!("\n--- {follow}: go on with `offset` {next}"));
    }
    let data = json!({
        "vm": vm, "path": path, "size": size, "offset": offset, "next_offset": next,
        "encoding": encoding, "content": text,
    });
    Reply::new(shown, data)
}

/// How much of `content` it is as well: a character that is cut at the end is left to the next part.
fn as_text(content: &[u8], whole: bool) -> (Encoding, String, usize) {
    match std::str::from_utf8(content) {
        Ok(text) => (Encoding::Utf8, text.into(), content.len()),
        Err(error) if !whole && error.error_len().is_none() && error.valid_up_to() > 0 => {
            let valid = &content[..error.valid_up_to()];
            (Encoding::Utf8, String::from_utf8_lossy(valid).into_owned(), valid.len())
        }
        Err(_) => (Encoding::Base64, STANDARD.encode(content), content.len()),
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum Encoding {
    #[default]
    Utf8,
    Base64,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteFile {
    /// Absolute path inside the VM. Missing directories are made.
    path: String,
    /// All of the new content.
    content: String,
    /// How `content` is written down.
    #[serde(default)]
    encoding: Encoding,
    /// Permission bits in octal, such as `755`; those of the old file, or 644, if absent.
    mode: Option<String>,
    /// Name or id of a VM; the session's own if absent.
    vm: Option<String>,
    /// Whose file it is to be inside the VM, such as `root`; `user` if absent.
    user: Option<String>,
}

impl Arguments for WriteFile {
    const NAME: &'static str = "write_file";
    const TITLE: &'static str = "Write a file";
    const DESCRIPTION: &'static str = "Writes a file of a VM, in place of the one that may be there; it is replaced in \
        one step or not at all. Missing directories are made.";
    const EFFECT: Effect = Effect::ChangesOnce;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let invalid = |field: &str, problem: &str| {
            Failure::new(ErrorCode::InvalidArgument, format!("`{field}`: {problem}"))
        };
        let content = match self.encoding {
            Encoding::Utf8 => self.content.into_bytes(),
            Encoding::Base64 => {
                STANDARD.decode(&self.content).map_err(|_| invalid("content", "the base64 is not valid"))?
            }
        };
        let mode = match &self.mode {
            None => None,
            Some(bits) => Some(
                u32::from_str_radix(bits, 8)
                    .map_err(|_| invalid("mode", "no octal number, such as `755`"))?,
            ),
        };
        let vm = call.vm(self.vm.as_deref()).await?;
        let query = WriteQuery {
            path: self.path.clone(),
            mode,
            make_parents: true,
            exclusive: false,
            user: Some(self.user.unwrap_or_else(|| USER.into())),
        };
        let body = stream::once(std::future::ready(Ok(Bytes::from(content))));
        let writing = call.client().write_file(&vm, &query, body);
        let stat = call.unless_cancelled("writing the file", writing).await?;
        let text = format!("wrote {} bytes to {} (VM {vm}, mode {:o})", stat.size, self.path, stat.mode);
        Ok(Reply::new(text, json!({ "vm": vm.to_string(), "path": self.path, "size": stat.size })))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListFiles {
    /// Absolute path of a directory inside the VM; `/home/user` if absent.
    path: Option<String>,
    /// Name or id of a VM; the session's own if absent.
    vm: Option<String>,
    /// Whose permissions count inside the VM, such as `root`; `user` if absent.
    user: Option<String>,
}

impl Arguments for ListFiles {
    const NAME: &'static str = "list_files";
    const TITLE: &'static str = "List a directory";
    const DESCRIPTION: &'static str = "Lists a directory of a VM: kind, permission bits, size and name of each entry, links with their targets.";
    const EFFECT: Effect = Effect::Reads;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let vm = call.vm(self.vm.as_deref()).await?;
        let path = self.path.unwrap_or_else(|| "/home/user".into());
        let user = Some(self.user.unwrap_or_else(|| USER.into()));
        let query = ListQuery { path: path.clone(), user, ..ListQuery::default() };
        let listing = call.client().list_directory(&vm, &query);
        let mut list = call.unless_cancelled("listing the directory", listing).await?;
        list.entries.sort_by(|one, other| one.name.cmp(&other.name));
        let left_out = list.entries.len().saturating_sub(MAX_ENTRIES);
        list.entries.truncate(MAX_ENTRIES);
        let count = list.entries.len();
        let mut text = format!("{path} (VM {vm}): {count} entries");
        for entry in &list.entries {
            text.push_str(&format!("\n{}", line(&entry.name, &entry.stat)));
        }
        if left_out > 0 || list.truncated {
            let more = if list.truncated { format!("more than {left_out}") } else { left_out.to_string() };
            text.push_str(&format!(
                "\n--- {more} entries are not shown: `exec` with `LC_ALL=C ls -A -- '{}' | tail -n +{}`",
                path.replace('\'', "'\\''"),
                count + 1
            ));
        }
        let entries: Vec<_> =
            list.entries.iter().map(|entry| json!({ "name": entry.name, "stat": entry.stat })).collect();
        let data = json!({ "vm": vm.to_string(), "path": path, "entries": entries, "truncated": left_out > 0 || list.truncated });
        Ok(Reply::new(text, data))
    }
}

fn line(name: &str, stat: &FileStat) -> String {
    let FileStat { mode, size, .. } = stat;
    match stat.kind {
        FileKind::Directory => format!("dir  {mode:04o} {:>10} {name}/", "-"),
        FileKind::File => format!("file {mode:04o} {size:>10} {name}"),
        FileKind::Symlink => {
            format!("link {mode:04o} {:>10} {name} -> {}", "-", stat.symlink_target.as_deref().unwrap_or("?"))
        }
        FileKind::Other => format!("else {mode:04o} {:>10} {name}", "-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_text_ends_between_characters_and_bytes_are_base64() {
        assert_eq!(as_text("aé".as_bytes(), true), (Encoding::Utf8, "aé".into(), 3));
        assert_eq!(as_text(&"aé".as_bytes()[..2], false), (Encoding::Utf8, "a".into(), 1));
        assert_eq!(as_text(&"aé".as_bytes()[..2], true).0, Encoding::Base64, "the file ends so");
        assert_eq!(as_text(&[0xff, 0xfe], false), (Encoding::Base64, "//4=".into(), 2));
    }

    #[test]
    fn what_follows_is_told_with_the_way_to_it() {
        let reply = rmcp::model::CallToolResult::from(part("v", "/a", 10, 100, false, b"hello"));
        let json = serde_json::to_value(reply).unwrap();
        let text = json["content"][0]["text"].as_str().unwrap();
        assert_eq!(
            text,
            "/a: bytes 10 to 15 of 100\n---\nhello\n--- 85 bytes follow: go on with `offset` 15"
        );
        assert_eq!(json["structuredContent"]["next_offset"], 15);
    }

    #[test]
    fn names_tell_pictures() {
        assert_eq!(picture_type("/a/B.PNG"), Some("image/png"));
        assert_eq!(picture_type("/a/b.jpeg"), Some("image/jpeg"));
        assert_eq!(picture_type("/png"), None);
    }
}
