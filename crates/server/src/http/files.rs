//! Files inside a VM: everything but their contents.

use super::{
    error::{ApiError, GuestErrors},
    extract::{Json, Query, Vm},
    request::Call,
};
use axum::http::StatusCode;
use offshoot_api::v1::{
    self, DirectoryEntry, DirectoryList, ListQuery, MakeDirectory, PageQuery, RemoveFile, RenameFile,
    SetMode, StatQuery, Symlink, absolute_path,
};
use offshoot_engine::guest_failure;
use offshoot_guest_proto::{
    client::{ClientError, Files},
    message::{FileKind, FileStat},
};
use offshoot_types::{Command, Failure, FileAccess, VmRef};

/// Entries of one listing, each perhaps a kilobyte of JSON.
const MAX_ENTRIES: usize = 50_000;

/// Metadata of a file.
#[utoipa::path(get, path = "/v1/vms/{vm}/files/stat", tag = "files", operation_id = "stat_file",
    params(("vm" = String, Path, description = "Name or id"), StatQuery),
    responses((status = 200, body = v1::FileStat), GuestErrors))]
pub async fn stat(
    call: Call,
    Vm(vm): Vm,
    Query(query): Query<StatQuery>,
) -> Result<axum::Json<v1::FileStat>, ApiError> {
    absolute_path("path", &query.path)?;
    let user = query.user()?;
    let command = Command::Files { vm, access: FileAccess::Read, path: query.path.clone() };
    let follow = query.follow;
    let found = in_guest(&call, command, user, async |files| files.stat(query.path, follow).await).await?;
    Ok(axum::Json(wire_stat(found)))
}

/// Entries of a directory, by name: with `limit` a page of them, else all, but for those beyond 50000.
#[utoipa::path(get, path = "/v1/vms/{vm}/files/list", tag = "files", operation_id = "list_directory",
    params(("vm" = String, Path, description = "Name or id"), ListQuery),
    responses((status = 200, body = DirectoryList), GuestErrors))]
pub async fn list(
    call: Call,
    Vm(vm): Vm,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<DirectoryList>, ApiError> {
    absolute_path("path", &query.path)?;
    let user = query.user()?;
    let command = Command::Files { vm, access: FileAccess::Read, path: query.path.clone() };
    let page = PageQuery { limit: query.limit, cursor: query.cursor };
    let most = page.limit()?.unwrap_or(MAX_ENTRIES);
    let list = in_guest(&call, command, user, async |files| {
        let mut listing = files.list(query.path).await?;
        let mut entries = Vec::new();
        while let Some(entry) = listing.next().await? {
            if page.cursor.as_ref().is_some_and(|cursor| entry.name <= *cursor) {
                continue;
            }
            let stat = wire_stat(entry.stat);
            entries.push(DirectoryEntry { name: entry.name, lossy: entry.lossy, stat });
            // However large the directory, what is held is bounded: the first of what was seen so far.
            if entries.len() > 2 * most {
                first(&mut entries, most + 1);
            }
        }
        first(&mut entries, most + 1);
        let truncated = entries.len() > most;
        entries.truncate(most);
        let next_cursor = entries.last().filter(|_| truncated).map(|last| last.name.clone());
        Ok(DirectoryList { entries, truncated, next_cursor })
    });
    Ok(axum::Json(list.await?))
}

fn first(entries: &mut Vec<DirectoryEntry>, most: usize) {
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    entries.truncate(most);
}

/// Make a directory.
#[utoipa::path(post, path = "/v1/vms/{vm}/files/mkdir", tag = "files", operation_id = "make_directory",
    request_body = MakeDirectory, params(("vm" = String, Path, description = "Name or id")),
    responses((status = 204, description = "Made"), GuestErrors))]
pub async fn mkdir(
    call: Call,
    Vm(vm): Vm,
    Json(request): Json<MakeDirectory>,
) -> Result<StatusCode, ApiError> {
    request.check()?;
    let MakeDirectory { ref path, parents, mode, .. } = request;
    change(&call, vm, path, request.user()?, async |files| files.make_directory(path, parents, mode).await)
        .await
}

