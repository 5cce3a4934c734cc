//! Options that several verbs share, as typed values.

use crate::{
    duration::{InvalidSpan, Span},
    session,
};
use clap::{Args, ValueEnum};
use offshoot_api::Client;
use offshoot_api::v1::{ExecLimits, ExecRequest, PtySize, SetLife, SetSnapshotPolicy};
use offshoot_types::{
    AgentName, AutoSnapshot, Bytes, CpuCount, DiskMib, ImageRef, InvalidAgent, InvalidId, IsolationClass,
    Labels, MemMib, OnTimeout, ProviderChoice, TransactionId, Wake,
};
use std::{collections::BTreeMap, str::FromStr};

/// What a new VM is to be.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "VM options")]
pub struct VmOptions {
    /// Image to boot: a tag, or `sha256:` and its digest
    #[arg(long, value_name = "IMAGE", default_value = "base")]
    image: ImageRef,
    /// Memory, such as `256M` or `2G` [default: what the image says]
    #[arg(long, value_name = "SIZE")]
    memory: Option<MemMib>,
    /// Virtual CPUs
    #[arg(long, value_name = "COUNT", default_value_t = CpuCount::ONE)]
    cpus: CpuCount,
    /// Size of the data disk, which takes only what is written [default: 2G]
    #[arg(long, value_name = "SIZE")]
    disk: Option<DiskMib>,
    /// What runs it: `auto` is what the daemon was told to prefer (OFFSHOOT_PROVIDER), else the strongest isolation proven on
    /// this host
    #[arg(long, value_name = "PROVIDER", default_value_t = ProviderChoice::Auto)]
    provider: ProviderChoice,
    /// Refuse anything weaker: `hardware-vm`, `emulated-vm` or `user-space-kernel`
    #[arg(long, value_name = "CLASS")]
    isolation: Option<IsolationClass>,
    /// A note on the VM, KEY=VALUE; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Assignment>,
    /// Take snapshots without being asked: `before-exec`, `on-failure` (what a failed command left) or `before-risky`
    #[arg(long, value_name = "WHEN", default_value_t = AutoSnapshot::Never)]
    snapshot_policy: AutoSnapshot,
    /// Take the VM back to the state before it whenever a command fails
    #[arg(long)]
    auto_rollback: bool,
    #[command(flatten)]
    life: LifeOptions,
}

/// When a VM rests by itself.
#[derive(Debug, Clone, Args)]
pub struct LifeOptions {
    /// Suspend the VM when nothing was asked of it for this long, such as `10m`, or `never`
    #[arg(long, value_name = "DURATION")]
    idle_suspend: Option<Limit>,
    /// Let a request continue the VM while it is suspended: `auto` (if it was suspended by itself), `always` or `never`
    #[arg(long, value_name = "WHEN")]
    wake: Option<Wake>,
    /// Let the VM run for this long after each start, such as `2h`, or `never` end; of a VM that runs it counts from now
    #[arg(long, value_name = "DURATION")]
    lifetime: Option<Limit>,
    /// What becomes of the VM then: `suspend`, `stop` or `destroy` [default: suspend]
    #[arg(long, value_name = "WHAT")]
    on_timeout: Option<OnTimeout>,
}

impl LifeOptions {
    /// `None` if none is given.
    pub fn change(&self) -> Option<SetLife> {
        let change = SetLife {
            idle_suspend_ms: self.idle_suspend.map(Limit::millis),
            wake: self.wake.map(|wake| wake.to_string()),
            timeout_ms: self.lifetime.map(Limit::millis),
            on_timeout: self.on_timeout.map(|what| what.to_string()),
        };
        (change != SetLife::default()).then_some(change)
    }
}

/// A duration, or `never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(Option<Span>);

impl Limit {
    /// `None`: without a limit.
    pub fn span(self) -> Option<std::time::Duration> {
        self.0.map(|span| span.0)
    }

    /// As requests carry it: 0 is no limit.
    fn millis(self) -> u64 {
        self.0.map_or(0, Span::millis)
    }
}

impl FromStr for Limit {
    type Err = InvalidSpan;
    fn from_str(text: &str) -> Result<Self, InvalidSpan> {
        match text {
            "never" => Ok(Self(None)),
            span => span.parse().map(|span| Self(Some(span))),
        }
    }
}

/// [`VmOptions`] as requests carry them.
#[derive(Debug, Default)]
pub struct VmSettings {
    pub image: Option<String>,
    pub provider: Option<String>,
    pub isolation: Option<String>,
    pub memory_mib: Option<u64>,
    pub cpus: Option<u64>,
    pub disk_mib: Option<u64>,
    pub labels: Labels,
    pub snapshot_policy: Option<SetSnapshotPolicy>,
    pub life: Option<SetLife>,
}

impl VmOptions {
    pub fn settings(&self) -> VmSettings {
        VmSettings {
            image: Some(self.image.to_string()),
            provider: Some(self.provider.to_string()),
            isolation: self.isolation.map(|class| class.to_string()),
            memory_mib: self.memory.map(|memory| memory.mib().into()),
            cpus: Some(self.cpus.get().into()),
            disk_mib: self.disk.map(|disk| disk.mib().into()),
            labels: pairs(&self.labels),
            snapshot_policy: Some(SetSnapshotPolicy {
                mode: Some(self.snapshot_policy.to_string()),
                auto_rollback: Some(self.auto_rollback),
            }),
            life: self.life.change(),
        }
    }
}

/// A setting that is on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

impl Switch {
    pub fn is_on(self) -> bool {
        self == Self::On
    }

    pub const fn word(on: bool) -> &'static str {
        if on { "on" } else { "off" }
    }
}

/// The transaction a verb acts from within. An empty variable names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Within(pub Option<TransactionId>);

