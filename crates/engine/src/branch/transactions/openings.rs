//! What has been admitted to a guest and was not yet seen to begin there.
//!
//! A transaction begins once there is none: something that was accepted before it and begins after its snapshot would be
//! undone with it, though it is no part of it.

use tokio::sync::watch;

/// Counts them.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    count: watch::Sender<usize>,
}

/// One of them. Dropped when it has begun, or never will.
#[derive(Debug)]
pub(crate) struct Opening {
    count: watch::Sender<usize>,
}

impl Openings {
    /// To be called before the VM's driver is asked for admission.
    pub fn enter(&self) -> Opening {
        self.count.send_modify(|count| *count += 1);
        Opening { count: self.count.clone() }
    }

    /// Returns once nothing is under way.
    pub async fn settled(&self) {
        // An error cannot come: this end lives.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn it_is_settled_once_the_last_of_them_has_begun() {
        let openings = Openings::default();
        openings.settled().await;
        let (first, second) = (openings.enter(), openings.enter());
        drop(first);
        assert!(openings.settled().now_or_never().is_none());
        drop(second);
        openings.settled().await;
    }
}
