//! The handle every other crate holds.

use crate::{
    AuditEntry, AuditHead, AuditRow, AuditVerdict, Begun, Clock, ContextRecord, EventPage, InstanceRow,
    LayerRecord, LedgerUse, Limits, Move, NewEvent, NewInstance, NewLayer, NewOperation, NewSnapshot,
    NewTransaction, NewVm, OpenError, OperationFilter, Pruned, Retention, SnapshotRecord, SnapshotRetention,
    SnapshotUser, Step, StoreError, Switch, SystemClock, TransactionRecord, Tx, View, VmRecord,
    blocking::is_in_place,
    database,
    early::{Durable, EarlyRequest},
    readers::Readers,
    writer::{Message, QUEUE, Request, Writer},
};
use jiff::Timestamp;
use offshoot_types::{
    Actor, Bytes, ContextName, EventId, Generation, ImageDigest, Language, LayerId, Operation, OperationId,
    OperationOutcome, Owner, SnapshotId, SnapshotRef, TransactionEnd, TransactionId, VmId, VmRef,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};
use tokio::sync::{mpsc, oneshot, watch};

#[derive(Debug, Clone)]
pub struct Options {
    /// The database file. Its folder exists; the file is made if it does not, readable by its owner only.
    pub path: PathBuf,
    pub limits: Limits,
    pub clock: Arc<dyn Clock>,
}

impl Options {
    pub fn new(path: impl Into<PathBuf>, limits: Limits) -> Self {
        Self { path: path.into(), limits, clock: Arc::new(SystemClock) }
    }
}

/// The record. Cheap to clone; the file is closed when the last clone is gone, or by [`Store::close`].
///
/// A write is answered once it is on disk. Dropping the future of a write that was queued does not take it back.
/// Reads run on other threads and connections; a read begun after a write was answered sees it.
#[derive(Debug, Clone)]
pub struct Store {
    queue: mpsc::Sender<Message>,
    readers: Arc<Readers>,
    last_event: watch::Receiver<EventId>,
    limits: Limits,
}

