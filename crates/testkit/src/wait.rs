//! Waiting for an observed condition. Tests never sleep for a fixed time and hope.

use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Polls until the condition holds; panics with `what` after `deadline`.
#[track_caller]
pub fn wait_for(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    wait_for_value(what, deadline, || condition().then_some(()));
}

/// Polls until there is a value; panics with `what` after `deadline`.
#[track_caller]
pub fn wait_for_value<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {deadline:?}");
        #[expect(clippy::disallowed_methods, reason = "the interval of a poll with a deadline")]
        std::thread::sleep(POLL);
    }
}
