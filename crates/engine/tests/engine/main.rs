//! The engine as its callers see it, on a host in memory that outlives it.

#![expect(clippy::disallowed_methods, reason = "the tasks of a test end with its runtime")]

mod concurrency;
mod crash;
mod execs;
mod guest;
mod host;
mod lifecycle;
mod sagas;
mod stage;