impl Store {
    /// Opens or makes the record. Blocks for some milliseconds, more if pages must be checked or migrated.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let Options { path, limits, clock } = options;
        let connection = database::open_writer(&path)?;
        let log = database::open_log(&path)?;
        let readers = Arc::new(Readers::open(&path)?);
        let last = View { connection: &connection, path: &path }.last_event().map_err(|error| {
            OpenError::Io { operation: "read", path: path.clone(), source: Box::new(error) }
        })?;
        let (sender, last_event) = watch::channel(last);
        let (queue, messages) = mpsc::channel(QUEUE);
        let writer =
            Writer { connection, log, path: path.clone(), clock, limits, last_event: sender, failed: false };
        std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run(messages)).map_err(
            |error| OpenError::Io { operation: "start the writer of", path, source: Box::new(error) },
        )?;
        Ok(Self { queue, readers, last_event, limits })
    }

    /// Finishes what is queued, closes the file and refuses everything after. Repeating it is harmless.
    pub async fn close(&self) {
        let (caller, closed) = oneshot::channel();
        self.readers.close().await;
        // An error means the writer has ended, which is what we wait for.
        let _ = self.ask(Message::Close(caller), closed).await;
    }

    /// See [`fault::fail_syncs`](crate::fault::fail_syncs).
    pub(crate) async fn fail_syncs(&self) -> Result<(), StoreError> {
        let (caller, done) = oneshot::channel();
        self.ask(Message::FailSyncs(caller), done).await
    }

    /// Queues a message and waits for its answer.
    async fn ask<T: Send + 'static>(
        &self,
        message: Message,
        answer: oneshot::Receiver<T>,
    ) -> Result<T, StoreError> {
        if !is_in_place() {
            self.queue.send(message).await.map_err(|_| StoreError::Closed)?;
            return answer.await.map_err(|_| StoreError::Closed);
        }
        // A thread of a runtime may not wait by itself.
        let queue = self.queue.clone();
        let ask = move || {
            queue.blocking_send(message).ok()?;
            answer.blocking_recv().ok()
        };
        let asked = std::thread::scope(|scope| scope.spawn(ask).join());
        asked.ok().flatten().ok_or(StoreError::Closed)
    }

    /// What the ledger admits up to.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Runs `work` in one transaction, together with others in one commit, and returns its result once that is on
    /// disk. `Err` takes back all it wrote. It may be run more than once, of which one run is kept, so it must only
    /// read and write through its argument.
    pub async fn transaction<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (caller, answer) = oneshot::channel();
        let job = Message::Job(Box::new(Request::new(work, caller)));
        self.ask(job, answer).await?
    }

    /// As [`transaction`](Self::transaction), and returns as soon as the write would outlive this process: it is on disk once
    /// [`Durable::wait`] returns. For what is written down before it is done: the doing may begin, nobody may hear of it.
    pub async fn transaction_early<T, F>(&self, work: F) -> Result<(T, Durable), StoreError>
    where
        T: Send + 'static,
        F: Fn(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        if is_in_place() {
            return Ok((self.transaction(work).await?, Durable::already()));
        }
        let (caller, answer) = oneshot::channel();
        self.ask(Message::Job(Box::new(EarlyRequest::new(work, caller))), answer).await?
    }

    /// As [`transaction`](Self::transaction), for what nobody waits for: it may take some milliseconds longer, so that it shares
    /// the commit of whoever comes next and does not stand in their way.
    pub async fn transaction_patient<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        if is_in_place() {
            return self.transaction(work).await;
        }
        let (caller, answer) = oneshot::channel();
        self.ask(Message::Patient(Box::new(Request::new(work, caller))), answer).await?
    }

    /// Runs `work` on one consistent state of the record.
    pub async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&View<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.readers.read(work).await
    }

    /// The newest committed event: changes wake whoever waits for events.
    pub fn last_event(&self) -> watch::Receiver<EventId> {
        self.last_event.clone()
    }

    /// Returns once there is an event after `after`. May be cancelled.
    pub async fn wait_for_event(&self, after: EventId) -> Result<EventId, StoreError> {
        let mut last = self.last_event();
        let reached = last.wait_for(|last| *last > after).await.map(|last| *last);
        reached.map_err(|_| StoreError::Closed)
    }
}

