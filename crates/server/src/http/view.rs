//! From what the engine knows to what the wire says.

use offshoot_api::v1;
use offshoot_engine::{
    ExecState, ExecView, ForkReport, GuestHealth, PoolShelf, PoolSize, PoolTemplate, PoolView,
    RollbackReport, SnapshotView, TransactionView, VmView,
};
use offshoot_types::{ExecArgv, Lifetime, VmId};
use std::time::Duration;

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
        snapshot_policy: view.policy.into(),
        life: v1::Life::new(view.life, view.deadline),
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
            own_memory_bytes: usage.own_memory.map(|own| own.0),
        }),
        operation: view.operation,
        suspended_to: view.suspended_to,
        position: view.position,
        attestations: view.attestations.map(Into::into),
        last_start: view.last_start.map(Into::into),
        snapshots: None,
        transaction: None,
    }
}

pub fn pool(view: PoolView, vms: Vec<VmId>) -> v1::Pool {
    let (most, fixed) = match view.size {
        PoolSize::Off => (0, true),
        PoolSize::Fixed(count) => (count, true),
        PoolSize::Adaptive { most } => (most, false),
    };
    let shelf = |shelf: PoolShelf| v1::PoolShelf {
        image_digest: shelf.image,
        memory_mib: shelf.memory.mib().into(),
        cpus: shelf.cpus.get().into(),
        disk_mib: shelf.disk.mib().into(),
        provider: shelf.provider,
        isolation: shelf.isolation,
        template: match shelf.template {
            PoolTemplate::Ready(id) => Some(id),
            PoolTemplate::Absent | PoolTemplate::Building => None,
        },
        making: shelf.making || shelf.template == PoolTemplate::Building,
        ready: shelf.ready.into(),
        target: shelf.target.into(),
        claimed: shelf.claimed,
        missed: shelf.missed,
        trouble: shelf.trouble,
    };
    v1::Pool { most: most.into(), fixed, shelves: view.shelves.into_iter().map(shelf).collect(), vms }
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

fn microseconds(span: Duration) -> u64 {
    span.as_micros() as u64
}

pub fn snapshot(view: SnapshotView) -> v1::Snapshot {
    v1::Snapshot {
        id: view.id,
        name: view.name,
        vm: view.vm,
        vm_name: view.vm_name,
        kind: view.kind,
        origin: view.origin,
        state: view.state,
        parent: view.parent,
        quiesced: view.quiesced,
        note: view.note,
        size_bytes: view.size.0,
        memory_mib: view.memory.mib().into(),
        current: view.current,
        created: view.created,
        paused_us: view.paused.map(microseconds),
        operation: view.operation,
    }
}

pub fn forked(report: ForkReport) -> v1::Forked {
    let fork = |fork: offshoot_engine::ForkedVm| v1::ForkedVm {
        vm: fork.vm,
        name: fork.name,
        generation: fork.generation,
        attestations: fork.attestations.map(Into::into),
    };
    v1::Forked {
        operation: report.operation,
        snapshot: report.snapshot,
        paused_us: report.paused.map(microseconds),
        forks: report.forks.into_iter().map(fork).collect(),
    }
}

pub fn rolled_back(report: RollbackReport) -> v1::RolledBack {
    v1::RolledBack {
        operation: report.operation,
        vm: report.vm,
        to: report.to,
        undo: report.undo,
        generation: report.generation,
        undone: report.undone,
        attestations: report.attestations.map(Into::into),
        warning: report.warning,
    }
}

pub fn transaction(view: TransactionView) -> v1::Transaction {
    v1::Transaction {
        id: view.id,
        vm: view.vm,
        vm_name: view.vm_name,
        parent: view.parent,
        snapshot: view.snapshot,
        state: view.state,
        end: view.end.map(Into::into),
        begun: view.begun,
        deadline: view.deadline,
        ended: view.ended,
    }
}
