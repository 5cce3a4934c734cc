//! The engine as its callers see it, on a host in memory that outlives it.

mod guest;
mod host;
mod lifecycle;
mod stage;
