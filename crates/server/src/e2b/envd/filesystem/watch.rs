//! Watching a directory by a stream.

use super::messages::{FilesystemEvent, WatchDirResponse, WatchRequest};
use crate::{
    activity::Present,
    e2b::{
        envd::{
            connect::{Code, ConnectError, Failed, OneMessage, Source, respond},
            guest::{Fault, Files},
        },
        sandbox::Sandbox,
    },
};
use axum::response::Response;
use offshoot_guest_proto::client::EntryWatch;
use offshoot_types::FileAccess;

/// What happens in one directory, until this is dropped.
#[derive(Debug)]
pub struct Watched {
    watch: EntryWatch,
    files: Files,
}

impl Watched {
    /// Returns once the guest is watching.
    pub async fn begin(sandbox: &Sandbox, request: &WatchRequest) -> Result<Self, Fault> {
        let WatchRequest { path, recursive, include_entry } = request;
        let files = Files::open(sandbox, &sandbox.user, FileAccess::Read, path).await?;
        let watch = files.entries().watch(path, *recursive, *include_entry).await;
        Ok(Self { watch: watch.map_err(|error| files.fault(error))?, files })
    }

    /// The next change. Cancel-safe.
    pub async fn next(&mut self) -> Result<Change, Fault> {
        let event = self.watch.next().await.map_err(|error| self.files.fault(error))?;
        Ok(FilesystemEvent::of(event, self.watch.directory()).map_or(Change::Unknown, Change::Known))
    }
}

#[derive(Debug)]
pub enum Change {
    Known(FilesystemEvent),
    /// There were more than the guest's kernel remembers.
    Unknown,
}

pub fn lost() -> ConnectError {
    ConnectError::new(Code::ResourceExhausted, "there were more changes than are remembered: look again")
}

/// Streams what happens until the client leaves or the call's time is up.
pub async fn watch_dir(
    sandbox: Sandbox,
    OneMessage { message, pace }: OneMessage<WatchRequest>,
) -> Result<Response, Failed> {
    let app = &sandbox.call.app;
    let present = app.activity.enter_session()?;
    let watched = Watched::begin(&sandbox, &message).await?;
    let events = Events { watched: Some(watched), _present: present };
    Ok(respond(app, WatchDirResponse::Start {}, events, pace))
}

struct Events {
    watched: Option<Watched>,
    _present: Present,
}

impl Source for Events {
    type Message = WatchDirResponse;

    async fn next(&mut self) -> Option<Result<WatchDirResponse, ConnectError>> {
        let change = self.watched.as_mut()?.next().await;
        let error = match change {
            Ok(Change::Known(event)) => return Some(Ok(WatchDirResponse::Filesystem(event))),
            Ok(Change::Unknown) => lost(),
            Err(fault) => fault.into(),
        };
        self.watched = None;
        Some(Err(error))
    }

    fn keepalive() -> WatchDirResponse {
        WatchDirResponse::Keepalive {}
    }
}
