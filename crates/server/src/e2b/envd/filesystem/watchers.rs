//! Watching a directory by asking again and again.
//!
//! ```text
//! CreateWatcher --> task: guest's changes --> queue (bounded) --> GetWatcherEvents takes them all
//!                     '-- not asked for 30 minutes, or RemoveWatcher: gone
//! ```
//! Of a VM that was suspended meanwhile the directory is watched anew by the next question; its programs stood still. A
//! daemon that was started again knows no watcher of the one before.

use super::{
    messages::{
        CreateWatcherResponse, Empty, FilesystemEvent, WatchRequest, WatcherEventsResponse, WatcherRequest,
    },
    watch::{Change, Watched, lost},
};
use crate::{
    e2b::{
        envd::connect::{Code, ConnectError, Deadline, Unary},
        sandbox::Sandbox,
    },
    tasks::TaskKind,
};
use axum::{Extension, Json};
use offshoot_types::{RequestId, VmId};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Changes that nobody has fetched.
const MAX_QUEUED: usize = 4096;
/// Of one VM.
const MAX_WATCHERS: usize = 64;
const FORGOTTEN: Duration = Duration::from_secs(30 * 60);

/// All there are.
#[derive(Debug, Clone, Default)]
pub struct Watchers(Arc<Mutex<HashMap<String, Arc<Watcher>>>>);

#[derive(Debug)]
struct Watcher {
    vm: VmId,
    /// What the guest is to be asked, again if it was away.
    request: WatchRequest,
    state: Mutex<State>,
    /// One question at a time begins a watch anew.
    renewal: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    events: VecDeque<FilesystemEvent>,
    /// Some were dropped.
    lost: bool,
    asked: Instant,
    /// Ends the task by being dropped; `None` once it has ended by itself.
    task: Option<DropGuard>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchers {
    fn get(&self, sandbox: &Sandbox, id: &str) -> Result<Arc<Watcher>, ConnectError> {
        let found = lock(&self.0).get(id).filter(|watcher| watcher.vm == sandbox.vm).cloned();
        found.ok_or_else(|| ConnectError::new(Code::NotFound, format!("watcher with id {id} not found")))
    }

    fn insert(&self, id: &str, watcher: &Arc<Watcher>) -> Result<(), ConnectError> {
        let mut all = lock(&self.0);
        all.retain(|_, watcher| !watcher.is_forgotten());
        if all.values().filter(|other| other.vm == watcher.vm).count() >= MAX_WATCHERS {
            let message = format!("there are {MAX_WATCHERS} watchers in this sandbox already; remove one");
            return Err(ConnectError::new(Code::ResourceExhausted, message));
        }
        all.insert(id.to_owned(), watcher.clone());
        Ok(())
    }
}

impl Watcher {
    fn is_forgotten(&self) -> bool {
        lock(&self.state).asked.elapsed() >= FORGOTTEN
    }

    /// Has the changes of `watched` queued from now on.
    fn attend(self: &Arc<Self>, sandbox: &Sandbox, mut watched: Watched) {
        let cancel = CancellationToken::new();
        lock(&self.state).task = Some(cancel.clone().drop_guard());
        let app = sandbox.call.app.clone();
        // Weak: a watcher that is removed is dropped, and ends its task by that.
        let own = Arc::downgrade(self);
        sandbox.call.app.tasks.spawn(TaskKind::Watcher, async move {
            loop {
                let change = tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    () = app.shutdown.requested() => return,
                    change = watched.next() => Some(change),
                    () = sleep(FORGOTTEN) => None,
                };
                let Some(watcher) = own.upgrade().filter(|watcher| !watcher.is_forgotten()) else { return };
                if change.is_some_and(|change| !watcher.note(change)) {
                    return;
                }
            }
        });
    }

    /// Whether there may be more.
    fn note(&self, change: Result<Change, crate::e2b::envd::guest::Fault>) -> bool {
        let mut state = lock(&self.state);
        match change {
            Ok(Change::Known(event)) if state.events.len() < MAX_QUEUED => state.events.push_back(event),
            Ok(Change::Known(_) | Change::Unknown) => {
                state.events.clear();
                state.lost = true;
            }
            Err(fault) => {
                tracing::debug!(?fault, "a watch ended; the next question begins it anew");
                state.task = None;
                return false;
            }
        }
        true
    }

    fn has_ended(&self) -> bool {
        lock(&self.state).task.is_none()
    }

    /// Watches again what a guest that was away has forgotten.
    async fn renew(self: &Arc<Self>, sandbox: &Sandbox) -> Result<(), ConnectError> {
        if !self.has_ended() {
            return Ok(());
        }
        let _one = self.renewal.lock().await;
        if self.has_ended() {
            self.attend(sandbox, Watched::begin(sandbox, &self.request).await?);
        }
        Ok(())
    }

    fn take(&self) -> Result<Vec<FilesystemEvent>, ConnectError> {
        let mut state = lock(&self.state);
        state.asked = Instant::now();
        match std::mem::take(&mut state.lost) {
            true => Err(lost()),
            false => Ok(state.events.drain(..).collect()),
        }
    }
}

pub async fn create_watcher(
    sandbox: Sandbox,
    Extension(watchers): Extension<Watchers>,
    deadline: Deadline,
    Unary(request): Unary<WatchRequest>,
) -> Result<Json<CreateWatcherResponse>, ConnectError> {
    let begun = async { Ok(Watched::begin(&sandbox, &request).await?) };
    let watched = deadline.bound(begun).await?;
    let state = State { events: VecDeque::new(), lost: false, asked: Instant::now(), task: None };
    let (state, renewal) = (Mutex::new(state), tokio::sync::Mutex::default());
    let watcher = Arc::new(Watcher { vm: sandbox.vm, request, state, renewal });
    let watcher_id = format!("w{}", RequestId::new());
    watchers.insert(&watcher_id, &watcher)?;
    watcher.attend(&sandbox, watched);
    Ok(Json(CreateWatcherResponse { watcher_id }))
}

pub async fn get_watcher_events(
    sandbox: Sandbox,
    Extension(watchers): Extension<Watchers>,
    deadline: Deadline,
    Unary(WatcherRequest { watcher_id }): Unary<WatcherRequest>,
) -> Result<Json<WatcherEventsResponse>, ConnectError> {
    let watcher = watchers.get(&sandbox, &watcher_id)?;
    deadline.bound(watcher.renew(&sandbox)).await?;
    Ok(Json(WatcherEventsResponse { events: watcher.take()? }))
}

pub async fn remove_watcher(
    sandbox: Sandbox,
    Extension(watchers): Extension<Watchers>,
    Unary(WatcherRequest { watcher_id }): Unary<WatcherRequest>,
) -> Result<Json<Empty>, ConnectError> {
    watchers.get(&sandbox, &watcher_id)?;
    lock(&watchers.0).remove(&watcher_id);
    Ok(Json(Empty {}))
}
