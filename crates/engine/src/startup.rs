//! Beginning and end of an engine.
//!
//! ```text
//! start:     store -> rows, instances, unfinished operations -> one driver per VM, all at once
//!                  -> every driver knows its VM's state -> strays -> requests are taken
//! shutdown:  accept nothing -> running changes end (bounded) -> VMs of requests destroyed, others left or
//!            stopped -> drivers, links and pumps let go -> store closed
//! ```

use crate::{
    Options, ShutdownReport, StartError, StateDirLock,
    accept::Asked,
    admission::RequestKind,
    core::{Authority, Core},
    driver::Beginning,
    engine::OnShutdown,
    history::History,
    keys::Keys,
    manager::Manager,
    operations::Operations,
    pool::{self, Pool},
    reaper,
    reconcile::Unfinished,
    saga::Input,
    snapshots::{self, Snapshots},
    state_dir::{Layout, make_private_dir},
    strays,
    tasks::{TaskKind, Tasks},
    trace::{Scope, TraceEvent},
    unwritten::Unwritten,
};
use offshoot_provider::InstanceRecord;
use offshoot_store::{Retention, Store, StoreError, VmRecord};
use offshoot_types::{Failure, Lifetime, OperationId, OperationKind, OperationOutcome, OperationState, VmId};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Between two rounds of forgetting old events, operations and audit rows.
const HOUSEKEEPING: Duration = Duration::from_secs(60 * 60);
/// How long tasks may take to let go once nothing is left to do.
const LET_GO: Duration = Duration::from_secs(5);
/// How often a shutdown looks whether the last operation has ended: the census tells of changes, this is for
/// those it does not count.
const LOOK: Duration = Duration::from_millis(50);

/// Counts a driver whose recoveries are under way.
#[derive(Debug)]
pub(crate) struct Settling(Arc<watch::Sender<usize>>);

