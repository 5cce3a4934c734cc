//! Time is a parameter, so that tests decide what time it is.

use jiff::Timestamp;
use std::fmt::Debug;

pub trait Clock: Send + Sync + Debug {
    fn now(&self) -> Timestamp;
}

/// The host's wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
