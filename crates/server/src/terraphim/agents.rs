//! Which VM code of an agent runs in: the one that is named, else the agent's own, made on first use.

use super::{
    Asker,
    asked::{self, Provision},
    code::read,
    config::Config,
    told::{self, AGENT},
};
use crate::http::ApiError;
use axum::{body::Body, extract::Path};
use offshoot_api::{
    Client, ClientError,
    v1::{CreateVm, ExecStateName, InvalidField, Vm},
};
use offshoot_code::Language;
use offshoot_types::{ErrorCode, Failure, KeyLimits, VmName, VmRef, VmStateName};
use serde_json::{Value, json};

/// What Terraphim's settings call their usual kind of VM.
const USUAL: [&str; 2] = ["focal-optimized", "default"];
/// The image that has compilers.
const FULL: &str = "full";
/// How much of a client's name is in the name of its VM.
const SLUG: usize = 20;

/// A VM that runs, or goes on when it is used.
pub async fn site(
    asker: &Asker,
    agent: &str,
    config: &Config,
    vm: Option<&str>,
    languages: &[Language],
) -> Result<Vm, Failure> {
    let named = vm.or(config.vm.as_deref());
    if let Some(name) = named {
        let vm: VmRef = name.parse().map_err(|error| InvalidField::new("vm_id", error))?;
        return asker.client.vm(&vm).await.map_err(ClientError::into_failure);
    }
    own(asker, agent, config.vm_type.as_deref(), languages, config.auto_provision).await
}

/// The agent's own VM.
async fn own(
    asker: &Asker,
    agent: &str,
    vm_type: Option<&str>,
    languages: &[Language],
    may_make: bool,
) -> Result<Vm, Failure> {
    let name = name_of(asker, "agent", agent)?;
    let vm = VmRef::Name(name.clone());
    let found = match asker.client.vm(&vm).await {
        Ok(found) => Some(found),
        Err(error) if error.code() == ErrorCode::NotFound => None,
        Err(error) => return Err(error.into_failure()),
    };
    if let Some(found) = &found {
        if found.labels.get(AGENT).map(String::as_str) != Some(agent) {
            let message = format!("VM `{name}` has the name of the agent's own VM, and is another");
            return Err(Failure::new(ErrorCode::AlreadyExists, message)
                .hint("name a VM in `vm_id`, or destroy that one"));
        }
        // One that rests goes on by being used.
        if matches!(found.state, VmStateName::Running | VmStateName::Suspended) {
            return Ok(found.clone());
        }
    } else if !may_make {
        let message = format!("agent `{agent:.80}` has no VM, and `auto_provision` is false");
        return Err(
            Failure::new(ErrorCode::NotFound, message).hint("`POST /api/llm/provision/AGENT` makes one")
        );
    }
    let image = match vm_type {
        Some(vm_type) => Some(image(vm_type)),
        None if languages.iter().any(|language| language.interpreted().is_none()) => {
            built(&asker.client).await?
        }
        None => None,
    };
    let mut create = CreateVm { name: name.to_string(), image, ..of_caller(asker) };
    create.labels.insert(AGENT.into(), agent.into());
    offshoot_mcp::running(&asker.client, &create).await.map_err(ClientError::into_failure)?;
    asker.client.vm(&vm).await.map_err(ClientError::into_failure)
}

/// The image with compilers, if this host has it.
async fn built(client: &Client) -> Result<Option<String>, Failure> {
    let images = client.images().await.map_err(ClientError::into_failure)?.images;
    let there = images.iter().any(|image| image.tags.iter().any(|tag| tag == FULL));
    Ok(there.then(|| FULL.to_owned()))
}

/// What a kind of VM is here: an image. One that is not there is refused by its name when it is used.
pub fn image(vm_type: &str) -> String {
    if USUAL.contains(&vm_type) { "base".into() } else { vm_type.into() }
}

/// A VM that runs, as whoever asks may have one.
pub fn of_caller(asker: &Asker) -> CreateVm {
    let limits = asker.call.engine.key_limits(&asker.call.actor).unwrap_or(KeyLimits::NONE);
    let mut create = CreateVm {
        provider: limits.provider.map(|provider| provider.to_string()),
        start: true,
        wait: Some(true),
        ..CreateVm::default()
    };
    offshoot_mcp::rests(create.life.get_or_insert_default());
    create
}

