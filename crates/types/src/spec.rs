//! What a VM is to be. A `VmSpec` that exists is valid; defaults that depend on the image (memory) are filled
//! in before it is made, so every layer sees the same numbers.

use crate::{
    CpuCount, DiskMib, Environment, ImageDigest, ImageRef, IsolationClass, Labels, Life, MemMib,
    ProviderChoice, SnapshotPolicy, VmName,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    pub name: VmName,
    /// As asked for; the digest below is what the VM is bound to.
    pub image: ImageRef,
    pub image_digest: ImageDigest,
    pub provider: ProviderChoice,
    /// Creation fails rather than run anything weaker than this.
    pub min_isolation: Option<IsolationClass>,
    pub memory: MemMib,
    pub cpus: CpuCount,
    pub disk: DiskMib,
    pub lifetime: Lifetime,
    pub labels: Labels,
    /// What every process in it finds in its environment, unless it is given another value.
    #[serde(default, skip_serializing_if = "Environment::is_empty")]
    pub env: Environment,
    /// With which it begins; what it has since is in its record.
    #[serde(default)]
    pub policy: SnapshotPolicy,
    /// As above.
    #[serde(default)]
    pub life: Life,
}

/// How long a VM is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lifetime {
    /// Until somebody destroys it.
    #[default]
    Kept,
    /// Belongs to one request (`offshoot run`): destroyed when that request ends, however it ends, the death
    /// of caller or daemon included.
    Request,
}
