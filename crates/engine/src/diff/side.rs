//! A state that is looked into: which it is, and a guest that knows it.

use super::{LookedAt, Looking, Subject};
use crate::{
    branch::temporary::{self, Temporary, TemporaryFork},
    core::Authority,
    error,
    link::GuestLink,
    manager::VmHandle,
    saga::thaw::Identity,
};
use offshoot_guest_proto::client::{Client, ClientError};
use offshoot_types::{
    Command, ErrorCode, Failure, ForkSource, ImageDigest, SnapshotId, SnapshotKind, SnapshotRef, VmId,
    VmName, VmRef, VmStateName,
};
use std::time::Duration;
use tokio::time::Instant;

/// Why a copy is destroyed.
const OVER: &str = "its comparison is over";
/// For the processes of a copy to stand still.
const FREEZE: Duration = Duration::from_secs(2);

/// Where a state is.
pub(super) struct Place {
    pub vm: VmId,
    pub name: VmName,
    pub image: ImageDigest,
    snapshot: Option<SnapshotId>,
    way: Way,
}

enum Way {
    /// Its own guest.
    Guest(VmHandle),
    /// A copy that nobody else sees.
    Copy(ForkSource, LookedAt),
}

/// A state with a guest that can be asked.
pub(super) struct Side {
    pub subject: Subject,
    pub client: Client,
    /// Of the guest that is asked: for messages.
    vm: VmName,
    /// The VM is worked with until this is dropped.
    _link: GuestLink,
    copy: Option<Temporary>,
}

impl Place {
    pub fn subject(&self) -> Subject {
        Subject { vm: self.vm, name: self.name.clone(), snapshot: self.snapshot, looked_at: None }
    }

    /// Whether it is the same state: a snapshot never changes, and a VM is at any moment what it is.
    pub fn is(&self, other: &Self) -> bool {
        (self.vm, self.snapshot) == (other.vm, other.snapshot)
    }
}

impl Looking {
    pub(super) async fn find(&self, state: ForkSource) -> Result<Place, Failure> {
        let owner = self.grant.actor().owner();
        match state {
            ForkSource::Vm(vm) => {
                let handle = self.core.manager.find(&vm, &owner)?;
                let (state, memory, image) = {
                    let view = handle.view.borrow();
                    (view.state.name(), view.suspended_to, view.image_digest.clone())
                };
                let (vm, name) = (handle.id, handle.name.clone());
                let source = ForkSource::Vm(VmRef::Id(vm));
                let (snapshot, way) = match (state, memory) {
                    (VmStateName::Suspended, Some(memory)) => {
                        (Some(memory), Way::Copy(source, LookedAt::Memory))
                    }
                    (VmStateName::Stopped | VmStateName::Failed, _) => {
                        (None, Way::Copy(source, LookedAt::Disk))
                    }
                    // One that can be asked, or says itself why not.
                    _ => (None, Way::Guest(handle)),
                };
                Ok(Place { vm, name, image, snapshot, way })
            }
            ForkSource::Snapshot(snapshot) => {
                let found = self.core.find_snapshot(&snapshot, &owner).await?;
                // The row of a destroyed VM stays while a snapshot refers to it.
                let row = self.core.store.vm(found.vm).await?.ok_or_else(|| {
                    Failure::new(ErrorCode::Internal, "a snapshot's VM is not in the record")
                })?;
                let looked_at = match found.kind {
                    SnapshotKind::Full => LookedAt::Memory,
                    SnapshotKind::DiskOnly => LookedAt::Disk,
                };
                let source = ForkSource::Snapshot(SnapshotRef::Id(found.id));
                Ok(Place {
                    vm: found.vm,
                    name: found.vm_name,
                    image: row.spec.image_digest,
                    snapshot: Some(found.id),
                    way: Way::Copy(source, looked_at),
                })
            }
        }
    }

    /// A guest of that state. `word` tells the copies of one comparison apart.
    pub(super) async fn look(&self, place: Place, word: &str) -> Result<Side, Failure> {
        let subject = place.subject();
        let (handle, copy, looked_at) = match place.way {
            Way::Guest(handle) => (handle, None, LookedAt::Running),
            Way::Copy(source, looked_at) => {
                let unique = VmId::new().simple();
                let word = format!("diff-{}-{word}", &unique[unique.len() - 8..]);
                let asked = TemporaryFork {
                    source,
                    name: temporary::name(&place.name, &word)?,
                    // It is never handed out, and what a new identity writes would be told as a difference.
                    identity: Identity::Kept,
                    within: self.within,
                    over: OVER,
                };
                let copy = Temporary::fork(&self.core, self.grant.clone(), asked).await?;
                (copy.handle.clone(), Some(copy), looked_at)
            }
        };
        let authority = Authority::Granted(Box::new(self.grant.clone()));
        let itself = ForkSource::Vm(VmRef::Id(handle.id));
        let command = Command::Diff { from: itself.clone(), to: itself };
        let link = self.core.borrow_guest(&handle, authority, Some(command), self.within).await?;
        let until = Instant::now() + self.core.options.deadlines.reconnect;
        let client = link
            .client(until)
            .await
            .map_err(|error| error::guest_silent(&handle.name, &error.to_string()))?;
        if copy.is_some() {
            // What it is compared as is what it was, and not what its programs make of it meanwhile. Of one that does
            // not stand still more is told, and nothing wrong.
            drop(client.freeze(FREEZE).await);
        }
        let subject = Subject { looked_at: Some(looked_at), ..subject };
        Ok(Side { subject, client, vm: handle.name.clone(), _link: link, copy })
    }
}

impl Side {
    pub fn is_copy(&self) -> bool {
        self.copy.is_some()
    }

    pub fn failure(&self, error: &ClientError) -> Failure {
        error::guest_failure(&self.vm, error)
    }

    /// Of the first answer: an agent that does not know the question drops it.
    pub fn refused(&self, error: &ClientError) -> Failure {
        let failure = self.failure(error);
        match error {
            ClientError::Protocol { .. } => failure.hint(
                "a guest agent that is older than this command cannot answer: boot the VM from a current image",
            ),
            ClientError::Guest(_) if failure.code == ErrorCode::Unsupported => {
                failure.hint("`--packages` and `--processes` can be compared all the same")
            }
            _ => failure,
        }
    }

    /// Returns once nothing of a copy is left.
    pub async fn leave(self) {
        let Self { copy, client, _link, .. } = self;
        drop((client, _link));
        if let Some(copy) = copy {
            copy.destroy().await;
        }
    }
}