/// The name of the VM that clients call by a name of any characters: no two of theirs are one of ours.
pub fn name_of(asker: &Asker, kind: &str, theirs: &str) -> Result<VmName, Failure> {
    let limits = asker.call.engine.key_limits(&asker.call.actor);
    let prefix = limits.and_then(|limits| limits.vm_prefix).map(|prefix| prefix.to_string());
    let name = derived(&prefix.unwrap_or_default(), kind, theirs);
    name.parse().map_err(|error: offshoot_types::InvalidName| {
        Failure::new(ErrorCode::InvalidArgument, "the key's prefix leaves no room for a VM's name")
            .caused_by(&error)
    })
}

fn derived(prefix: &str, kind: &str, theirs: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let slug: String = theirs.chars().take(SLUG).map(plain).collect();
    let slug = slug.trim_matches('-');
    let digits = &blake3::hash(theirs.as_bytes()).to_hex()[..12];
    let slug = if slug.is_empty() { String::new() } else { format!("{slug}-") };
    format!("{prefix}{kind}-{slug}{digits}")
}

/// The agent's VMs. There is one of its own; others are its if they say so by their label.
pub async fn pool(asker: Asker, Path(agent): Path<String>) -> Result<axum::Json<Value>, ApiError> {
    let agent = asked::name("agent_id", &agent)?;
    let all = asker.client.vms().await.map_err(ClientError::into_failure)?.vms;
    let (mut available, mut in_use) = (Vec::new(), Vec::new());
    for vm in all.iter().filter(|vm| vm.labels.get(AGENT).is_some_and(|of| of == agent)) {
        let told = told::vm(vm);
        if busy(&asker.client, vm).await? { in_use.push(told) } else { available.push(told) }
    }
    Ok(axum::Json(json!({
        "agent_id": agent,
        "available_vms": available,
        "in_use_vms": in_use,
        "pool_config": {
            "vm_pool_size": 1,
            "default_vm_type": "base",
            "auto_provision": true,
        },
    })))
}

/// Whether something runs in it now. What rests is not woken to be asked.
async fn busy(client: &Client, vm: &Vm) -> Result<bool, Failure> {
    if vm.operation.is_some() {
        return Ok(true);
    }
    if vm.state != VmStateName::Running {
        return Ok(false);
    }
    let (client, id) = (client.without_waking(), VmRef::Id(vm.id));
    let execs = client.execs(&id).await.map_err(ClientError::into_failure)?.execs;
    if execs.iter().any(|exec| exec.state == ExecStateName::Running) {
        return Ok(true);
    }
    let contexts = client.contexts(&id).await.map_err(ClientError::into_failure)?.contexts;
    Ok(contexts.iter().any(|context| context.busy))
}

/// The agent's own VM, made if there is none.
pub async fn provision(
    asker: Asker,
    Path(agent): Path<String>,
    body: Body,
) -> Result<axum::Json<Value>, ApiError> {
    let agent = asked::name("agent_id", &agent)?.to_owned();
    let Provision { vm_type } = read(body).await?;
    let call = asker.call.clone();
    let made = async move { own(&asker, &agent, vm_type.as_deref(), &[], true).await };
    Ok(axum::Json(told::vm(&call.detached::<_, Failure, _>(made).await?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_agent_has_a_name_of_its_own_that_a_vm_may_have() {
        let names: Vec<String> = ["a-b", "a_b", "A b", "日本", "", "-", &"x".repeat(200), &"x".repeat(199)]
            .map(|agent| derived("ci-", "agent", agent))
            .into();
        for (index, name) in names.iter().enumerate() {
            assert!(name.parse::<VmName>().is_ok(), "{name}");
            assert!(!names[index + 1..].contains(name), "{name}");
        }
        assert!(names[0].starts_with("ci-agent-a-b-"), "{}", names[0]);
    }

    #[test]
    fn the_usual_kind_of_vm_is_the_usual_image() {
        assert_eq!((image("focal-optimized"), image("full")), ("base".into(), "full".into()));
    }
}
