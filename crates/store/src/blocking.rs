//! Work that blocks: SQLite, files, hashing. It has threads of its own, so that tasks go on meanwhile.
//!
//! A simulation wants the opposite: with tokio's paused clock time must stand still while something is written, and in
//! which order two writes are answered must not depend on threads. There it is done in place.

use std::cell::Cell;
use tokio::task::JoinError;

thread_local! {
    static IN_PLACE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on a thread for such work. Once this was polled the work is carried out, whether or not anybody waits.
pub async fn blocking<T, F>(work: F) -> Result<T, JoinError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    if is_in_place() { Ok(work()) } else { tokio::task::spawn_blocking(work).await }
}

/// From now on tasks of this thread do such work themselves. For simulations, whose tasks all live on one thread.
#[doc(hidden)]
pub fn block_in_place() {
    IN_PLACE.set(true);
}

pub(crate) fn is_in_place() -> bool {
    IN_PLACE.get()
}
