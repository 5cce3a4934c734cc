//! The engine as its callers see it, on a host in memory that outlives it.

mod concurrency;
mod crash;
mod execs;
mod guest;
mod host;
mod lifecycle;
mod sagas;
mod stage;
