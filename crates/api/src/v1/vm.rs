//! VMs: what a caller asks for, and what the daemon knows of them.

use super::{
    Attestations, InvalidField, LastStart, Life, Operation, SetLife, SetSnapshotPolicy, SnapshotPolicy,
    Transaction, exec::check_env, invalid::parse, schema,
};
use jiff::Timestamp;
use offshoot_types::{
    self as types, CpuCount, DiskMib, Environment, Generation, ImageDigest, ImageRef, IsolationClass, Labels,
    Lifetime, MemMib, OperationId, ProviderChoice, ProviderKind, SnapshotId, VmId, VmName, VmSpec,
    VmStateName,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};
use utoipa::{IntoParams, ToSchema};

/// Virtual CPUs of a VM when the request does not say.
pub const DEFAULT_CPUS: CpuCount = CpuCount::ONE;
/// Data disk of a VM when the request does not say, in MiB. Sparse: it costs what the guest writes.
pub const DEFAULT_DISK: u64 = 2048;
/// How long a guest may take to shut down by itself when the request does not say.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);
const MAX_GRACE_MS: u64 = 10 * 60 * 1000;
const MAX_LABELS: usize = 64;
const MAX_LABEL_BYTES: usize = 256;

/// Define a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// `^[a-z0-9][a-z0-9_-]{0,62}$`, unique per owner.
    pub name: String,
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
    /// What every process in it finds in its environment, unless it is given another value. Never shown again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: Environment,
    /// `never` and no rollback if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_policy: Option<SetSnapshotPolicy>,
    /// No limits if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<SetLife>,
    /// Boot it too.
    #[serde(default)]
    pub start: bool,
    /// Answer once the change has ended (the default), or as soon as it is journaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<bool>,
}

/// The part of a request that says what a VM is to be, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSettings {
    pub image: ImageRef,
    pub provider: ProviderChoice,
    pub min_isolation: Option<IsolationClass>,
    pub memory: Option<MemMib>,
    pub cpus: CpuCount,
    pub disk: DiskMib,
    pub labels: Labels,
    pub env: Environment,
    pub policy: types::SnapshotPolicy,
    pub life: types::Life,
}

/// A checked [`CreateVm`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVm {
    pub name: VmName,
    pub settings: VmSettings,
    pub start: bool,
    pub wait: bool,
}

impl TryFrom<CreateVm> for NewVm {
    type Error = InvalidField;
    fn try_from(wire: CreateVm) -> Result<Self, InvalidField> {
        let name = parse("name", &wire.name)?;
        let settings = VmSettings::check(Unchecked {
            image: wire.image.as_deref(),
            provider: wire.provider.as_deref(),
            isolation: wire.isolation.as_deref(),
            memory_mib: wire.memory_mib,
            cpus: wire.cpus,
            disk_mib: wire.disk_mib,
            labels: wire.labels,
            env: wire.env,
            policy: wire.snapshot_policy,
            life: wire.life,
        })?;
        Ok(Self { name, settings, start: wire.start, wait: wire.wait.unwrap_or(true) })
    }
}

/// Settings as they stand in any request that makes a VM.
pub(super) struct Unchecked<'a> {
    pub image: Option<&'a str>,
    pub provider: Option<&'a str>,
    pub isolation: Option<&'a str>,
    pub memory_mib: Option<u64>,
    pub cpus: Option<u64>,
    pub disk_mib: Option<u64>,
    pub labels: Labels,
    pub env: Environment,
    pub policy: Option<SetSnapshotPolicy>,
    pub life: Option<SetLife>,
}

impl VmSettings {
    pub(super) fn check(wire: Unchecked<'_>) -> Result<Self, InvalidField> {
        let cpus = match wire.cpus {
            None => DEFAULT_CPUS,
            // Anything beyond 16 bits is absurd in the same way as 65535 is: one message for both.
            Some(count) => CpuCount::new(u16::try_from(count).unwrap_or(u16::MAX))
                .map_err(|error| InvalidField::new("cpus", error))?,
        };
        Ok(Self {
            image: parse("image", wire.image.unwrap_or("base"))?,
            provider: parse("provider", wire.provider.unwrap_or("auto"))?,
            min_isolation: wire.isolation.map(|text| parse("isolation", text)).transpose()?,
            memory: wire
                .memory_mib
                .map(MemMib::from_mib)
                .transpose()
                .map_err(|error| InvalidField::new("memory_mib", error))?,
            cpus,
            disk: DiskMib::from_mib(wire.disk_mib.unwrap_or(DEFAULT_DISK))
                .map_err(|error| InvalidField::new("disk_mib", error))?,
            labels: check_labels(wire.labels)?,
            env: check_env("env", &wire.env).map(|()| wire.env)?,
            policy: types::SnapshotPolicy::default().changed(
                wire.policy
                    .unwrap_or_default()
                    .try_into()
                    .map_err(|error: InvalidField| error.within("snapshot_policy"))?,
            ),
            life: types::Life::default().changed(
                wire.life
                    .unwrap_or_default()
                    .try_into()
                    .map_err(|error: InvalidField| error.within("life"))?,
            ),
        })
    }

