//! Whether the processes of a VM's guest stand still, and having them go on.

use super::{Machine, Power};
use crate::{
    link::{LinkState, chain},
    trace::TraceEvent,
};
use offshoot_guest_proto::message::GuestHello;
use offshoot_types::VmStateName;
use tokio::time::Instant;

/// Where a guest stood still that is to go on.
#[derive(Debug, Clone, Copy)]
enum Loose {
    Here,
    /// It was restored since: its clock stood still with it.
    Moved,
}

impl Machine {
    /// The guest was thawed in the session there is: what its handshake said of standing still is old.
    pub fn set_going(&mut self) {
        self.frozen = false;
        let link = self.live.as_ref().map(|live| live.link.changes());
        self.unfrozen = link.and_then(|link| match &*link.borrow() {
            LinkState::Connected { hello, .. } => Some(epoch_of(hello)),
            LinkState::Connecting { .. } | LinkState::Ended { .. } => None,
        });
    }

    /// Whether the guest is to be set going: it was told to stand still, or an earlier daemon told it.
    pub fn to_unfreeze(&self) -> bool {
        if self.state() != VmStateName::Running {
            return false;
        }
        let Some(live) = &self.live else { return false };
        match &*live.link.changes().borrow() {
            LinkState::Connected { hello, silent: false, .. } => {
                self.frozen || (hello.frozen && self.unfrozen != Some(epoch_of(hello)))
            }
            LinkState::Connected { .. } | LinkState::Connecting { .. } | LinkState::Ended { .. } => false,
        }
    }

    /// The guest stands still since its state was saved, whatever was heard of it.
    pub fn stands_still(&mut self) {
        self.frozen = true;
    }

    /// Whether its CPUs run, by the handle there is.
    pub fn is_going(&self) -> bool {
        self.live.as_ref().is_some_and(|live| matches!(live.power, Some(Power::Running(_))))
    }

    /// Sets the guest's processes going. One that does not confirm it is asked again by the driver.
    pub async fn unfreeze(&mut self) {
        self.set_loose(Loose::Here).await;
    }

    /// As [`unfreeze`](Self::unfreeze), in the process to which the state was moved.
    pub async fn go_on(&mut self) {
        self.set_loose(Loose::Moved).await;
    }

    async fn set_loose(&mut self, how: Loose) {
        let until = Instant::now() + self.core.options.deadlines.freeze;
        let Some(live) = &self.live else {
            self.frozen = false;
            return;
        };
        let (link, changes) = (live.link.clone(), live.link.changes());
        let asked = async {
            let client = link.client(until).await.map_err(|error| error.to_string())?;
            let loose = match how {
                Loose::Here => client.unfreeze().await,
                Loose::Moved => client.go_on().await,
            };
            loose.map_err(|error| chain(&error))
        };
        match tokio::time::timeout_at(until, asked).await {
            Ok(Ok(())) => {
                self.frozen = false;
                if let LinkState::Connected { hello, .. } = &*changes.borrow() {
                    self.unfrozen = Some(epoch_of(hello));
                }
            }
            Ok(Err(error)) => TraceEvent::NotUnfrozen { error: &error }.emit(&self.own_scope()),
            Err(_elapsed) => TraceEvent::NotUnfrozen { error: "no answer in time" }.emit(&self.own_scope()),
        }
    }
}

/// Tells one session with a guest from another.
fn epoch_of(hello: &GuestHello) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hello.epoch[..8]);
    u64::from_le_bytes(bytes)
}
