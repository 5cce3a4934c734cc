//! Files inside a VM. Contents are streamed as the raw body of a request or response, never wrapped in JSON.

use super::{InvalidField, exec::check_user};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// `PATH_MAX` of the guest's kernel, with its NUL.
const MAX_PATH: usize = 4095;

/// Refuses what cannot be a path; what it leads to is decided by the guest's kernel, beneath its root.
pub fn absolute_path(field: &str, path: &str) -> Result<(), InvalidField> {
    let problem = if !path.starts_with('/') {
        "a path inside a VM is absolute"
    } else if path.contains('\0') {
        "a path cannot hold a NUL byte"
    } else if path.len() > MAX_PATH {
        "a path has at most 4095 bytes"
    } else {
        return Ok(());
    };
    Err(InvalidField::new(field, format!("`{path:.80}`: {problem}")))
}

macro_rules! as_user {
    ($($request:ty),* $(,)?) => {$(
        impl $request {
            /// Whose permissions count inside the guest.
            pub fn user(&self) -> Result<String, InvalidField> {
                let user = self.user.as_deref().unwrap_or("root");
                check_user("user", user).map(|()| user.to_owned())
            }
        }
    )*};
}
as_user!(
    StatQuery,
    ListQuery,
    ReadQuery,
    WriteQuery,
    MakeDirectory,
    RenameFile,
    RemoveFile,
    Symlink,
    SetMode
);

fn check_mode(mode: Option<u32>) -> Result<(), InvalidField> {
    match mode {
        Some(bits) if bits > 0o7777 => {
            Err(InvalidField::new("mode", format!("{bits} has more than the permission bits")))
        }
        _ => Ok(()),
    }
}

/// Read metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StatQuery {
    pub path: String,
    /// Follow a final symbolic link.
    #[serde(default)]
    pub follow: bool,
    /// `root` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// List a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    pub path: String,
    /// `root` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// At most so many, 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before. Pages are in the order of names; of two that look the same because neither is
    /// UTF-8, one may be missed between pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Read a file, or a range of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReadQuery {
    pub path: String,
    /// First byte to read.
    #[serde(default)]
    pub offset: u64,
    /// To the end if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// `root` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Write a file: the request's body, renamed into place once it has arrived in full.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WriteQuery {
    pub path: String,
    /// Permission bits as a decimal number; those of the old file, or 0644, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Make missing directories.
    #[serde(default)]
    pub make_parents: bool,
    /// Fail if the file exists.
    #[serde(default)]
    pub exclusive: bool,
    /// `root` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MakeDirectory {
    pub path: String,
    /// Make missing parents; an existing directory is fine.
    #[serde(default)]
    pub parents: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// `root` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameFile {
    pub from: String,
    pub to: String,
    /// `root` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveFile {
    pub path: String,
    /// Remove a directory with all it holds.
    #[serde(default)]
    pub recursive: bool,
    /// `root` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Symlink {
    /// What the link says; may be relative.
    pub target: String,
    pub path: String,
    /// `root` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetMode {
    pub path: String,
    pub mode: u32,
    /// `root` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl WriteQuery {
    pub fn check(&self) -> Result<(), InvalidField> {
        absolute_path("path", &self.path)?;
        check_mode(self.mode)
    }
}
impl MakeDirectory {
    pub fn check(&self) -> Result<(), InvalidField> {
        absolute_path("path", &self.path)?;
        check_mode(self.mode)
    }
}
impl SetMode {
    pub fn check(&self) -> Result<(), InvalidField> {
        absolute_path("path", &self.path)?;
        check_mode(Some(self.mode))
    }
}
impl RenameFile {
    pub fn check(&self) -> Result<(), InvalidField> {
        absolute_path("from", &self.from)?;
        absolute_path("to", &self.to)
    }
}
impl Symlink {
    pub fn check(&self) -> Result<(), InvalidField> {
        absolute_path("path", &self.path)?;
        let valid = !self.target.is_empty() && self.target.len() <= MAX_PATH && !self.target.contains('\0');
        if valid { Ok(()) } else { Err(InvalidField::new("target", "not a path a link can hold")) }
    }
}

/// Metadata of a file inside a VM. Guest data: never trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileStat {
    pub kind: FileKind,
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Nanoseconds since 1970.
    pub modified_ns: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DirectoryList {
    pub entries: Vec<DirectoryEntry>,
    /// There are more entries than one answer holds.
    pub truncated: bool,
    /// Of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DirectoryEntry {
    pub name: String,
    /// The name is not UTF-8; U+FFFD stands in place of the bad bytes.
    pub lossy: bool,
    pub stat: FileStat,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_modes_are_permission_bits() {
        assert!(absolute_path("path", "/etc/passwd").is_ok());
        for bad in ["", "etc", "./x", "/a\0b", &format!("/{}", "x".repeat(4095))] {
            assert_eq!(absolute_path("path", bad).unwrap_err().field, "path", "{bad:.20}");
        }
        let write = WriteQuery { path: "/a".into(), mode: Some(0o10_000), ..WriteQuery::default() };
        assert_eq!(write.check().unwrap_err().field, "mode");
    }
}
