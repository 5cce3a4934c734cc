//! Run one process in a fresh VM that lives as long as the request.

use super::{
    ExecRequest, InvalidField, Output, SetLife, SetSnapshotPolicy, VmSettings, invalid::parse, vm::Unchecked,
};
use offshoot_types::{Environment, ExecSpec, Labels, Lifetime, VmName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// First text frame on `/v1/run`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// A tag or `sha256:` digest; `base` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `auto` (the strongest proven on this host) if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Weakest isolation class to accept; nothing weaker is ever used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// The image's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// `never` and no rollback if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_policy: Option<SetSnapshotPolicy>,
    /// No limits if absent; only of a VM that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<SetLife>,
    /// Made up if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Keep the VM, running, when the process has ended; otherwise it is destroyed, also when the socket closes.
    #[serde(default)]
    pub keep: bool,
    /// Written as root, in this order, once the VM runs and before the process starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<RunFile>,
    pub exec: ExecRequest,
}

/// A small file that the process needs; larger ones are uploaded into a VM that is created for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// Absolute; missing directories are made.
    pub path: String,
    /// Permission bits as a decimal number; 0644 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    pub content: Output,
}

/// A checked [`RunFile`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    pub path: String,
    pub mode: Option<u32>,
    pub content: Vec<u8>,
}

impl TryFrom<RunFile> for NewFile {
    type Error = InvalidField;
    fn try_from(wire: RunFile) -> Result<Self, InvalidField> {
        super::absolute_path("path", &wire.path)?;
        if let Some(bits) = wire.mode.filter(|bits| *bits > 0o7777) {
            return Err(InvalidField::new("mode", format!("{bits} has more than the permission bits")));
        }
        let content = wire
            .content
            .into_bytes()
            .ok_or_else(|| InvalidField::new("content", "the base64 is not valid"))?;
        Ok(Self { path: wire.path, mode: wire.mode, content })
    }
}

/// A checked [`RunRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRun {
    pub name: Option<VmName>,
    pub settings: VmSettings,
    pub lifetime: Lifetime,
    pub files: Vec<NewFile>,
    pub exec: ExecSpec,
}

impl TryFrom<RunRequest> for NewRun {
    type Error = InvalidField;
    fn try_from(wire: RunRequest) -> Result<Self, InvalidField> {
        if wire.life.is_some() && !wire.keep {
            let problem = "a VM that is destroyed when the process ends has no limits besides: keep it, or leave this out";
            return Err(InvalidField::new("life", problem));
        }
        Ok(Self {
            name: wire.name.as_deref().map(|name| parse("name", name)).transpose()?,
            settings: VmSettings::check(Unchecked {
                image: wire.image.as_deref(),
                provider: wire.provider.as_deref(),
                isolation: wire.isolation.as_deref(),
                memory_mib: wire.memory_mib,
                cpus: wire.cpus,
                disk_mib: wire.disk_mib,
                labels: wire.labels,
                env: Environment::new(),
                policy: wire.snapshot_policy,
                life: wire.life,
            })?,
            lifetime: if wire.keep { Lifetime::Kept } else { Lifetime::Request },
            files: wire
                .files
                .into_iter()
                .enumerate()
                .map(|(index, file)| {
                    file.try_into().map_err(|e: InvalidField| e.within(&format!("files[{index}]")))
                })
                .collect::<Result<_, _>>()?,
            exec: ExecSpec::try_from(wire.exec).map_err(|error| error.within("exec"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_field_of_the_nested_exec_is_named_with_its_path() {
        let wire = RunRequest { exec: ExecRequest::default(), ..RunRequest::default() };
        assert_eq!(NewRun::try_from(wire.clone()).unwrap_err().field, "exec.argv");
        let wire = RunRequest { life: Some(SetLife::default()), ..wire };
        assert_eq!(NewRun::try_from(wire).unwrap_err().field, "life");
    }

    #[test]
    fn a_file_is_refused_by_its_place_in_the_list() {
        let exec = || ExecRequest { argv: Some(vec!["true".into()]), ..ExecRequest::default() };
        let refused = |file: RunFile| {
            let good = RunFile { path: "/a".into(), mode: None, content: Output::Utf8("x".into()) };
            let wire = RunRequest { exec: exec(), files: vec![good, file], ..RunRequest::default() };
            NewRun::try_from(wire).unwrap_err().field
        };
        let file = |path: &str, content: Output| RunFile { path: path.into(), mode: None, content };
        assert_eq!(refused(file("a", Output::Utf8(String::new()))), "files[1].path");
        assert_eq!(refused(file("/a", Output::Base64("!".into()))), "files[1].content");
        let bits = RunFile { mode: Some(0o10_000), ..file("/a", Output::Utf8(String::new())) };
        assert_eq!(refused(bits), "files[1].mode");
    }
}
