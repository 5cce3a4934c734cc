//! New VMs that continue from a state.

use super::{Attestations, InvalidField, invalid::parse, schema};
use offshoot_types::{ForkSource, Generation, OperationId, SnapshotId, SnapshotRef, VmId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most forks of one request.
pub const MAX_FORKS: u32 = 1000;

/// Make VMs that continue from a VM's present state or from a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// A VM's name or id, `VM@NAME`, or a snapshot's id. An id that could be both is a VM's first.
    pub source: String,
    /// One fork is called so, several `NAME-1` to `NAME-N`; the next free `VM-1`, `VM-2`, ... if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many, at most 1000; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
}

/// A checked [`ForkRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewForks {
    pub source: ForkSource,
    pub name: Option<VmName>,
    pub count: u32,
}

/// A VM or a snapshot by its text. An id is taken for a VM's; who knows the VMs can tell whether it is one.
pub(super) fn source(field: &str, text: &str) -> Result<ForkSource, InvalidField> {
    match text.contains('@') {
        true => parse::<SnapshotRef>(field, text).map(ForkSource::Snapshot),
        false => parse(field, text).map(ForkSource::Vm),
    }
}

impl TryFrom<ForkRequest> for NewForks {
    type Error = InvalidField;
    fn try_from(wire: ForkRequest) -> Result<Self, InvalidField> {
        let count = wire.count.unwrap_or(1);
        if !(1..=MAX_FORKS).contains(&count) {
            return Err(InvalidField::new("count", format!("{count} is not between 1 and {MAX_FORKS}")));
        }
        Ok(Self {
            source: source("source", &wire.source)?,
            name: wire.name.as_deref().map(|name| parse("name", name)).transpose()?,
            count,
        })
    }
}

/// All of them run, and each has said what was renewed in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forked {
    #[schema(schema_with = schema::uuid)]
    pub operation: OperationId,
    /// What they continue from.
    #[schema(schema_with = schema::uuid)]
    pub snapshot: SnapshotId,
    /// How long a running source stood still, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_us: Option<u64>,
    pub forks: Vec<ForkedVm>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForkedVm {
    #[schema(schema_with = schema::uuid)]
    pub vm: VmId,
    #[schema(value_type = String)]
    pub name: VmName,
    #[schema(value_type = u64)]
    pub generation: Generation,
    /// Absent for a fork of a disk-only snapshot, which has no memory to renew anything in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestations: Option<Attestations>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_vm_or_a_snapshot_by_its_form_and_every_bad_field_is_named() {
        let request = |source: &str| ForkRequest { source: source.into(), ..ForkRequest::default() };
        let forks = NewForks::try_from(request("web")).unwrap();
        assert_eq!((forks.source, forks.count), (ForkSource::Vm("web".parse().unwrap()), 1));
        let snapshot = NewForks::try_from(request("web@before")).unwrap().source;
        assert_eq!(snapshot, ForkSource::Snapshot("web@before".parse().unwrap()));
        let refused = |wire: ForkRequest| NewForks::try_from(wire).unwrap_err().field;
        for wrong in ["", "web@", "@x", "Web"] {
            assert_eq!(refused(request(wrong)), "source", "{wrong}");
        }
        assert_eq!(refused(ForkRequest { count: Some(0), ..request("web") }), "count");
        assert_eq!(refused(ForkRequest { count: Some(MAX_FORKS + 1), ..request("web") }), "count");
        assert_eq!(refused(ForkRequest { name: Some("a b".into()), ..request("web") }), "name");
    }
}
