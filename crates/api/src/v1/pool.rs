//! What new VMs can start from without a boot.

use super::schema;
use offshoot_types::{ImageDigest, IsolationClass, ProviderKind, SnapshotId, StartedFrom, VmId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The warm pool: instances that a VM which never ran becomes when it is started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Instances it keeps of one kind at most; 0: it is off.
    pub most: u64,
    /// Whether it keeps so many always, rather than as many as were wanted lately.
    pub fixed: bool,
    /// One for each image in one size; the one that was wanted last comes first. None before the first start that could
    /// have used one.
    pub shelves: Vec<PoolShelf>,
    /// The VMs that are the daemon's: instances nobody has claimed, and what templates are made of. No list shows them.
    #[schema(value_type = Vec<String>)]
    pub vms: Vec<VmId>,
}

/// What is kept for VMs of one image in one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolShelf {
    #[schema(value_type = String)]
    pub image_digest: ImageDigest,
    pub memory_mib: u64,
    pub cpus: u64,
    pub disk_mib: u64,
    #[schema(schema_with = schema::provider)]
    pub provider: ProviderKind,
    #[schema(schema_with = schema::isolation)]
    pub isolation: IsolationClass,
    /// What its instances continue from; absent until it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub template: Option<SnapshotId>,
    /// Whether the template or an instance is being made.
    pub making: bool,
    /// Instances that can be claimed.
    pub ready: u64,
    /// How many there are to be.
    pub target: u64,
    /// Starts that got an instance, and that found none, since the daemon started.
    pub claimed: u64,
    pub missed: u64,
    /// What went wrong last, until something went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What a VM's latest process was begun from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastStart {
    #[schema(schema_with = schema::started_from)]
    pub from: StartedFrom,
    /// Why it was not taken from the warm pool; absent if it was, or has a state of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_pooled: Option<String>,
}

impl From<offshoot_types::LastStart> for LastStart {
    fn from(start: offshoot_types::LastStart) -> Self {
        Self { from: start.from, not_pooled: start.not_pooled }
    }
}
