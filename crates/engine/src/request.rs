//! What a driver is asked for.

use crate::{admission::RequestKind, core::Authority, link::GuestLink, operations::Ticket};
use offshoot_types::{Command, Failure};
use std::time::Duration;
use tokio::sync::oneshot;

#[derive(Debug)]
pub(crate) enum Request {
    Change(Box<ChangeRequest>),
    UseGuest(GuestRequest),
}

/// A journaled operation to carry out.
#[derive(Debug)]
pub(crate) struct ChangeRequest {
    pub kind: RequestKind,
    pub ticket: Ticket,
    pub authority: Authority,
    /// What was permitted, to be judged again if the VM has moved since.
    pub command: Option<Command>,
    pub grace: Duration,
}

/// Admission to a running guest. Everything further happens outside the driver.
#[derive(Debug)]
pub(crate) struct GuestRequest {
    pub authority: Authority,
    pub command: Option<Command>,
    pub reply: oneshot::Sender<Result<GuestLink, Failure>>,
}

impl Request {
    pub fn kind(&self) -> RequestKind {
        match self {
            Self::Change(change) => change.kind,
            Self::UseGuest(_) => RequestKind::UseGuest,
        }
    }
    pub fn is_destroy(&self) -> bool {
        self.kind() == RequestKind::Destroy
    }
    pub fn authority(&self) -> (&Authority, Option<&Command>) {
        match self {
            Self::Change(change) => (&change.authority, change.command.as_ref()),
            Self::UseGuest(guest) => (&guest.authority, guest.command.as_ref()),
        }
    }
}
