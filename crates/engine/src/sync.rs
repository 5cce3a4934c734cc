//! Short critical sections.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks for a few map operations. A poisoned lock is taken all the same: nothing between lock and unlock in
/// this crate can panic half-way through a change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
