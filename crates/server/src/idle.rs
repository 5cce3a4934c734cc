//! When an autostarted daemon has nothing left to do.

use crate::activity::Activity;
use offshoot_engine::Engine;
use std::time::Duration;
use tokio::sync::watch;

/// Returns once nobody has been connected, no VM has had a process and no operation has run for all of
/// `timeout`.
pub async fn idle_for(engine: &Engine, activity: &Activity, timeout: Duration) {
    let (mut census, mut present) = (engine.census_changes(), activity.changes());
    loop {
        let idle = census.borrow_and_update().is_idle() && *present.borrow_and_update() == 0;
        tokio::select! {
            biased;
            () = changed(&mut census) => {}
            () = changed(&mut present) => {}
            () = tokio::time::sleep(timeout), if idle => return,
        }
    }
}

/// A closed channel never changes again.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending().await
    }
}
