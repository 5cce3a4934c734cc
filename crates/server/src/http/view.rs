//! From what the engine knows to what the wire says.

use offshoot_api::v1;
use offshoot_engine::{ExecState, ExecView, GuestHealth, VmView};
use offshoot_types::{ExecArgv, Lifetime};

pub fn vm(view: VmView) -> v1::Vm {
    v1::Vm {
        id: view.id,
        name: view.name,
        owner: view.owner.to_string(),
        labels: view.labels,
        node: view.node.to_string(),
        image: view.image,
        image_digest: view.image_digest,
        state: view.state.name(),
        generation: view.generation,
        failure: v1::VmFailure::of(&view.state),
        provider: view.provider,
        isolation: view.isolation,
        memory_mib: view.memory.mib().into(),
        cpus: view.cpus.get().into(),
        disk_mib: view.disk.mib().into(),
        ephemeral: view.lifetime == Lifetime::Request,
        created: view.created,
        updated: view.updated,
        started_at: view.started_at,
        guest: view.guest.map(|guest| v1::Guest {
            kernel: guest.kernel,
            agent_version: guest.agent_version,
            ready_ms: guest.ready_ms,
            health: match guest.health {
                GuestHealth::Responsive => v1::GuestHealth::Responsive,
                GuestHealth::Silent => v1::GuestHealth::Silent,
                GuestHealth::Reconnecting => v1::GuestHealth::Reconnecting,
            },
        }),
        usage: view.usage.map(|usage| v1::Usage {
            pss_bytes: usage.pss.0,
            rss_bytes: usage.rss.0,
            cpu_ms: usage.cpu_time.as_millis() as u64,
        }),
        operation: view.operation,
    }
}

pub fn exec(view: ExecView) -> v1::ExecSummary {
    let (state, status, problem) = match view.state {
        ExecState::Running => (v1::ExecStateName::Running, None, None),
        ExecState::Ended(status) => (v1::ExecStateName::Ended, Some(status.into()), None),
        ExecState::Failed(failure) => (v1::ExecStateName::Failed, None, Some(failure.into())),
        ExecState::Interrupted => (v1::ExecStateName::Interrupted, None, None),
    };
    v1::ExecSummary {
        exec: view.id,
        operation: view.operation,
        command: match view.spec.argv {
            ExecArgv::Argv(argv) => argv,
            ExecArgv::Shell(script) => vec![script],
        },
        user: view.spec.user,
        pid: view.pid,
        started: view.started,
        state,
        status,
        problem,
    }
}