    /// The full specification, now that the image is known.
    pub fn bind(
        self,
        name: VmName,
        image_digest: ImageDigest,
        default_memory: MemMib,
        lifetime: Lifetime,
    ) -> VmSpec {
        VmSpec {
            name,
            image: self.image,
            image_digest,
            provider: self.provider,
            min_isolation: self.min_isolation,
            memory: self.memory.unwrap_or(default_memory),
            cpus: self.cpus,
            disk: self.disk,
            lifetime,
            labels: self.labels,
            env: self.env,
            policy: self.policy,
            life: self.life,
        }
    }
}

fn check_labels(labels: Labels) -> Result<Labels, InvalidField> {
    let invalid = |problem: String| Err(InvalidField::new("labels", problem));
    if labels.len() > MAX_LABELS {
        return invalid(format!("{} labels are more than {MAX_LABELS}", labels.len()));
    }
    for (key, value) in &labels {
        if key.is_empty() || key.len() > MAX_LABEL_BYTES || value.len() > MAX_LABEL_BYTES {
            return invalid(format!(
                "`{key:.40}`: keys have 1 to {MAX_LABEL_BYTES} bytes, values at most that"
            ));
        }
    }
    Ok(labels)
}

/// Change what a VM is found by, and what its processes find in their environment. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DescribeVm {
    /// All of them, in place of those it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// The same. Processes that run keep theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Environment>,
}

impl DescribeVm {
    pub fn checked(self) -> Result<(Option<Labels>, Option<Environment>), InvalidField> {
        let labels = self.labels.map(check_labels).transpose()?;
        let env = self.env.map(|env| check_env("env", &env).map(|()| env)).transpose()?;
        Ok((labels, env))
    }
}

/// Options of `start`, `stop`, `restart`, `pause` and `resume`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// `stop` and `restart`: how long the guest may take to shut down before it is ended by force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// Answer once the change has ended (the default), or as soon as it is journaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<bool>,
}

impl Change {
    pub fn grace(&self) -> Result<Duration, InvalidField> {
        match self.grace_ms {
            None => Ok(DEFAULT_GRACE),
            Some(ms) if ms <= MAX_GRACE_MS => Ok(Duration::from_millis(ms)),
            Some(ms) => Err(InvalidField::new("grace_ms", format!("{ms} is above {MAX_GRACE_MS}"))),
        }
    }
}

/// Options of a destroy, in the query since the request has no body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DestroyQuery {
    /// Answer once the VM is gone (the default), or as soon as that is journaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<bool>,
    /// Remove the snapshots of it that somebody asked for, too; without this they outlive it.
    #[serde(default)]
    pub snapshots: bool,
}

/// What a change came to. With status 202 the operation has not ended: ask `/v1/operations/{id}?wait_ms=`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    pub operation: Operation,
    /// As of this answer; absent once destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Vm>,
    /// Of a destroy that has ended: the snapshots of the VM that outlive it, parents before children.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub snapshots_kept: Option<Vec<SnapshotId>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    pub vms: Vec<Vm>,
    /// Of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    #[schema(schema_with = schema::uuid)]
    pub id: VmId,
    #[schema(value_type = String)]
    pub name: VmName,
    pub owner: String,
    #[serde(default)]
    pub labels: Labels,
    pub node: String,
    /// As asked for.
    #[schema(value_type = String)]
    pub image: ImageRef,
    /// What it is bound to, whatever the tag says later.
    #[schema(value_type = String)]
    pub image_digest: ImageDigest,
    #[schema(schema_with = schema::vm_state)]
    pub state: VmStateName,
    /// Counts the moves of this VM.
    #[schema(value_type = u64)]
    pub generation: Generation,
    /// Why it is in state `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<VmFailure>,
    /// What runs it.
    #[schema(schema_with = schema::provider)]
    pub provider: ProviderKind,
    /// The class proven for it on this host.
    #[schema(schema_with = schema::isolation)]
    pub isolation: IsolationClass,
    pub memory_mib: u64,
    pub cpus: u64,
    pub disk_mib: u64,
    /// Destroyed with the request that made it.
    pub ephemeral: bool,
    pub snapshot_policy: SnapshotPolicy,
    pub life: Life,
    #[schema(schema_with = schema::timestamp)]
    pub created: Timestamp,
    #[schema(schema_with = schema::timestamp)]
    pub updated: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::timestamp)]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
    /// Measured; only in the answer for one VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The operation under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub operation: Option<OperationId>,
    /// What it continues from when it is started next; absent if it boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub suspended_to: Option<SnapshotId>,
    /// Where it stands in the tree of states: the parent of its next snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub position: Option<SnapshotId>,
    /// What its guest said when it was renewed last; absent for one that booted, or since the daemon's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestations: Option<Attestations>,
    /// What its latest process was begun from; absent before the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_start: Option<LastStart>,
    /// Kept states of it; only in the answers of `list` and `show`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u64>,
    /// The outermost open transaction, which owns it; only in the answers of `list` and `show`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<Transaction>,
}