impl Settling {
    fn new(unfinished: &Arc<watch::Sender<usize>>) -> Self {
        unfinished.send_modify(|count| *count += 1);
        Self(unfinished.clone())
    }
}
impl Drop for Settling {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// One VM as the store knows it.
struct Known {
    row: VmRecord,
    instances: Vec<InstanceRecord>,
    unfinished: Vec<Unfinished>,
}

pub(crate) async fn start(
    lock: StateDirLock,
    options: Options,
) -> Result<(Arc<Core>, watch::Receiver<usize>), StartError> {
    let begun = Instant::now();
    let layout = Layout { state: lock.dir().into(), runtime: options.runtime_dir.clone() };
    for dir in [&layout.vms(), &layout.disks(), &layout.snapshots(), &layout.history(), &layout.runtime] {
        prepare(dir)?;
    }
    let store = open_store(&layout, &options).await?;
    let (reaper, reaped) = mpsc::unbounded_channel();
    let (pool, history) = (Pool::new(options.pool), History::new(options.history));
    let core = Arc::new(Core {
        options,
        layout,
        store,
        manager: Manager::default(),
        operations: Operations::default(),
        tasks: Tasks::default(),
        reaper,
        snapshots: Snapshots::default(),
        pool,
        keys: Keys::default(),
        requests: Default::default(),
        history,
        unwritten: Unwritten::default(),
        collecting: tokio::sync::Mutex::default(),
        census: watch::Sender::default(),
        closing: CancellationToken::new(),
        lock: Mutex::new(Some(lock)),
    });
    // Before the VMs are read: what is taken back moves them in their tree.
    let read = async {
        core.settle_merges().await?;
        let left = core.discard_volatile().await?;
        let (known, orphans) = read(&core.store).await?;
        core.load_templates().await?;
        core.load_keys().await?;
        Ok::<_, StoreError>((left, known, orphans))
    };
    let (mut left, known, orphans) = read.await.map_err(|source| StartError::Read { source })?;
    core.tasks.spawn(TaskKind::Reaper, Scope::default(), reaper::run(core.clone(), reaped));
    core.tasks.spawn(TaskKind::Housekeeper, Scope::default(), keep_house(core.clone()));
    core.tasks.spawn(TaskKind::Merger, Scope::default(), snapshots::keep_shallow(core.clone()));

    let (unsettled, settled) = watch::channel(0);
    let unsettled = Arc::new(unsettled);
    let mut ready = Vec::new();
    let vms = known.len();
    let mut abandoned = Vec::new();
    for Known { row, instances, unfinished } in known {
        if row.spec.lifetime == Lifetime::Request {
            abandoned.push(row.id);
        }
        let (sender, receiver) = oneshot::channel();
        ready.push(receiver);
        let settling = Settling::new(&unsettled);
        let left = left.remove(&row.id);
        core.drive(row, instances, Beginning::Reconcile { unfinished, left, ready: sender, settling });
    }
    // A driver that panicked is not waited for; its queue answers for it.
    futures::future::join_all(ready).await;
    for operation in orphans {
        close_orphan(&core, operation).await;
    }
    for vm in abandoned {
        let reason = "its request ended with the daemon that served it";
        // The reaper was started above and ends with the engine only.
        let _ = core.reaper.send(reaper::Reap { vm, reason });
    }
    strays::sweep(&core).await;
    core.collect_layers().await;
    core.tasks.spawn(TaskKind::Pool, Scope::default(), pool::run(core.clone()));
    let adopted = core.census.borrow().live;
    TraceEvent::EngineStarted { vms, adopted, took: begun.elapsed() }.emit(&Scope::default());
    Ok((core, settled))
}

/// Forgets, now and then, what the record need not keep.
async fn keep_house(core: Arc<Core>) {
    core.sweep_history().await;
    loop {
        tokio::select! {
            () = core.closing.cancelled() => return,
            () = tokio::time::sleep(HOUSEKEEPING) => {}
            () = core.unwritten.due() => {
                core.write_outcomes().await;
                continue;
            }
            () = core.snapshots.many_unasked() => {
                core.expire_snapshots().await;
                continue;
            }
            () = core.history.full() => {
                core.sweep_history().await;
                continue;
            }
        }
        let retention = Retention { history: core.options.history.keep, ..Retention::default() };
        if let Err(error) = core.store.prune(retention).await {
            core.store_failed("forget old records", &error);
        }
        core.sweep_history().await;
        core.expire_snapshots().await;
    }
}

fn prepare(dir: &Path) -> Result<(), StartError> {
    make_private_dir(dir).map_err(|source| StartError::Directory { path: dir.into(), source })
}

async fn open_store(layout: &Layout, options: &Options) -> Result<Store, StartError> {
    let path = layout.database();
    let store_options =
        offshoot_store::Options { path: path.clone(), limits: options.limits, clock: options.clock.clone() };
    let opened = offshoot_store::blocking(move || Store::open(store_options)).await;
    match opened {
        Ok(Ok(store)) => Ok(store),
        Ok(Err(source)) => Err(StartError::Store { path, source }),
        Err(_cancelled) => Err(StartError::Read { source: StoreError::Closed }),
    }
}

/// Everything a starting engine must know, from one consistent state: VMs, and operations that belong to none.
async fn read(store: &Store) -> Result<(Vec<Known>, Vec<Unfinished>), StoreError> {
    store
        .read(|view| {
            let mut instances: HashMap<VmId, Vec<InstanceRecord>> = HashMap::new();
            for row in view.instances()? {
                instances.entry(row.vm).or_default().push(row.decode()?);
            }
            let mut unfinished: HashMap<Option<VmId>, Vec<Unfinished>> = HashMap::new();
            for operation in view.unfinished_operations()? {
                let steps = view.steps(operation.id)?;
                unfinished.entry(operation.vm).or_default().push(Unfinished { operation, steps });
            }
            let mut known = Vec::new();
            for row in view.vms()? {
                let instances = instances.remove(&row.id).unwrap_or_default();
                let unfinished = unfinished.remove(&Some(row.id)).unwrap_or_default();
                known.push(Known { row, instances, unfinished });
            }
            Ok((known, unfinished.into_values().flatten().collect()))
        })
        .await
}

/// An operation of a VM that is destroyed already: only its outcome was not written.
async fn close_orphan(core: &Arc<Core>, Unfinished { operation, .. }: Unfinished) {
    let undone = match operation.kind {
        OperationKind::Create | OperationKind::Fork | OperationKind::Race | OperationKind::Import => true,
        OperationKind::RemoveSnapshot => !core.has_removed(operation.id).await,
        _ => false,
    };
    let ticket = core.opened(operation);
    core.close(ticket, OperationOutcome::Interrupted { undone }).await;
}

pub(crate) async fn shutdown(core: &Arc<Core>, vms: OnShutdown) -> ShutdownReport {
    core.manager.close();
    let until = Instant::now() + core.options.deadlines.drain;
    // What of it is not gone in time is found by the next start, by its lifetime.
    let _ = tokio::time::timeout(core.options.deadlines.destroy, core.pool.close()).await;
    let mut report = ShutdownReport { interrupted: drain(core, until).await, ..ShutdownReport::default() };

    let handles = core.manager.all();
    let fleeting = handles.iter().filter(|handle| handle.view.borrow().lifetime == Lifetime::Request);
    let destroyed = fleeting.map(|handle| {
        let (core, id) = (core.clone(), handle.id);
        async move { core.destroy(id, "its request ends with the daemon").await }
    });
    // What is not destroyed in time is found by the next start: the row says that it belongs to a request.
    let _ = tokio::time::timeout(core.options.deadlines.destroy, futures::future::join_all(destroyed)).await;

    let live =
        core.manager.all().into_iter().filter(|handle| handle.view.borrow().state.name().has_process());
    match vms {
        OnShutdown::LeaveVms => report.left_running = live.map(|handle| handle.id).collect(),
        OnShutdown::StopVms { grace } => {
            let stopped = live.map(|handle| async move {
                match stop(core, &handle, grace).await {
                    Ok(()) => None,
                    Err(failure) => Some((handle.id, failure)),
                }
            });
            report.not_stopped = futures::future::join_all(stopped).await.into_iter().flatten().collect();
        }
    }

    core.closing.cancel();
    if !core.tasks.drain(LET_GO).await {
        TraceEvent::TasksAbandoned.emit(&Scope::default());
        core.tasks.abort().await;
    }
    core.let_go().await;
    TraceEvent::EngineStopped { left_running: report.left_running.len() }.emit(&Scope::default());
    report
}

/// Waits for changes to end; processes in VMs are no changes. Returns those that did not.
async fn drain(core: &Core, until: Instant) -> Vec<OperationId> {
    loop {
        let running = core.operations.changes();
        if running.is_empty() || Instant::now() >= until {
            return running;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn stop(core: &Core, handle: &crate::manager::VmHandle, grace: Duration) -> Result<(), Failure> {
    let kind = core.ends_as(handle.view.borrow().provider);
    let request = if kind == OperationKind::Suspend { RequestKind::Suspend } else { RequestKind::Stop };
    let asked = Asked {
        kind,
        request,
        authority: Authority::Daemon,
        command: None,
        within: None,
        grace,
        key: None,
        input: Input::None,
        reason: "the daemon ends and takes its VMs with it".into(),
    };
    let operation = core.change(handle, asked).await?;
    match core.wait(operation.id, None).await?.state {
        OperationState::Ended { outcome: OperationOutcome::Failed { failure } } => Err(failure),
        _ => Ok(()),
    }
}
