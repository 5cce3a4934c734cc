//! A VM that belongs to one request (`offshoot run`): it is gone when the request is, however that ends.
//!
//! ```text
//! create_for_request --> RequestVm --destroy().await--> gone, observed        the path
//!                            |---- dropped (caller died, task cancelled) ---> reaper destroys it
//!                            |---- daemon died ----------------------------> next start destroys it
//! ```

use crate::Engine;
use offshoot_types::{Failure, Operation, VmId, VmName};

#[derive(Debug)]
#[must_use = "dropping it destroys the VM"]
pub struct RequestVm {
    /// `None` once destroyed.
    engine: Option<Engine>,
    id: VmId,
    name: VmName,
}

impl RequestVm {
    pub(crate) fn new(engine: Engine, id: VmId, name: VmName) -> Self {
        Self { engine: Some(engine), id, name }
    }
    pub fn id(&self) -> VmId {
        self.id
    }
    pub fn name(&self) -> &VmName {
        &self.name
    }

    /// Destroys the VM and returns when nothing of it is left. On failure the reaper goes on trying.
    pub async fn destroy(mut self) -> Result<Operation, Failure> {
        let Some(engine) = self.engine.take() else { unreachable!("taken here and in drop only") };
        engine.destroy_for_daemon(self.id, "its request ended").await
    }
}

impl Drop for RequestVm {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.reap(self.id, "its request went away");
        }
    }
}
