//! Files by their names: what is where, made, moved, removed, and what happens to it.

mod messages;
mod watch;
mod watchers;

pub use messages::name_of;
pub use watch::watch_dir;
pub use watchers::{Watchers, create_watcher, get_watcher_events, remove_watcher};

use super::{
    connect::{Code, ConnectError, Deadline, Unary},
    guest::in_guest,
};
use crate::e2b::sandbox::Sandbox;
use axum::Json;
use messages::{Empty, EntryInfo, EntryResponse, ListDirRequest, ListDirResponse, MoveRequest, PathRequest};
use offshoot_guest_proto::{
    client::{ClientError, Entries},
    message::Entry,
};
use offshoot_types::FileAccess;

/// Entries of one listing, each perhaps half a kilobyte of JSON.
const MAX_ENTRIES: usize = 50_000;

type Answer<T> = Result<Json<T>, ConnectError>;

pub async fn stat(
    sandbox: Sandbox,
    deadline: Deadline,
    Unary(request): Unary<PathRequest>,
) -> Answer<EntryResponse> {
    let path = &request.path;
    one(&sandbox, deadline, FileAccess::Read, path, async |entries| entries.stat(path).await).await
}

pub async fn make_dir(
    sandbox: Sandbox,
    deadline: Deadline,
    Unary(request): Unary<PathRequest>,
) -> Answer<EntryResponse> {
    let path = &request.path;
    one(&sandbox, deadline, FileAccess::Write, path, async |entries| entries.make_directory(path).await).await
}

pub async fn r#move(
    sandbox: Sandbox,
    deadline: Deadline,
    Unary(request): Unary<MoveRequest>,
) -> Answer<EntryResponse> {
    let MoveRequest { source, destination } = &request;
    let moved = async |entries: Entries| entries.rename(source, destination).await;
    one(&sandbox, deadline, FileAccess::Write, destination, moved).await
}

async fn one<W>(
    sandbox: &Sandbox,
    deadline: Deadline,
    access: FileAccess,
    path: &str,
    work: W,
) -> Answer<EntryResponse>
where
    W: AsyncFnOnce(Entries) -> Result<Entry, ClientError>,
{
    let done = async { Ok(in_guest(sandbox, &sandbox.user, access, path, work).await?) };
    Ok(Json(EntryResponse { entry: deadline.bound(done).await?.into() }))
}

pub async fn remove(
    sandbox: Sandbox,
    deadline: Deadline,
    Unary(request): Unary<PathRequest>,
) -> Answer<Empty> {
    let path = &request.path;
    let removed = async {
        let work = async |entries: Entries| entries.remove(path).await;
        Ok(in_guest(&sandbox, &sandbox.user, FileAccess::Write, path, work).await?)
    };
    deadline.bound(removed).await.map(|()| Json(Empty {}))
}

pub async fn list_dir(
    sandbox: Sandbox,
    deadline: Deadline,
    Unary(request): Unary<ListDirRequest>,
) -> Answer<ListDirResponse> {
    let (path, depth) = (&request.path, request.depth.unwrap_or(0).max(1));
    let listed = async {
        let work = async |entries: Entries| {
            let mut listing = entries.list(path, depth).await?;
            let mut found = Vec::new();
            while let Some(entry) = listing.next().await? {
                if found.len() == MAX_ENTRIES {
                    return Ok(None);
                }
                found.push(EntryInfo::from(entry));
            }
            Ok(Some(found))
        };
        Ok(in_guest(&sandbox, &sandbox.user, FileAccess::Read, path, work).await?)
    };
    match deadline.bound(listed).await? {
        Some(entries) => Ok(Json(ListDirResponse { entries })),
        None => {
            let message = format!("there are more than {MAX_ENTRIES} entries in {path}: list it in parts");
            Err(ConnectError::new(Code::ResourceExhausted, message))
        }
    }
}
