//! The daemon as callers meet it: the real socket, the real typed client, the real engine; only the VMs are
//! in memory.

mod daemons;
mod execs;
mod files;
mod fixture;
mod refusals;
mod runs;
mod vms;
