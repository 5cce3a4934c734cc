//! The engine as its callers see it, on a host in memory that outlives it.

#![expect(clippy::disallowed_methods, reason = "the tasks of a test end with its runtime")]

mod concurrency;
mod contexts;
mod crash;
mod depth;
mod diff;
mod execs;
mod fake;
mod forks;
mod guest;
mod history;
mod host;
mod kept_disk;
mod life;
mod lifecycle;
mod pins;
mod pool;
mod pool_faults;
mod portable;
mod processes;
mod prune;
mod race;
mod rebases;
mod requests;
mod rollbacks;
mod sagas;
mod snapshots;
mod stage;
mod suspend;
mod transactions;
mod transactions_of_execs;
