//! New sandboxes: of an image, or continuing from a snapshot.

use super::{
    asked::Asked,
    branches,
    error::{Refused, invalid},
    labels, network, view,
    wire::{DEFAULT_TIMEOUT, NewSandbox, SHORT_TIMEOUT, Sandbox},
};
use crate::http::{Call, finished, glance, specify};
use axum::{
    Json,
    http::{HeaderMap, StatusCode},
};
use offshoot_api::v1::{CreateVm, NewVm};
use offshoot_engine::{ForkSettings, VmView};
use offshoot_types::{
    Command, Environment, ErrorCode, Failure, ForkSource, Labels, Life, LifeChange, Lifetime, OnTimeout,
    Operation, SnapshotRef, TimeLimit, VmId, VmName, VmRef, VmStateName, Wake,
};
use std::time::Duration;

/// Names the request: the same one again answers with the sandbox of the first.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
const MAX_KEY: usize = 255;
/// Whatever is asked for, nothing lives longer in one go.
const MAX_TIMEOUT: u64 = 30 * 24 * 3600;

pub async fn create(
    call: Call,
    headers: HeaderMap,
    Asked(request): Asked<NewSandbox>,
) -> Result<(StatusCode, Json<Sandbox>), Refused> {
    call.detached(make(call.clone(), headers, request, DEFAULT_TIMEOUT)).await
}

/// As SDKs before version 2 ask for it.
pub async fn create_by_older(
    call: Call,
    headers: HeaderMap,
    Asked(request): Asked<NewSandbox>,
) -> Result<(StatusCode, Json<Sandbox>), Refused> {
    call.detached(make(call.clone(), headers, request, SHORT_TIMEOUT)).await
}

/// A checked [`NewSandbox`].
struct Wanted {
    template: String,
    labels: Labels,
    env: Environment,
    life: Life,
}

impl Wanted {
    fn of(request: NewSandbox, default_timeout: u64) -> Result<Self, Refused> {
        let unsupported =
            |what: &str| Failure::new(ErrorCode::Unsupported, format!("{what} are not there yet"));
        let mounts = request.volume_mounts.as_ref().is_some_and(|mounts| !mounts.is_empty());
        if mounts {
            return Err(Refused::with(StatusCode::BAD_REQUEST, unsupported("volumes")));
        }
        if request.mcp.as_ref().is_some_and(|mcp| !mcp.is_null()) {
            return Err(Refused::with(StatusCode::BAD_REQUEST, unsupported("MCP gateways")));
        }
        if request.iam.as_ref().is_some_and(|iam| !iam.is_null()) {
            return Err(Refused::with(StatusCode::BAD_REQUEST, unsupported("workload identities")));
        }
        network::check(request.internet, request.network.as_ref())?;
        let auto_resume = request.auto_resume.as_ref().is_some_and(|resume| resume.enabled);
        let on_timeout = match (request.auto_pause, request.auto_pause_memory) {
            (Some(false), _) => OnTimeout::Destroy,
            // Its disk alone is kept.
            (_, Some(false)) => OnTimeout::Stop,
            _ => OnTimeout::Suspend,
        };
        if auto_resume && on_timeout == OnTimeout::Stop {
            let problem = "a sandbox that keeps its filesystem only cannot be resumed by requests";
            return Err(invalid("autoPauseMemory", problem));
        }
        let mut labels = labels::of_metadata(request.metadata.unwrap_or_default())?;
        labels.insert(labels::TEMPLATE.into(), request.template.clone());
        if let Some(allowed) = request.internet {
            labels.insert(labels::INTERNET.into(), if allowed { "allow" } else { "deny" }.into());
        }
        if request.network.is_some_and(|network| network.allow_public_traffic == Some(false)) {
            labels.insert(labels::TRAFFIC.into(), "private".into());
        }
        Ok(Self {
            template: request.template,
            labels,
            env: request.env_vars.unwrap_or_default(),
            life: Life {
                idle_suspend: None,
                wake: if auto_resume { Wake::Always } else { Wake::Never },
                timeout: Some(seconds("timeout", request.timeout.unwrap_or(default_timeout))?),
                on_timeout,
            },
        })
    }

    /// What it is to have instead of what the VM of its snapshot had.
    fn change(&self) -> LifeChange {
        LifeChange {
            idle_suspend: Some(TimeLimit::None),
            wake: Some(self.life.wake),
            timeout: self.life.timeout.map(TimeLimit::After),
            on_timeout: Some(self.life.on_timeout),
        }
    }
}

/// A time limit in seconds.
pub fn seconds(field: &str, seconds: u64) -> Result<Duration, Refused> {
    match seconds <= MAX_TIMEOUT {
        true => Ok(Duration::from_secs(seconds)),
        false => Err(invalid(field, format!("{seconds} seconds are more than {MAX_TIMEOUT}"))),
    }
}

