//! When an autostarted daemon has nothing left to do.

use crate::activity::Activity;
use offshoot_engine::Engine;
use std::time::Duration;
use tokio::sync::watch;

/// Returns once nobody has been connected, no VM of anybody's has had a process and no operation that was asked for has run
/// for all of `timeout`. What the daemon does of its own accord, its warm pool above all, does not count.
pub async fn idle_for(engine: &Engine, activity: &Activity, timeout: Duration) {
    let (mut census, mut present) = (engine.census_changes(), activity.changes());
    loop {
        let idle = census.borrow_and_update().is_idle() && *present.borrow_and_update() == 0;
        tokio::select! {
            biased;
            () = until(&mut census, |census| census.is_idle() != idle) => {}
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

async fn until<T>(receiver: &mut watch::Receiver<T>, is: impl FnMut(&T) -> bool) {
    if receiver.wait_for(is).await.is_err() {
        std::future::pending().await
    }
}