/// Rename or move a file or directory, replacing a file of that name.
#[utoipa::path(post, path = "/v1/vms/{vm}/files/rename", tag = "files", operation_id = "rename_file",
    request_body = RenameFile, params(("vm" = String, Path, description = "Name or id")),
    responses((status = 204, description = "Renamed"), GuestErrors))]
pub async fn rename(call: Call, Vm(vm): Vm, Json(request): Json<RenameFile>) -> Result<StatusCode, ApiError> {
    request.check()?;
    let RenameFile { ref from, ref to, .. } = request;
    // Both ends are judged; the operation is recorded under the path that appears.
    let command = Command::Files { vm: vm.clone(), access: FileAccess::Write, path: from.clone() };
    let _source = call.permit(command).await?;
    change(&call, vm, to, request.user()?, async |files| files.rename(from, to).await).await
}

/// Remove a file, or with `recursive` a directory.
#[utoipa::path(post, path = "/v1/vms/{vm}/files/remove", tag = "files", operation_id = "remove_file",
    request_body = RemoveFile, params(("vm" = String, Path, description = "Name or id")),
    responses((status = 204, description = "Removed"), GuestErrors))]
pub async fn remove(call: Call, Vm(vm): Vm, Json(request): Json<RemoveFile>) -> Result<StatusCode, ApiError> {
    absolute_path("path", &request.path)?;
    let RemoveFile { ref path, recursive, .. } = request;
    change(&call, vm, path, request.user()?, async |files| files.remove(path, recursive).await).await
}

/// Make a symbolic link.
#[utoipa::path(post, path = "/v1/vms/{vm}/files/symlink", tag = "files", operation_id = "make_symlink",
    request_body = Symlink, params(("vm" = String, Path, description = "Name or id")),
    responses((status = 204, description = "Made"), GuestErrors))]
pub async fn symlink(call: Call, Vm(vm): Vm, Json(request): Json<Symlink>) -> Result<StatusCode, ApiError> {
    request.check()?;
    let Symlink { ref target, ref path, .. } = request;
    change(&call, vm, path, request.user()?, async |files| files.symlink(target, path).await).await
}

/// Set permission bits.
#[utoipa::path(post, path = "/v1/vms/{vm}/files/chmod", tag = "files", operation_id = "set_mode",
    request_body = SetMode, params(("vm" = String, Path, description = "Name or id")),
    responses((status = 204, description = "Set"), GuestErrors))]
pub async fn chmod(call: Call, Vm(vm): Vm, Json(request): Json<SetMode>) -> Result<StatusCode, ApiError> {
    request.check()?;
    let SetMode { ref path, mode, .. } = request;
    change(&call, vm, path, request.user()?, async |files| files.set_mode(path, mode).await).await
}

async fn change<W>(call: &Call, vm: VmRef, path: &str, user: String, work: W) -> Result<StatusCode, ApiError>
where
    W: AsyncFnOnce(Files) -> Result<(), ClientError>,
{
    let command = Command::Files { vm, access: FileAccess::Write, path: path.into() };
    in_guest(call, command, user, work).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Does `work` in the guest, as one permitted and recorded access.
pub(super) async fn in_guest<T, W>(call: &Call, command: Command, user: String, work: W) -> Result<T, Failure>
where
    W: AsyncFnOnce(Files) -> Result<T, ClientError>,
{
    let vm = call.named(&command);
    let guest = call.engine.guest(call.permit(command).await?).await?;
    let done = work(guest.client().files(user)).await.map_err(|error| guest_failure(&vm, &error));
    guest.complete(done.as_ref().map(drop).map_err(Clone::clone)).await;
    done
}

pub fn wire_stat(stat: FileStat) -> v1::FileStat {
    v1::FileStat {
        kind: match stat.kind {
            FileKind::File => v1::FileKind::File,
            FileKind::Directory => v1::FileKind::Directory,
            FileKind::Symlink => v1::FileKind::Symlink,
            FileKind::Other => v1::FileKind::Other,
        },
        size: stat.size,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        modified_ns: stat.modified_ns,
        symlink_target: stat.symlink_target,
    }
}
