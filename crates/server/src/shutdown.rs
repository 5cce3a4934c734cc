//! The one way down.
//!
//! ```text
//! Running --request / signal / idle--> Requested --all gone, or the drain's limit--> Expired --> engine down
//!            accept, serve                 accept nothing, long polls answer            sessions cut
//! ```

use offshoot_policy::Authorized;
use offshoot_types::Command;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// What a shutdown does with running VMs. If several ask, the first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vms {
    LiveOn,
    Stop,
}

/// Cheap to clone; clones are one.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    requested: CancellationToken,
    expired: CancellationToken,
    vms: Arc<Mutex<Option<Vms>>>,
}

impl Shutdown {
    /// A caller's wish, permitted.
    pub fn request(&self, permit: Authorized<Command>) {
        let vms = match permit.get() {
            Command::StopDaemon { vms: true } => Vms::Stop,
            _ => Vms::LiveOn,
        };
        self.begin(vms);
    }

    /// The daemon's own: a signal, or nothing left to do.
    pub fn begin(&self, vms: Vms) {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(vms);
        self.requested.cancel();
    }

    /// Cuts what did not end by itself.
    pub fn expire(&self) {
        self.requested.cancel();
        self.expired.cancel();
    }

    /// For what is told of it by a token; it is not to be cancelled.
    pub fn requested_token(&self) -> CancellationToken {
        self.requested.clone()
    }
    pub async fn requested(&self) {
        self.requested.cancelled().await;
    }
    pub async fn expired(&self) {
        self.expired.cancelled().await;
    }
    pub fn vms(&self) -> Vms {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(Vms::LiveOn)
    }
}
