//! Events in order, first those on disk, then as they are committed.

use offshoot_store::Store;
use offshoot_types::{ErrorCode, Event, EventId, Failure, Owner, VmId};
use std::collections::VecDeque;
use tokio::sync::watch;

/// Read from the store at once.
const PAGE: u32 = 256;

/// Events of one owner, and of one VM if asked for.
#[derive(Debug)]
pub struct EventStream {
    store: Store,
    owner: Owner,
    vm: Option<VmId>,
    after: EventId,
    last: watch::Receiver<EventId>,
    ahead: VecDeque<Event>,
}

impl EventStream {
    pub(crate) fn new(store: Store, owner: Owner, vm: Option<VmId>, after: Option<EventId>) -> Self {
        let last = store.last_event();
        let after = after.unwrap_or_else(|| *last.borrow());
        Self { store, owner, vm, after, last, ahead: VecDeque::new() }
    }

    /// The next event, whenever it comes. Cancel-safe. Fails once if events were pruned before they were read:
    /// what the reader derived from them is incomplete, and it goes on from the oldest there is.
    pub async fn next(&mut self) -> Result<Event, Failure> {
        loop {
            if let Some(event) = self.ahead.pop_front() {
                return Ok(event);
            }
            // Marked as seen before reading: a commit in between wakes the next round.
            if *self.last.borrow_and_update() <= self.after && self.last.changed().await.is_err() {
                return Err(crate::error::shutting_down());
            }
            self.read().await?;
        }
    }

    /// The next event if it has happened already. Fails as [`next`](Self::next) does.
    pub async fn next_present(&mut self) -> Result<Option<Event>, Failure> {
        while self.ahead.is_empty() && *self.last.borrow() > self.after {
            self.read().await?;
        }
        Ok(self.ahead.pop_front())
    }

    async fn read(&mut self) -> Result<(), Failure> {
        let page = self.store.events(self.after, PAGE).await?;
        // Whoever reads from the beginning wants what there is, and has seen nothing that could be incomplete.
        let missed = page.missed && self.after > EventId(0);
        self.after = page.last;
        let (owner, vm) = (&self.owner, self.vm);
        let wanted = |event: &Event| event.owner == *owner && vm.is_none_or(|vm| event.vm == Some(vm));
        self.ahead.extend(page.events.into_iter().filter(wanted));
        if missed {
            return Err(Failure::new(ErrorCode::NotFound, "events were forgotten before they were read")
                .hint("read the present state afresh, then go on from here"));
        }
        Ok(())
    }
}
