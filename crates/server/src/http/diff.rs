//! What differs between two states.

use super::{
    error::{ApiError, BranchErrors},
    extract::Json,
    forks,
    request::Call,
    vms,
};
use offshoot_api::v1::{self, Diff, DiffRequest, NewDiff, text_of};
use offshoot_engine::{
    DiffOptions, DiffReport, Differences, Entry, EntryKind, FileChange, LookedAt, PackageChange,
    PackageManager, ProcessChange, SnapshotView, Subject,
};
use offshoot_types::{Command, ErrorCode, Failure, ForkSource, SnapshotOrigin, SnapshotRef};

/// Files, packages and processes that differ between two states. A snapshot, a suspended or a stopped VM is looked into
/// as a copy that nobody else sees, which is gone when this answers; a running VM is looked at as it is. A caller that
/// leaves ends the comparison.
#[utoipa::path(post, path = "/v1/diff", tag = "snapshots", operation_id = "diff", request_body = DiffRequest,
    responses((status = 200, body = Diff), BranchErrors))]
pub async fn diff(call: Call, Json(request): Json<DiffRequest>) -> Result<axum::Json<Diff>, ApiError> {
    let NewDiff { from, to, files, packages, processes, limit } = request.try_into()?;
    let to = forks::resolve(&call, to).await?;
    let from = match from {
        Some(from) => forks::resolve(&call, from).await?,
        None => origin(&call, &to).await?,
    };
    // Both ends are judged.
    let _to = call.permit(Command::Diff { from: to.clone(), to: from.clone() }).await?;
    let permit = call.permit(Command::Diff { from, to }).await?;
    let options = DiffOptions { files, packages, processes, limit: limit as usize };
    let report = call.until_cut(call.engine.diff(permit, options)).await?;
    Ok(axum::Json(wire(report)))
}

/// What a state came of. Passed over is what was kept in passing, for forks and to rest, as a rollback does.
async fn origin(call: &Call, state: &ForkSource) -> Result<ForkSource, Failure> {
    let (name, mut origin) = match state {
        ForkSource::Vm(vm) => {
            let view = vms::glance(call, vm.clone()).await?;
            (format!("VM `{}`", view.name), view.position)
        }
        ForkSource::Snapshot(snapshot) => {
            (format!("snapshot `{snapshot}`"), look_up(call, snapshot.clone()).await?.parent)
        }
    };
    while let Some(id) = origin {
        let found = look_up(call, SnapshotRef::Id(id)).await?;
        if !matches!(found.origin, SnapshotOrigin::Fork | SnapshotOrigin::Suspend) {
            return Ok(ForkSource::Snapshot(SnapshotRef::Id(id)));
        }
        origin = found.parent;
    }
    let message = format!("{name} came of no snapshot that could be compared with it");
    Err(Failure::new(ErrorCode::NotFound, message).hint("name both states: `offshoot diff FROM TO`"))
}

async fn look_up(call: &Call, snapshot: SnapshotRef) -> Result<SnapshotView, Failure> {
    call.engine.snapshot_view(call.permit(Command::InspectSnapshot { snapshot }).await?).await
}

fn wire(report: DiffReport) -> Diff {
    let differs = report.differs();
    Diff {
        from: subject(report.from),
        to: subject(report.to),
        differs,
        files: report.files.map(|found| {
            let (counts, changes) = split(found, file);
            v1::FileDifferences { counts, changes }
        }),
        packages: report.packages.map(|found| {
            let (counts, changes) = split(found, package);
            v1::PackageDifferences { counts, changes }
        }),
        processes: report.processes.map(|found| {
            let (counts, changes) = split(found, process);
            v1::ProcessDifferences { counts, changes }
        }),
    }
}

fn subject(subject: Subject) -> v1::DiffSubject {
    let looked_at = subject.looked_at.map(|how| match how {
        LookedAt::Running => v1::LookedAt::Running,
        LookedAt::Memory => v1::LookedAt::Memory,
        LookedAt::Disk => v1::LookedAt::Disk,
    });
    v1::DiffSubject { vm: subject.vm, name: subject.name, snapshot: subject.snapshot, looked_at }
}

fn split<T, W>(found: Differences<T>, wire: fn(T) -> W) -> (v1::DiffCounts, Vec<W>) {
    let counts = v1::DiffCounts {
        added: found.added,
        modified: found.modified,
        removed: found.removed,
        more: found.more(),
        left_out: found.left_out,
        unknown: found.unknown,
    };
    (counts, found.changes.into_iter().map(wire).collect())
}

const fn difference(before: bool, after: bool) -> v1::Difference {
    match (before, after) {
        (false, _) => v1::Difference::Added,
        (true, false) => v1::Difference::Removed,
        (true, true) => v1::Difference::Modified,
    }
}

fn file(change: FileChange) -> v1::FileDifference {
    let (path, path_base64) = text_of(change.path);
    v1::FileDifference {
        difference: difference(change.from.is_some(), change.to.is_some()),
        path,
        path_base64,
        from: change.from.map(facts),
        to: change.to.map(facts),
    }
}

fn facts(entry: Entry) -> v1::FileFacts {
    let (target, target_base64) =
        entry.target.map(text_of).map_or((None, None), |(text, raw)| (Some(text), raw));
    v1::FileFacts {
        kind: match entry.kind {
            EntryKind::File => v1::DiskKind::File,
            EntryKind::Directory => v1::DiskKind::Directory,
            EntryKind::Symlink => v1::DiskKind::Symlink,
            EntryKind::Fifo => v1::DiskKind::Fifo,
            EntryKind::Socket => v1::DiskKind::Socket,
            EntryKind::CharDevice => v1::DiskKind::CharDevice,
            EntryKind::BlockDevice => v1::DiskKind::BlockDevice,
        },
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size: entry.size,
        target,
        target_base64,
        device: entry.device,
    }
}

fn package(change: PackageChange) -> v1::PackageDifference {
    v1::PackageDifference {
        difference: difference(change.from.is_some(), change.to.is_some()),
        manager: match change.manager {
            PackageManager::Dpkg => v1::PackageManager::Dpkg,
            PackageManager::Pip => v1::PackageManager::Pip,
        },
        name: change.name,
        from: change.from,
        to: change.to,
    }
}

fn process(change: ProcessChange) -> v1::ProcessDifference {
    let (command, command_base64) = text_of(change.command);
    v1::ProcessDifference {
        difference: difference(change.from > 0, change.to > 0),
        user: change.user,
        command,
        command_base64,
        from: change.from,
        to: change.to,
    }
}
