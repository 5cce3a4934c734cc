//! What a driver is asked for.

use crate::{admission::RequestKind, core::Authority, link::GuestLink, operations::Ticket, saga::Input};
use offshoot_types::{Command, Failure, TransactionId};
use std::time::Duration;
use tokio::sync::oneshot;

#[derive(Debug)]
pub(crate) enum Request {
    Change(Box<ChangeRequest>),
    UseGuest(GuestRequest),
    /// Others wrote to the VM's row: read it again.
    Refresh(oneshot::Sender<()>),
}

/// A journaled operation to carry out.
#[derive(Debug)]
pub(crate) struct ChangeRequest {
    pub kind: RequestKind,
    pub ticket: Ticket,
    pub authority: Authority,
    /// What was permitted, to be judged again if the VM has moved since.
    pub command: Option<Command>,
    /// The transaction it is part of.
    pub within: Option<TransactionId>,
    pub grace: Duration,
    pub input: Input,
}

/// Admission to a running guest. Everything further happens outside the driver.
#[derive(Debug)]
pub(crate) struct GuestRequest {
    pub authority: Authority,
    pub command: Option<Command>,
    /// The transaction it is part of.
    pub within: Option<TransactionId>,
    pub reply: oneshot::Sender<Result<GuestLink, Failure>>,
}

impl Request {
    pub fn kind(&self) -> RequestKind {
        match self {
            Self::Change(change) => change.kind,
            Self::UseGuest(_) => RequestKind::UseGuest,
            Self::Refresh(_) => RequestKind::Refresh,
        }
    }
    pub fn is_destroy(&self) -> bool {
        self.kind() == RequestKind::Destroy
    }
    /// The transaction it is part of.
    pub fn within(&self) -> Option<TransactionId> {
        match self {
            Self::Change(change) => change.within,
            Self::UseGuest(guest) => guest.within,
            Self::Refresh(_) => None,
        }
    }
    pub fn authority(&self) -> (&Authority, Option<&Command>) {
        match self {
            Self::Change(change) => (&change.authority, change.command.as_ref()),
            Self::UseGuest(guest) => (&guest.authority, guest.command.as_ref()),
            Self::Refresh(_) => (&Authority::Daemon, None),
        }
    }
}