impl FromStr for Within {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text {
            "" => Ok(Self(None)),
            id => id.parse().map(|id| Self(Some(id))),
        }
    }
}

/// On whose behalf something is run. An empty variable names nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent(pub Option<AgentName>);

impl FromStr for Agent {
    type Err = InvalidAgent;
    fn from_str(text: &str) -> Result<Self, InvalidAgent> {
        match text {
            "" => Ok(Self(None)),
            name => name.parse().map(|name| Self(Some(name))),
        }
    }
}

/// How a process is to run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Process options")]
pub struct ProcessOptions {
    /// User inside the VM, by name or uid
    #[arg(long, value_name = "USER", default_value = "root")]
    pub user: String,
    /// Working directory [default: the user's home]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Set a variable, KEY=VALUE, or KEY to pass on ours; may be repeated
    #[arg(long = "env", value_name = "KEY[=VALUE]")]
    pub env: Vec<Variable>,
    /// Keep at most so much of its output, such as `1M`; the rest is dropped
    #[arg(long, value_name = "SIZE")]
    pub max_output: Option<Bytes>,
    /// Say on whose behalf it is run, for `offshoot history`
    #[arg(long, value_name = "NAME", env = "OFFSHOOT_AGENT", hide_env_values = true)]
    pub agent: Option<Agent>,
}

impl ProcessOptions {
    /// What `--env` puts into the environment.
    pub fn environment(&self) -> std::collections::BTreeMap<String, String> {
        environment(&self.env)
    }

    /// A client that says on whose behalf it asks.
    pub fn speaking(&self, client: Client) -> Client {
        match self.agent.clone().and_then(|agent| agent.0) {
            Some(agent) => client.on_behalf_of(agent),
            None => client,
        }
    }

    /// The request for `argv`. With `--json` output is held in memory, hence bounded.
    pub fn request(&self, argv: Vec<String>, timeout: Option<Span>, json: bool) -> ExecRequest {
        let max_output = self.max_output.or(json.then_some(session::CAPTURE_LIMIT));
        ExecRequest {
            argv: Some(argv),
            env: self.environment(),
            cwd: self.cwd.clone(),
            user: Some(self.user.clone()),
            limits: ExecLimits {
                timeout_ms: timeout.map(Span::millis),
                max_output_bytes: max_output.map(|size| size.0),
                ..ExecLimits::default()
            },
            ..ExecRequest::default()
        }
    }
}

pub fn environment(variables: &[Variable]) -> std::collections::BTreeMap<String, String> {
    variables.iter().filter_map(Variable::resolve).collect()
}

/// Gives the process a pseudo-terminal as large as ours.
pub fn with_terminal(mut request: ExecRequest) -> ExecRequest {
    request.pty = Some(crate::terminal::size().unwrap_or(PtySize { rows: 24, cols: 80 }));
    if let Ok(term) = std::env::var("TERM") {
        request.env.entry("TERM".into()).or_insert(term);
    }
    request
}

/// `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    key: String,
    value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not of the form KEY=VALUE")]
pub struct InvalidAssignment {
    text: String,
}

impl FromStr for Assignment {
    type Err = InvalidAssignment;
    fn from_str(text: &str) -> Result<Self, InvalidAssignment> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.into(), value: value.into() }),
            _ => Err(InvalidAssignment { text: text.into() }),
        }
    }
}

fn pairs(assignments: &[Assignment]) -> BTreeMap<String, String> {
    assignments.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect()
}

/// `KEY=VALUE`, or `KEY` for the value it has here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    Given(Assignment),
    PassedOn(String),
}

impl FromStr for Variable {
    type Err = InvalidAssignment;
    fn from_str(text: &str) -> Result<Self, InvalidAssignment> {
        match text.contains('=') {
            true => text.parse().map(Self::Given),
            false if !text.is_empty() => Ok(Self::PassedOn(text.into())),
            false => Err(InvalidAssignment { text: text.into() }),
        }
    }
}

impl Variable {
    /// Nothing if it is to be passed on and is not set, or is not text.
    fn resolve(&self) -> Option<(String, String)> {
        match self {
            Self::Given(pair) => Some((pair.key.clone(), pair.value.clone())),
            Self::PassedOn(key) => Some((key.clone(), std::env::var(key).ok()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_names_no_transaction_and_a_wrong_one_is_refused() {
        assert_eq!("".parse(), Ok(Within(None)));
        let id = TransactionId::new();
        assert_eq!(id.to_string().parse(), Ok(Within(Some(id))));
        assert!("web".parse::<Within>().is_err());
    }

    #[test]
    fn a_limit_is_a_duration_or_never() {
        assert_eq!("never".parse(), Ok(Limit(None)));
        assert_eq!("90s".parse::<Limit>().unwrap().millis(), 90_000);
        assert_eq!(Limit(None).millis(), 0);
        assert!("0s".parse::<Limit>().is_err() && "".parse::<Limit>().is_err());
    }

    #[test]
    fn a_variable_is_given_or_passed_on() {
        let given: Variable = "A=b=c".parse().unwrap();
        assert_eq!(given.resolve(), Some(("A".into(), "b=c".into())));
        assert_eq!("A=".parse::<Variable>().unwrap().resolve(), Some(("A".into(), String::new())));
        let path: Variable = "PATH".parse().unwrap();
        assert_eq!(path.resolve(), Some(("PATH".into(), std::env::var("PATH").unwrap())));
        assert_eq!("OFFSHOOT_SURELY_NOT_SET".parse::<Variable>().unwrap().resolve(), None);
        assert!("=x".parse::<Variable>().is_err());
        assert!("".parse::<Variable>().is_err());
        assert!("novalue".parse::<Assignment>().is_err());
    }
}
