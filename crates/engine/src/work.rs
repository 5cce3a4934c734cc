//! What others do with a VM, so that it is not suspended under them.

use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Counts what is under way: open streams, running processes and code, file access, connections, transactions, changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work(Arc<watch::Sender<Count>>);

#[derive(Debug, Clone, Copy)]
struct Count {
    under_way: usize,
    /// When the last of it ended.
    ended: Instant,
}

impl Default for Count {
    fn default() -> Self {
        Self { under_way: 0, ended: Instant::now() }
    }
}

/// One of them, from its beginning to its drop. A clone is another.
#[derive(Debug)]
pub(crate) struct Use(Work);

impl Work {
    pub fn begin(&self) -> Use {
        self.0.send_modify(|count| count.under_way += 1);
        Use(self.clone())
    }

    /// Resolves once nothing is under way.
    pub async fn ended(&self) {
        // An error cannot come: this end lives.
        let _ = self.0.subscribe().wait_for(|count| count.under_way == 0).await;
    }

    /// Resolves once something is under way, or was after `since`.
    pub async fn used_after(&self, since: Instant) {
        // As above.
        let _ = self.0.subscribe().wait_for(|count| count.under_way > 0 || count.ended > since).await;
    }

    /// Resolves once nothing has been under way for `span`.
    pub async fn idle_for(&self, span: Duration) {
        let mut changes = self.0.subscribe();
        loop {
            let Count { under_way, ended } = *changes.borrow_and_update();
            let idle = async {
                match under_way {
                    0 => tokio::time::sleep_until(ended + span).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // As above.
                _ = changes.changed() => {}
                () = idle => return,
            }
        }
    }
}

impl Clone for Use {
    fn clone(&self) -> Self {
        self.0.begin()
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| {
            count.under_way -= 1;
            count.ended = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const SPAN: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn it_is_idle_a_span_after_the_last_of_it_has_ended() {
        let work = Work::default();
        let begun = Instant::now();
        assert!(work.used_after(begun).now_or_never().is_none());
        let first = work.begin();
        let second = first.clone();
        let idle = work.idle_for(SPAN);
        tokio::pin!(idle);
        tokio::time::advance(SPAN * 2).await;
        assert!(idle.as_mut().now_or_never().is_none(), "two are under way");
        drop(first);
        tokio::time::advance(SPAN * 2).await;
        assert!(idle.as_mut().now_or_never().is_none(), "one is");
        assert!(work.ended().now_or_never().is_none());
        drop(second);
        work.ended().await;
        work.used_after(begun).await;
        tokio::time::advance(SPAN / 2).await;
        assert!(idle.as_mut().now_or_never().is_none());
        drop(work.begin());
        idle.await;
        assert_eq!(begun.elapsed(), SPAN * 5 + SPAN / 2, "it begins anew with whatever came between");
    }
}