/// Where a failed VM stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmFailure {
    pub reason: String,
    /// The step that failed, such as `start/boot`.
    pub step: String,
}

/// What the agent inside said of itself. Guest data: never trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Guest {
    /// Its kernel's release.
    pub kernel: String,
    pub agent_version: String,
    /// From kernel start to agent ready.
    pub ready_ms: u64,
    pub health: GuestHealth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GuestHealth {
    /// It answered the last heartbeat.
    Responsive,
    /// Its process lives, but heartbeats go unanswered.
    Silent,
    /// The channel to it was lost and is being opened again.
    Reconnecting,
}

/// Measured figures of the VM's processes, at most half a second old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    pub pss_bytes: u64,
    pub rss_bytes: u64,
    pub cpu_ms: u64,
    /// Of the guest's memory, what is the process's own: what a snapshot copies, and no other VM shares. Absent where a
    /// snapshot's cost does not follow from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_memory_bytes: Option<u64>,
}

/// Wait for a VM to reach a state, or to move at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Return when the VM is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Return when the VM's generation is above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer_than: Option<u64>,
    /// At most 60000; then the answer says `reached: false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WaitOutcome {
    /// False if the time was up first.
    pub reached: bool,
    pub vm: Vm,
}

/// A TCP port inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TcpQuery {
    pub port: u32,
}

impl TcpQuery {
    pub fn port(&self) -> Result<u16, InvalidField> {
        match u16::try_from(self.port) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(InvalidField::new("port", format!("{} is not a TCP port (1 to 65535)", self.port))),
        }
    }
}

impl Changed {
    pub fn operation_id(&self) -> OperationId {
        self.operation.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(wire: CreateVm) -> String {
        NewVm::try_from(wire).expect_err("must be refused").field
    }

    #[test]
    fn every_bad_setting_is_refused_by_its_name() {
        let good = CreateVm { name: "web".into(), ..CreateVm::default() };
        assert!(NewVm::try_from(good.clone()).is_ok());
        assert_eq!(refused(CreateVm { name: "Web".into(), ..good.clone() }), "name");
        assert_eq!(refused(CreateVm { image: Some("../x".into()), ..good.clone() }), "image");
        assert_eq!(refused(CreateVm { provider: Some("docker".into()), ..good.clone() }), "provider");
        assert_eq!(refused(CreateVm { isolation: Some("strong".into()), ..good.clone() }), "isolation");
        assert_eq!(refused(CreateVm { memory_mib: Some(0), ..good.clone() }), "memory_mib");
        assert_eq!(refused(CreateVm { memory_mib: Some(u64::MAX), ..good.clone() }), "memory_mib");
        assert_eq!(refused(CreateVm { cpus: Some(0), ..good.clone() }), "cpus");
        assert_eq!(refused(CreateVm { cpus: Some(65_537), ..good.clone() }), "cpus");
        assert_eq!(refused(CreateVm { disk_mib: Some(1), ..good.clone() }), "disk_mib");
        let labels = [(String::new(), String::new())].into();
        assert_eq!(refused(CreateVm { labels, ..good.clone() }), "labels");
        let always = SetSnapshotPolicy { mode: Some("always".into()), auto_rollback: None };
        assert_eq!(refused(CreateVm { snapshot_policy: Some(always), ..good }), "snapshot_policy.mode");
    }

    #[test]
    fn a_field_nobody_reads_is_an_error() {
        let error = serde_json::from_str::<CreateVm>(r#"{"name":"a","memory":"256M"}"#).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }
}