async fn make(
    call: Call,
    headers: HeaderMap,
    request: NewSandbox,
    default_timeout: u64,
) -> Result<(StatusCode, Json<Sandbox>), Refused> {
    let wanted = Wanted::of(request, default_timeout)?;
    let (name, repeatable) = match key(&headers)? {
        Some(key) => (name_of(&call, key), true),
        None => (new_name()?, false),
    };
    let name = behind_prefix(&call, name)?;
    let made = match branches::find_snapshot(&call, &wanted.template).await? {
        Some(snapshot) => continued(&call, name.clone(), SnapshotRef::Id(snapshot.id), wanted).await,
        None => started(&call, name.clone(), wanted).await,
    };
    let sandbox = match made {
        Ok(vm) => handed_out(&call, &headers, &vm).await?,
        Err(refused) if repeatable && refused.is(ErrorCode::AlreadyExists) => {
            view::opened(&call, &headers, &again(&call, &name).await?).await?
        }
        Err(refused) => return Err(refused),
    };
    Ok((StatusCode::CREATED, Json(sandbox)))
}

/// What a new one is opened with; one that its maker may not open is not left behind.
async fn handed_out(call: &Call, headers: &HeaderMap, vm: &VmView) -> Result<Sandbox, Failure> {
    let opened = view::opened(call, headers, vm).await;
    if opened.is_err() {
        discard(call, VmRef::Id(vm.id)).await;
    }
    opened
}

/// What a request made that came before, and whose answer may have been lost. If a daemon died in the middle of it, the
/// rest is done now.
async fn again(call: &Call, name: &VmName) -> Result<VmView, Refused> {
    let vm = glance(call, VmRef::Name(name.clone())).await?;
    let state = vm.state.name();
    if vm.lifetime == Lifetime::Request || state == VmStateName::Creating {
        let failure = Failure::new(ErrorCode::Busy, "the sandbox of this `Idempotency-Key` is being made");
        return Err(failure.hint("ask again").into());
    }
    // To start what starts already is to wait for it.
    let never_ran = vm.last_start.is_none() && matches!(state, VmStateName::Stopped | VmStateName::Failed);
    if never_ran || state == VmStateName::Starting {
        return Ok(ran(call, vm.id).await?);
    }
    view::state(&vm).map(|_| vm).ok_or_else(|| super::error::not_found(name.as_str()).into())
}

/// As the names of a key's VMs have to begin, if it is good for some only.
fn behind_prefix(call: &Call, name: VmName) -> Result<VmName, Refused> {
    match call.engine.key_limits(&call.actor).and_then(|limits| limits.vm_prefix) {
        None => Ok(name),
        Some(prefix) => format!("{prefix}{name}")
            .parse()
            .map_err(|error: offshoot_types::InvalidName| invalid("name", error)),
    }
}

/// One of an image, running: from the warm pool if there is one like it.
async fn started(call: &Call, name: VmName, wanted: Wanted) -> Result<VmView, Refused> {
    let Wanted { template, labels, env, life } = wanted;
    let image = image(&template);
    let provider = call.engine.key_limits(&call.actor).and_then(|limits| limits.provider);
    let request = CreateVm {
        name: name.to_string(),
        image: Some(image),
        provider: provider.map(|provider| provider.to_string()),
        labels,
        env,
        ..CreateVm::default()
    };
    let NewVm { name, mut settings, .. } = request.try_into()?;
    settings.life = life;
    let spec = specify(call, name, settings, Lifetime::Kept).await.map_err(|failure| match failure.code {
        ErrorCode::NotFound | ErrorCode::InvalidArgument => Refused::with(
            StatusCode::NOT_FOUND,
            Failure::new(ErrorCode::NotFound, format!("template '{template:.80}' not found"))
                .hint("templates are images (`offshoot image list`) and snapshots"),
        ),
        _ => failure.into(),
    })?;
    let created = call.engine.submit(call.permit(Command::Create { spec }).await?).await?;
    let id = finished(call, &created).await?.vm;
    let id = id.ok_or_else(|| Failure::new(ErrorCode::Internal, "a VM was made that has no id"))?;
    Ok(ran(call, id).await?)
}

/// A new one that runs; one that does not is not left behind.
async fn ran(call: &Call, vm: VmId) -> Result<VmView, Failure> {
    let vm = VmRef::Id(vm);
    match start(call, vm.clone()).await {
        Ok(()) => glance(call, vm).await,
        Err(failure) => {
            discard(call, vm).await;
            Err(failure)
        }
    }
}

