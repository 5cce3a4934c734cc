//! The map of VMs: names, and the way to each driver. Locked for map operations only, never across an await.

use crate::{
    Census, VmView, admission::QUEUE_DEPTH, error, operations::Operations, request::Request,
    shared::VmShared, sync::lock,
};
use offshoot_types::{Environment, Failure, Owner, VmId, VmName, VmRef};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::sync::{mpsc, watch};

/// Destroys that wait to be seen by a driver; it sees them at once, whatever else it does.
const URGENT_DEPTH: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Manager {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    vms: HashMap<VmId, VmHandle>,
    closed: bool,
}

/// The way to one VM's driver, and what it publishes.
#[derive(Debug, Clone)]
pub(crate) struct VmHandle {
    pub id: VmId,
    pub name: VmName,
    pub owner: Owner,
    pub view: watch::Receiver<VmView>,
    pub shared: Arc<VmShared>,
    urgent: mpsc::Sender<Request>,
    requests: mpsc::Sender<Request>,
}

/// The driver's end of a handle.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub urgent: mpsc::Receiver<Request>,
    pub requests: mpsc::Receiver<Request>,
}

impl VmHandle {
    pub fn new(owner: Owner, view: watch::Receiver<VmView>, shared: Arc<VmShared>) -> (Self, Inbox) {
        let (urgent, urgent_inbox) = mpsc::channel(URGENT_DEPTH);
        let (requests, requests_inbox) = mpsc::channel(QUEUE_DEPTH);
        let (id, name) = {
            let view = view.borrow();
            (view.id, view.name.clone())
        };
        let handle = Self { id, name, owner, view, shared, urgent, requests };
        (handle, Inbox { urgent: urgent_inbox, requests: requests_inbox })
    }

    /// Adds to the environment of a process what all processes of the VM find there.
    pub fn complete(&self, env: &mut Environment) {
        for (name, value) in &self.view.borrow().env {
            env.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }

    /// Hands a request to the driver, or back if that has ended.
    pub async fn send(&self, request: Request) -> Result<(), Box<Request>> {
        let lane = if request.is_destroy() { &self.urgent } else { &self.requests };
        lane.send(request).await.map_err(|mpsc::error::SendError(request)| Box::new(request))
    }
}

impl Manager {
    /// Adds a VM, unless the engine is closing.
    pub fn insert(&self, handle: VmHandle) {
        lock(&self.state).vms.insert(handle.id, handle);
    }

    pub fn remove(&self, id: VmId) {
        lock(&self.state).vms.remove(&id);
    }

    /// A VM as a caller of `owner` names it.
    pub fn find(&self, vm: &VmRef, owner: &Owner) -> Result<VmHandle, Failure> {
        let state = lock(&self.state);
        let mut own = state.vms.values().filter(|handle| handle.owner == *owner);
        let found = match vm {
            VmRef::Id(id) => state.vms.get(id).filter(|handle| handle.owner == *owner),
            VmRef::Name(name) => own.find(|handle| handle.name == *name),
        };
        found.cloned().ok_or_else(|| {
            let names: Vec<&VmName> = state
                .vms
                .values()
                .filter(|handle| handle.owner == *owner)
                .map(|handle| &handle.name)
                .collect();
            error::vm_not_found(vm, names)
        })
    }

    pub fn get(&self, id: VmId) -> Option<VmHandle> {
        lock(&self.state).vms.get(&id).cloned()
    }

    pub fn all(&self) -> Vec<VmHandle> {
        lock(&self.state).vms.values().cloned().collect()
    }

    /// Accepts nothing from now on.
    pub fn close(&self) {
        lock(&self.state).closed = true;
    }

    pub fn check_open(&self) -> Result<(), Failure> {
        if lock(&self.state).closed { Err(error::shutting_down()) } else { Ok(()) }
    }

    pub fn census(&self, operations: &Operations) -> Census {
        let (operations, wanted) = operations.count();
        let state = lock(&self.state);
        let mut census = Census { vms: state.vms.len(), operations, wanted, ..Census::default() };
        for handle in state.vms.values() {
            let live = handle.view.borrow().state.name().has_process();
            census.live += usize::from(live);
            census.wanted += usize::from(live && handle.owner != Owner::daemon());
            census.execs += handle.shared.execs.running();
        }
        census
    }
}
