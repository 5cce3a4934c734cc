//! Whether anything in the fake guest may move: not while the machine is paused, and no user process while it is frozen.

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Still {
    /// The virtual CPUs stand still.
    pub paused: bool,
    /// User processes do: see `Freeze` in the protocol.
    pub frozen: bool,
}

/// Takes one step of a user process as soon as such may be taken. Whoever has made the guest stand still can rely on it
/// that no step is under way and none begins: the step holds the very lock that standing still needs.
pub(super) async fn moving<T>(still: &mut watch::Receiver<Still>, step: impl FnOnce() -> T) -> T {
    loop {
        {
            let now = still.borrow_and_update();
            if !now.paused && !now.frozen {
                return step();
            }
        }
        if still.changed().await.is_err() {
            // The machine is gone, and this process with it.
            std::future::pending::<()>().await;
        }
    }
}
