//! The handle every other crate holds.

use crate::{
    AuditEntry, AuditHead, AuditRow, AuditVerdict, Begun, Clock, EventPage, InstanceRow, LedgerUse, Limits,
    Move, NewEvent, NewInstance, NewOperation, NewVm, OpenError, OperationFilter, Pruned, Retention, Step,
    StoreError, SystemClock, Tx, View, VmRecord, database,
    readers::Readers,
    writer::{Message, QUEUE, Request, Writer},
};
use offshoot_types::{
    EventId, Generation, ImageDigest, Operation, OperationId, OperationOutcome, Owner, VmId, VmRef,
};
use serde_json::Value;
use std::{collections::BTreeSet, path::PathBuf, sync::Arc};
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
        let readers = Arc::new(Readers::open(&path)?);
        let last = View { connection: &connection, path: &path }.last_event().map_err(|error| {
            OpenError::Io { operation: "read", path: path.clone(), source: Box::new(error) }
        })?;
        let (sender, last_event) = watch::channel(last);
        let (queue, messages) = mpsc::channel(QUEUE);
        let writer =
            Writer { connection, path: path.clone(), clock, limits, last_event: sender, failed: false };
        std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run(messages)).map_err(
            |error| OpenError::Io { operation: "start the writer of", path, source: Box::new(error) },
        )?;
        Ok(Self { queue, readers, last_event, limits })
    }

    /// Finishes what is queued, closes the file and refuses everything after. Repeating it is harmless.
    pub async fn close(&self) {
        let (caller, closed) = oneshot::channel();
        self.readers.close().await;
        if self.queue.send(Message::Close(caller)).await.is_ok() {
            // An error means the writer has ended, which is what we wait for.
            let _ = closed.await;
        }
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
        self.queue.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
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