/// One that goes on from a snapshot.
async fn continued(call: &Call, name: VmName, from: SnapshotRef, wanted: Wanted) -> Result<VmView, Refused> {
    let source = ForkSource::Snapshot(from);
    let permit = call.permit(Command::Fork { source, name: Some(name), count: 1 }).await?;
    let life = wanted.change();
    let settings = ForkSettings { labels: Some(wanted.labels), env: Some(wanted.env), life };
    let forked = call.until_cut(Box::pin(call.engine.fork_as(permit, settings))).await?;
    Ok(glance(call, VmRef::Id(forked.forks[0].vm)).await?)
}

pub async fn start(call: &Call, vm: VmRef) -> Result<(), Failure> {
    let operation = call.engine.submit(call.permit(Command::Start { vm }).await?).await?;
    finished(call, &operation).await.map(drop)
}

/// Leaves nothing of a sandbox that nobody was told of.
pub async fn discard(call: &Call, vm: VmRef) {
    let destroy = async {
        let permit = call.permit(Command::Destroy { vm: vm.clone() }).await?;
        let operation: Operation = call.engine.destroy_with_snapshots(permit).await?;
        finished(call, &operation).await
    };
    if let Err(failure) = destroy.await {
        tracing::warn!(%vm, code = %failure.code, message = failure.message, "a sandbox that was not handed out stays");
    }
}

/// The image a template's name means here.
fn image(template: &str) -> String {
    match template {
        "code-interpreter-v1" | "code-interpreter" => "interpreter".into(),
        name => name.into(),
    }
}

fn key(headers: &HeaderMap) -> Result<Option<&str>, Refused> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| !key.is_empty() && key.len() <= MAX_KEY);
    key.map(Some)
        .ok_or_else(|| invalid("Idempotency-Key", format!("it has 1 to {MAX_KEY} printable characters")))
}

/// Ids as clients know them: `i` and 19 of these.
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const DIGITS: usize = 19;

/// As unlikely to be guessed as 98 random bits.
pub fn new_name() -> Result<VmName, Failure> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| {
        Failure::new(ErrorCode::Internal, "the host gives no randomness").caused_by(&error)
    })?;
    Ok(name(blake3::hash(&random)))
}

/// The same name for the same key of the same caller.
fn name_of(call: &Call, key: &str) -> VmName {
    let mut hasher = blake3::Hasher::new_derive_key("offshoot sandbox by idempotency key 2026");
    hasher.update(call.actor.to_string().as_bytes()).update(&[0]).update(key.as_bytes());
    name(hasher.finalize())
}

fn name(hash: blake3::Hash) -> VmName {
    let mut number = u128::from_be_bytes(hash.as_bytes()[..16].try_into().expect("a hash has 32 bytes"));
    let mut text = String::from("i");
    for _ in 0..DIGITS {
        text.push(char::from(ALPHABET[(number % 36) as usize]));
        number /= 36;
    }
    text.parse().expect("letters and digits are a valid name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(json: serde_json::Value) -> Result<Wanted, Refused> {
        Wanted::of(serde_json::from_value(json).unwrap(), DEFAULT_TIMEOUT)
    }

    #[test]
    fn what_is_not_said_is_as_the_wire_has_it_and_a_time_limit_pauses() {
        let least = wanted(serde_json::json!({"templateID": "base", "unknown": 1})).unwrap();
        assert_eq!(least.life.timeout, Some(Duration::from_secs(300)));
        assert_eq!((least.life.on_timeout, least.life.wake), (OnTimeout::Suspend, Wake::Never));
        let on_timeout = |fields: serde_json::Value| {
            let mut json = serde_json::json!({"templateID": "base"});
            json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            wanted(json).map(|wanted| (wanted.life.on_timeout, wanted.life.wake))
        };
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(on_timeout(json(r#"{"autoPause":false}"#)).unwrap().0, OnTimeout::Destroy);
        assert_eq!(on_timeout(json(r#"{"autoPause":true}"#)).unwrap().0, OnTimeout::Suspend);
        assert_eq!(on_timeout(json(r#"{"autoPauseMemory":false}"#)).unwrap().0, OnTimeout::Stop);
        assert_eq!(on_timeout(json(r#"{"autoResume":{"enabled":true}}"#)).unwrap().1, Wake::Always);
        for refused in [
            r#"{"autoPauseMemory":false,"autoResume":{"enabled":true}}"#,
            r#"{"network":{"allowOut":["1.1.1.1"]}}"#,
            r#"{"volumeMounts":[{"name":"a","path":"/b"}]}"#,
            r#"{"metadata":{"e2b/template":"x"}}"#,
            r#"{"timeout":99999999}"#,
        ] {
            assert!(on_timeout(json(refused)).is_err(), "{refused}");
        }
    }

    #[test]
    fn ids_look_as_clients_know_them_and_do_not_repeat() {
        let (one, other) = (new_name().unwrap(), new_name().unwrap());
        assert_ne!(one, other);
        assert!(one.as_str().starts_with('i') && one.as_str().len() == 20, "{one}");
    }
}
