//! Run one process in a fresh VM that lives as long as the request.

use super::{ExecRequest, InvalidField, VmSettings, invalid::parse, vm::Unchecked};
use offshoot_types::{ExecSpec, Labels, Lifetime, VmName};
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
    /// Made up if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Keep the VM, running, when the process has ended; otherwise it is destroyed, also when the socket closes.
    #[serde(default)]
    pub keep: bool,
    pub exec: ExecRequest,
}

/// A checked [`RunRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRun {
    pub name: Option<VmName>,
    pub settings: VmSettings,
    pub lifetime: Lifetime,
    pub exec: ExecSpec,
}

impl TryFrom<RunRequest> for NewRun {
    type Error = InvalidField;
    fn try_from(wire: RunRequest) -> Result<Self, InvalidField> {
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
            })?,
            lifetime: if wire.keep { Lifetime::Kept } else { Lifetime::Request },
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
        assert_eq!(NewRun::try_from(wire).unwrap_err().field, "exec.argv");
    }
}
