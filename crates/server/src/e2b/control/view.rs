//! VMs as sandboxes.

use super::{
    error::not_found,
    labels,
    wire::{Lifecycle, ListedSandbox, OnTimeout, PauseMode, Sandbox, SandboxDetail, State},
};
use crate::{
    e2b::Purpose,
    http::{Call, glance},
};
use axum::http::{HeaderMap, header};
use offshoot_engine::VmView;
use offshoot_types::{Command, Failure, Lifetime, OnTimeout as VmOnTimeout, VmRef, VmStateName, Wake};

/// What is served of envd, as clients decide by it what they may ask for:
///
/// | version | what it promises |
/// |---|---|
/// | 0.1.4, 0.1.5, 0.2.4 | recursive watches; metrics; those of the disk |
/// | 0.3.0, 0.5.2 | `stdin` of Start; CloseStdin |
/// | 0.4.0 | a default user |
/// | 0.5.7 | uploads as octet-stream, and compressed |
/// | 0.6.2, 0.6.3, 0.6.4 | metadata of files; entries in events; watches on network mounts |
pub const ENVD_VERSION: &str = "0.6.4";
/// Who runs it, on the wire.
const CLIENT: &str = "offshoot";

/// The VM behind a sandbox's id. One that is gone or has failed is not there for clients.
pub async fn find(call: &Call, id: &str) -> Result<VmView, Failure> {
    let name = id.parse().map_err(|_no_name| not_found(id))?;
    let vm = glance(call, VmRef::Name(name)).await.map_err(|failure| match failure.code {
        offshoot_types::ErrorCode::NotFound => not_found(id),
        _ => failure,
    })?;
    state(&vm).map(|_| vm).ok_or_else(|| not_found(id))
}

/// `None` for one that is no sandbox.
pub fn state(vm: &VmView) -> Option<State> {
    if vm.lifetime == Lifetime::Request {
        return None;
    }
    match vm.state.name() {
        VmStateName::Running | VmStateName::Starting | VmStateName::Suspending | VmStateName::Stopping => {
            Some(State::Running)
        }
        VmStateName::Suspended | VmStateName::Stopped | VmStateName::Paused => Some(State::Paused),
        VmStateName::Creating | VmStateName::Migrating | VmStateName::Failed | VmStateName::Destroyed => None,
    }
}

fn template(vm: &VmView) -> String {
    vm.labels.get(labels::TEMPLATE).cloned().unwrap_or_else(|| vm.image.to_string())
}

/// Where clients are to look for sandboxes: by the host they came by, on which any name below `localhost` is this host.
pub fn domain(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
        _ => (host, None),
    };
    let is_address = name.parse::<std::net::IpAddr>().is_ok() || name.starts_with('[');
    let name = if is_address { "localhost" } else { name };
    port.map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

/// With the tokens that open it, for somebody who may have them.
pub async fn opened(call: &Call, headers: &HeaderMap, vm: &VmView) -> Result<Sandbox, Failure> {
    let private = vm.labels.contains_key(labels::TRAFFIC);
    let traffic_access_token = if private { Some(token(call, vm, Purpose::Traffic).await?) } else { None };
    Ok(Sandbox {
        template: template(vm),
        sandbox: vm.name.to_string(),
        client: CLIENT.into(),
        envd_version: ENVD_VERSION,
        envd_access_token: token(call, vm, Purpose::Access).await?,
        traffic_access_token,
        domain: domain(headers),
        alias: vm.image.to_string(),
    })
}

async fn token(call: &Call, vm: &VmView, purpose: Purpose) -> Result<String, Failure> {
    let permit = call.permit(Command::Admit { vm: VmRef::Id(vm.id) }).await?;
    call.app.tokens.give(permit, purpose)
}

/// As lists show it.
pub fn listed(vm: &VmView, state: State) -> ListedSandbox {
    ListedSandbox {
        template: template(vm),
        sandbox: vm.name.to_string(),
        client: CLIENT.into(),
        alias: vm.image.to_string(),
        started_at: vm.started_at.unwrap_or(vm.created),
        // One that rests has no end of its own.
        end_at: vm.deadline.unwrap_or(vm.updated),
        cpu_count: vm.cpus.get(),
        memory: vm.memory.mib().into(),
        disk: vm.disk.mib().into(),
        state,
        envd_version: ENVD_VERSION,
        metadata: labels::metadata(&vm.labels),
    }
}

pub async fn detail(call: &Call, headers: &HeaderMap, vm: &VmView) -> Result<SandboxDetail, Failure> {
    let state = state(vm).ok_or_else(|| not_found(vm.name.as_str()))?;
    let pause_mode = (state == State::Paused).then_some(match vm.suspended_to {
        Some(_) => PauseMode::Full,
        None => PauseMode::Filesystem,
    });
    let on_timeout = match vm.life.on_timeout {
        VmOnTimeout::Destroy => OnTimeout::Kill,
        VmOnTimeout::Suspend | VmOnTimeout::Stop => OnTimeout::Pause,
    };
    Ok(SandboxDetail {
        listed: listed(vm, state),
        envd_access_token: match token(call, vm, Purpose::Access).await {
            Ok(token) => Some(token),
            // Whoever may only look is not let in.
            Err(failure) if failure.code == offshoot_types::ErrorCode::Denied => None,
            Err(failure) => return Err(failure),
        },
        allow_internet_access: false,
        domain: domain(headers),
        lifecycle: Lifecycle { auto_resume: vm.life.wake == Wake::Always, on_timeout },
        pause_mode,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_is_the_host_clients_came_by_or_one_that_any_name_can_stand_below() {
        let of = |host: &str| domain(&HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]));
        assert_eq!(of("127.0.0.1:3000"), "localhost:3000");
        assert_eq!(of("[::1]:3000"), "localhost:3000");
        assert_eq!(of("box.example:8443"), "box.example:8443");
        assert_eq!(of("box.example"), "box.example");
        assert_eq!(domain(&HeaderMap::new()), "localhost");
    }
}
