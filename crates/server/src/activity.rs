//! Who is here: open connections and the sessions they became.

use offshoot_types::{ErrorCode, Failure};
use tokio::sync::watch;

/// Sessions stop being accepted at this many guards.
const MAX_PRESENT: usize = 2048;

/// Counts guards. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Activity(watch::Sender<usize>);

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