/// Single writes. Several that belong together go into one [`Store::transaction`].
impl Store {
    /// See [`Tx::create_vm`].
    pub async fn create_vm(&self, operation: NewOperation, vm: NewVm) -> Result<Begun, StoreError> {
        self.transaction(move |tx| tx.create_vm(&operation, &vm)).await
    }
    /// See [`Tx::move_vm`].
    pub async fn move_vm(&self, change: Move) -> Result<Generation, StoreError> {
        self.transaction(move |tx| tx.move_vm(&change)).await
    }
    /// See [`Tx::begin_operation`].
    pub async fn begin_operation(&self, operation: NewOperation) -> Result<Begun, StoreError> {
        self.transaction(move |tx| tx.begin_operation(&operation)).await
    }
    /// See [`Tx::release_operation`].
    pub async fn release_operation(&self, id: OperationId) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.release_operation(id)).await
    }
    /// See [`Tx::end_operation`].
    pub async fn end_operation(&self, id: OperationId, outcome: OperationOutcome) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.end_operation(id, &outcome)).await
    }
    /// See [`Tx::step_begun`].
    pub async fn step_begun(
        &self,
        operation: OperationId,
        position: u32,
        name: impl Into<String>,
        detail: Value,
    ) -> Result<(), StoreError> {
        let name = name.into();
        self.transaction(move |tx| tx.step_begun(operation, position, &name, &detail)).await
    }
    /// See [`Tx::step_done`].
    pub async fn step_done(
        &self,
        operation: OperationId,
        position: u32,
        detail: Option<Value>,
    ) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.step_done(operation, position, detail.as_ref())).await
    }
    /// See [`Tx::step_undone`].
    pub async fn step_undone(
        &self,
        operation: OperationId,
        position: u32,
        detail: Option<Value>,
    ) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.step_undone(operation, position, detail.as_ref())).await
    }
    /// See [`Tx::record_instance`].
    pub async fn record_instance(&self, instance: NewInstance) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.record_instance(&instance)).await
    }
    /// See [`Tx::forget_instance`].
    pub async fn forget_instance(&self, vm: VmId, generation: Generation) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.forget_instance(vm, generation)).await
    }
    /// See [`Tx::add_layer`].
    pub async fn add_layer(&self, layer: NewLayer) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.add_layer(&layer)).await
    }
    /// See [`Tx::forget_layer`].
    pub async fn forget_layer(&self, id: LayerId) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.forget_layer(id)).await
    }
    /// See [`Tx::add_snapshot`].
    pub async fn add_snapshot(
        &self,
        snapshot: NewSnapshot,
        operation: OperationId,
        actor: Actor,
    ) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.add_snapshot(&snapshot, operation, &actor)).await
    }
    /// See [`Tx::snapshot_durable`].
    pub async fn snapshot_durable(
        &self,
        id: SnapshotId,
        manifest: Value,
        size: Bytes,
    ) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.snapshot_durable(id, &manifest, size)).await
    }
    /// See [`Tx::snapshot_damaged`].
    pub async fn snapshot_damaged(&self, id: SnapshotId) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.snapshot_damaged(id)).await
    }
    /// See [`Tx::remove_snapshot`].
    pub async fn remove_snapshot(
        &self,
        id: SnapshotId,
        operation: OperationId,
        actor: Actor,
    ) -> Result<Option<SnapshotRecord>, StoreError> {
        self.transaction(move |tx| tx.remove_snapshot(id, operation, &actor)).await
    }
    /// See [`Tx::set_vm_memory`].
    pub async fn set_vm_memory(&self, vm: VmId, memory: Option<SnapshotId>) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.set_vm_memory(vm, memory)).await
    }
    /// See [`Tx::keep_vms`].
    pub async fn keep_vms(
        &self,
        vms: Vec<VmId>,
        operation: OperationId,
        actor: Actor,
    ) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.keep_vms(&vms, operation, &actor)).await
    }
    /// See [`Tx::switch_vm`].
    pub async fn switch_vm(&self, switch: Switch) -> Result<Generation, StoreError> {
        self.transaction(move |tx| tx.switch_vm(&switch)).await
    }
    /// See [`Tx::begin_transaction`].
    pub async fn begin_transaction(&self, transaction: NewTransaction) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.begin_transaction(&transaction)).await
    }
    /// See [`Tx::transaction_rolling_back`].
    pub async fn transaction_rolling_back(&self, id: TransactionId) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.transaction_rolling_back(id)).await
    }
    /// See [`Tx::end_transaction`].
    pub async fn end_transaction(&self, id: TransactionId, end: TransactionEnd) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.end_transaction(id, &end)).await
    }
    /// See [`Tx::put_context`].
    pub async fn put_context(
        &self,
        vm: VmId,
        name: ContextName,
        language: Language,
    ) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.put_context(vm, &name, language)).await
    }
    /// See [`Tx::forget_context`].
    pub async fn forget_context(&self, vm: VmId, name: ContextName) -> Result<(), StoreError> {
        self.transaction(move |tx| tx.forget_context(vm, &name)).await
    }
    /// See [`Tx::emit`].
    pub async fn emit(&self, event: NewEvent) -> Result<EventId, StoreError> {
        self.transaction(move |tx| tx.emit(&event)).await
    }
    /// See [`Tx::audit_entry`].
    pub async fn audit_entry(&self, entry: AuditEntry) -> Result<AuditHead, StoreError> {
        self.transaction(move |tx| tx.audit_entry(&entry)).await
    }

    /// Removes what `retention` does not keep, in small transactions between which other writers run.
    pub async fn prune(&self, retention: Retention) -> Result<Pruned, StoreError> {
        let cut = self.transaction(move |tx| tx.audit_cut(retention.audit)).await?;
        let mut total = Pruned::default();
        loop {
            let batch = self.transaction(move |tx| tx.prune_batch(&retention, cut)).await?;
            if batch == Pruned::default() {
                return Ok(total);
            }
            total.add(batch);
        }
    }
}

