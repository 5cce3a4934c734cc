//! Who is here: open connections and the sessions they became.

use offshoot_types::{ErrorCode, Failure};
use tokio::sync::{Semaphore, SemaphorePermit, watch};

/// Sessions stop being accepted at this many guards.
const MAX_PRESENT: usize = 2048;
/// Requests that are being answered, up to the head of the answer. A connection of HTTP/2 carries many.
const MAX_UNDER_WAY: usize = 2048;

/// Counts guards. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Activity(watch::Sender<usize>);

/// Bounds the requests that are being answered.
#[derive(Debug)]
pub struct UnderWay(Semaphore);

impl Default for UnderWay {
    fn default() -> Self {
        Self(Semaphore::new(MAX_UNDER_WAY))
    }
}

impl UnderWay {
    /// One more, until it is dropped. Nobody waits for room: a queue without an end would be a stall.
    pub fn begin(&self) -> Result<SemaphorePermit<'_>, Failure> {
        self.0.try_acquire().map_err(|_none_left| {
            let message = format!("{MAX_UNDER_WAY} requests are being answered already");
            Failure::new(ErrorCode::NoResource, message).hint("try again when some have ended")
        })
    }
}

/// One connection or session, until dropped.
#[derive(Debug)]
#[must_use = "leaves when dropped"]
pub struct Present(watch::Sender<usize>);

impl Activity {
    pub fn enter(&self) -> Present {
        self.0.send_modify(|count| *count += 1);
        Present(self.0.clone())
    }
    /// For what outlives its connection's place in the queue, such as a WebSocket.
    pub fn enter_session(&self) -> Result<Present, Failure> {
        if self.count() >= MAX_PRESENT {
            let message = format!("{MAX_PRESENT} connections and sessions are open already");
            return Err(Failure::new(ErrorCode::NoResource, message).hint("close some, then try again"));
        }
        Ok(self.enter())
    }
    pub fn count(&self) -> usize {
        *self.0.borrow()
    }
    pub fn changes(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }
    /// Returns when nobody is left.
    pub async fn gone(&self) {
        // The sender lives in `self`, so the channel cannot close meanwhile.
        let mut changes = self.changes();
        let _nobody = changes.wait_for(|count| *count == 0).await;
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_a_request_is_refused_at_once_and_served_when_another_has_ended() {
        let bound = UnderWay::default();
        let mut under_way: Vec<_> = (0..MAX_UNDER_WAY).map(|_| bound.begin().unwrap()).collect();
        assert_eq!(bound.begin().unwrap_err().code, ErrorCode::NoResource);
        under_way.pop();
        drop(bound.begin().unwrap());
    }

    #[tokio::test]
    async fn it_is_over_when_the_last_has_left() {
        let activity = Activity::default();
        let (one, two) = (activity.enter(), activity.enter());
        drop(one);
        assert_eq!(activity.count(), 1);
        let (_, ()) = tokio::join!(activity.gone(), async { drop(two) });
        assert_eq!(activity.count(), 0);
    }
}
