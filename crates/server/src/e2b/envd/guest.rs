//! The sandbox's guest at work on files, for both services that need it.

use crate::e2b::sandbox::Sandbox;
use offshoot_engine::{GuestAccess, guest_failure};
use offshoot_guest_proto::{
    client::{ClientError, Entries},
    message::GuestError,
};
use offshoot_types::{Command, Failure, FileAccess, VmName, VmRef};

/// Why something was not done.
#[derive(Debug)]
pub enum Fault {
    /// The guest said so.
    Guest(GuestError),
    Failed(Failure),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Fault {
    pub fn of(vm: &VmName, error: ClientError) -> Self {
        match error {
            ClientError::Guest(refused) => Self::Guest(refused),
            // An agent that does not know a request drops it.
            error @ ClientError::Protocol { .. } => Self::Failed(guest_failure(vm, &error).hint(
                "an agent that is older than this daemon cannot answer: start the VM from a current image",
            )),
            error => Self::Failed(guest_failure(vm, &error)),
        }
    }

    fn failure(&self, vm: &VmName) -> Failure {
        match self {
            Self::Guest(refused) => guest_failure(vm, &ClientError::Guest(refused.clone())),
            Self::Failed(failure) => failure.clone(),
        }
    }
}

/// A permitted way to a user's files. What is written is recorded: say how it went with [`Files::complete`].
#[derive(Debug)]
pub struct Files {
    access: GuestAccess,
    vm: VmName,
    user: String,
}

impl Files {
    pub async fn open(sandbox: &Sandbox, user: &str, access: FileAccess, path: &str) -> Result<Self, Fault> {
        let command = Command::Files { vm: VmRef::Id(sandbox.vm), access, path: path.to_owned() };
        let access = sandbox.call.engine.guest(sandbox.call.permit(command).await?).await?;
        Ok(Self { access, vm: sandbox.name.clone(), user: user.to_owned() })
    }

    pub fn entries(&self) -> Entries {
        self.access.client().entries(self.user.clone())
    }

    pub fn fault(&self, error: ClientError) -> Fault {
        Fault::of(&self.vm, error)
    }

    /// Records the outcome and passes it on.
    pub async fn complete<T>(self, outcome: Result<T, Fault>) -> Result<T, Fault> {
        let recorded = outcome.as_ref().map(drop).map_err(|fault| fault.failure(&self.vm));
        self.access.complete(recorded).await;
        outcome
    }
}

/// Does `work` in the guest, as one permitted and recorded access.
pub async fn in_guest<T, W>(
    sandbox: &Sandbox,
    user: &str,
    access: FileAccess,
    path: &str,
    work: W,
) -> Result<T, Fault>
where
    W: AsyncFnOnce(Entries) -> Result<T, ClientError>,
{
    let files = Files::open(sandbox, user, access, path).await?;
    let done = work(files.entries()).await.map_err(|error| files.fault(error));
    files.complete(done).await
}
