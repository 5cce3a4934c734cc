//! The daemon as callers meet it: the real socket, the real typed client, the real engine; only the VMs are
//! in memory.

mod branches;
mod contexts;
mod control;
mod daemons;
mod envd;
mod execs;
mod files;
mod fixture;
mod history;
mod interpreter;
mod keys;
mod leavers;
mod mcp;
mod network;
mod once;
mod previews;
mod refusals;
mod runs;
mod terraphim;
mod tls;
mod transactions;
mod vms;