/// Single reads. Several that must agree with each other go into one [`Store::read`].
impl Store {
    /// See [`View::vm`].
    pub async fn vm(&self, id: VmId) -> Result<Option<VmRecord>, StoreError> {
        self.read(move |view| view.vm(id)).await
    }
    /// See [`View::find_vm`].
    pub async fn find_vm(&self, vm: VmRef, owner: Owner) -> Result<Option<VmRecord>, StoreError> {
        self.read(move |view| view.find_vm(&vm, &owner)).await
    }
    /// See [`View::vms`].
    pub async fn vms(&self) -> Result<Vec<VmRecord>, StoreError> {
        self.read(|view| view.vms()).await
    }
    /// See [`View::vms_with_process`].
    pub async fn vms_with_process(&self) -> Result<Vec<VmRecord>, StoreError> {
        self.read(|view| view.vms_with_process()).await
    }
    /// See [`View::images_in_use`].
    pub async fn images_in_use(&self) -> Result<BTreeSet<ImageDigest>, StoreError> {
        self.read(|view| view.images_in_use()).await
    }
    /// See [`View::ledger`].
    pub async fn ledger(&self) -> Result<LedgerUse, StoreError> {
        self.read(|view| view.ledger()).await
    }
    /// See [`View::operation`].
    pub async fn operation(&self, id: OperationId) -> Result<Option<Operation>, StoreError> {
        self.read(move |view| view.operation(id)).await
    }
    /// See [`View::operations`].
    pub async fn operations(
        &self,
        filter: OperationFilter,
        limit: u32,
    ) -> Result<Vec<Operation>, StoreError> {
        self.read(move |view| view.operations(&filter, limit)).await
    }
    /// See [`View::unfinished_operations`].
    pub async fn unfinished_operations(&self) -> Result<Vec<Operation>, StoreError> {
        self.read(|view| view.unfinished_operations()).await
    }
    /// See [`View::steps`].
    pub async fn steps(&self, operation: OperationId) -> Result<Vec<Step>, StoreError> {
        self.read(move |view| view.steps(operation)).await
    }
    /// See [`View::instances`].
    pub async fn instances(&self) -> Result<Vec<InstanceRow>, StoreError> {
        self.read(|view| view.instances()).await
    }
    /// See [`View::instances_of`].
    pub async fn instances_of(&self, vm: VmId) -> Result<Vec<InstanceRow>, StoreError> {
        self.read(move |view| view.instances_of(vm)).await
    }
    /// See [`View::layer_chain`].
    pub async fn layer_chain(&self, id: LayerId) -> Result<Vec<LayerRecord>, StoreError> {
        self.read(move |view| view.layer_chain(id)).await
    }
    /// See [`View::unused_layers`].
    pub async fn unused_layers(&self) -> Result<Vec<LayerRecord>, StoreError> {
        self.read(|view| view.unused_layers()).await
    }
    /// See [`View::snapshot`].
    pub async fn snapshot(&self, id: SnapshotId) -> Result<Option<SnapshotRecord>, StoreError> {
        self.read(move |view| view.snapshot(id)).await
    }
    /// See [`View::find_snapshot`].
    pub async fn find_snapshot(
        &self,
        snapshot: SnapshotRef,
        owner: Owner,
    ) -> Result<Option<SnapshotRecord>, StoreError> {
        self.read(move |view| view.find_snapshot(&snapshot, &owner)).await
    }
    /// See [`View::snapshots`].
    pub async fn snapshots(&self, vm: Option<VmId>) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.read(move |view| view.snapshots(vm)).await
    }
    /// See [`View::snapshot_users`].
    pub async fn snapshot_users(&self, id: SnapshotId) -> Result<Vec<SnapshotUser>, StoreError> {
        self.read(move |view| view.snapshot_users(id)).await
    }
    /// See [`View::snapshots_to_expire`].
    pub async fn snapshots_to_expire(
        &self,
        keep: SnapshotRetention,
        now: Timestamp,
    ) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.read(move |view| view.snapshots_to_expire(&keep, now)).await
    }
    /// See [`View::transaction`].
    pub async fn transaction_record(
        &self,
        id: TransactionId,
    ) -> Result<Option<TransactionRecord>, StoreError> {
        self.read(move |view| view.transaction(id)).await
    }
    /// See [`View::open_transactions`].
    pub async fn open_transactions(&self, vm: VmId) -> Result<Vec<TransactionRecord>, StoreError> {
        self.read(move |view| view.open_transactions(vm)).await
    }
    /// See [`View::all_open_transactions`].
    pub async fn all_open_transactions(&self) -> Result<Vec<TransactionRecord>, StoreError> {
        self.read(|view| view.all_open_transactions()).await
    }
    /// See [`View::contexts`].
    pub async fn contexts(&self, vm: VmId) -> Result<Vec<ContextRecord>, StoreError> {
        self.read(move |view| view.contexts(vm)).await
    }
    /// See [`View::undone`].
    pub async fn undone(&self, vm: VmId) -> Result<BTreeMap<OperationId, OperationId>, StoreError> {
        self.read(move |view| view.undone(vm)).await
    }
    /// See [`View::events`].
    pub async fn events(&self, after: EventId, limit: u32) -> Result<EventPage, StoreError> {
        self.read(move |view| view.events(after, limit)).await
    }
    /// See [`View::audit`].
    pub async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        self.read(move |view| view.audit(after, limit)).await
    }
    /// See [`View::audit_head`].
    pub async fn audit_head(&self) -> Result<AuditHead, StoreError> {
        self.read(|view| view.audit_head()).await
    }
    /// See [`View::audit_verify`].
    pub async fn audit_verify(&self, anchor: Option<AuditHead>) -> Result<AuditVerdict, StoreError> {
        self.read(move |view| view.audit_verify(anchor)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fault,
        fixture::{Fixture, new_vm, operation},
    };
    use offshoot_types::{ErrorCode, Failure, OperationKind};
    use std::{sync::mpsc as blocking, time::Duration};

    #[tokio::test]
    async fn a_read_does_not_wait_for_a_transaction_under_way() {
        let f = Fixture::new();
        f.stopped("a").await;
        let (begun, has_begun) = oneshot::channel();
        let (go_on, wait) = blocking::channel::<()>();
        let (begun, wait) = (std::sync::Mutex::new(Some(begun)), std::sync::Mutex::new(wait));
        let store = f.store.clone();
        let mut slow = tokio::task::JoinSet::new();
        slow.spawn(async move {
            let work = move |tx: &Tx<'_>| {
                let vm = new_vm("b");
                tx.create_vm(&operation(OperationKind::Create, Some(vm.id)), &vm)?;
                if let Some(begun) = begun.lock().unwrap().take() {
                    begun.send(()).unwrap();
                }
                wait.lock().unwrap().recv_timeout(Duration::from_secs(60)).unwrap();
                Ok(())
            };
            store.transaction(work).await
        });
        has_begun.await.unwrap();
        let seen = tokio::time::timeout(Duration::from_secs(20), f.store.vms()).await;
        assert_eq!(
            seen.expect("the read waits for the writer").unwrap().len(),
            1,
            "and sees only what is committed"
        );
        go_on.send(()).unwrap();
        slow.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(f.store.vms().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_full_disk_is_a_named_failure_and_writing_goes_on_once_there_is_space() {
        let f = Fixture::new();
        let pages = fault::page_count(&f.store).await.unwrap();
        fault::limit_pages(&f.store, Some(pages)).await.unwrap();
        let mut made = 0;
        let refused = loop {
            let vm = new_vm(&format!("vm{made}"));
            match f.store.create_vm(operation(OperationKind::Create, Some(vm.id)), vm).await {
                Ok(_) => made += 1,
                Err(error) => break error,
            }
            assert!(made < 1000, "the disk never filled");
        };
        assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
        let failure = Failure::from(refused);
        assert_eq!(failure.code, ErrorCode::NoResource);
        assert!(failure.hint.unwrap().contains("free space"));
        assert_eq!(
            f.store.vms().await.unwrap().len(),
            made,
            "what was acknowledged is there, what was refused is not"
        );
        fault::limit_pages(&f.store, None).await.unwrap();
        f.stopped("after").await;
        let verdict = f.store.audit_verify(None).await.unwrap();
        assert!(matches!(verdict, AuditVerdict::Intact(_)), "{verdict:?}");
    }

    #[tokio::test]
    async fn after_closing_everything_is_refused_and_closing_again_is_harmless() {
        let f = Fixture::new();
        f.store.close().await;
        f.store.close().await;
        assert!(matches!(f.store.vms().await, Err(StoreError::Closed)));
        let refused = f.store.begin_operation(operation(OperationKind::Exec, None)).await;
        assert!(matches!(refused, Err(StoreError::Closed)));
    }

    #[tokio::test]
    async fn a_write_whose_caller_went_away_is_kept() {
        let f = Fixture::new();
        let new = operation(OperationKind::Exec, None);
        let mut write = Box::pin(f.store.begin_operation(new.clone()));
        // One poll queues it.
        let _ = std::future::poll_fn(|context| std::task::Poll::Ready(write.as_mut().poll(context))).await;
        drop(write);
        f.store.begin_operation(operation(OperationKind::Exec, None)).await.unwrap();
        assert!(f.store.operation(new.id).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn steps_of_one_transaction_are_kept_or_lost_together() {
        let f = Fixture::new();
        let new = operation(OperationKind::Exec, None);
        let id = new.id;
        let work = move |tx: &Tx<'_>| {
            tx.begin_operation(&new)?;
            tx.step_done(id, 0, None)
        };
        assert!(matches!(f.store.transaction(work).await, Err(StoreError::StepOrder { .. })));
        assert_eq!(f.store.operation(id).await.unwrap(), None);
    }

    #[test]
    fn in_place_a_paused_clock_stands_still_while_the_writer_works() {
        crate::block_in_place();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("offshoot.db");
            let store = Store::open(Options::new(path, Limits::UNBOUNDED)).unwrap();
            let before = tokio::time::Instant::now();
            // The writer stands still until this has waited; a deadline of an hour would pass at once.
            let (slow, told) = (operation(OperationKind::Exec, None), blocking::channel::<()>());
            let (id, waiting) = (slow.id, std::sync::Mutex::new(told.1));
            let work = move |tx: &Tx<'_>| {
                let _timed_out = waiting.lock().unwrap().recv_timeout(Duration::from_millis(50));
                tx.begin_operation(&slow).map(drop)
            };
            let hour = Duration::from_secs(3600);
            let (written, read) = tokio::join!(
                tokio::time::timeout(hour, store.transaction(work)),
                // Asked second, so it sees what the first has written.
                store.operation(id),
            );
            written.expect("time stood still").unwrap();
            assert!(read.unwrap().is_some());
            store.close().await;
            assert_eq!(before.elapsed(), Duration::ZERO);
        });
    }
}
