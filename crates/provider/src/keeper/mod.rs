//! The keeper: one small process per VM, parent of its VMM. It survives the daemon, so that VMs do.
//!
//! ```text
//! daemon --spawns--> keeper --parent of--> VMM --runs--> guest
//!    |                 |  \--- QMP, console, VMM's stderr
//!    |                 \------ channel: kept open, handed to the daemon by SCM_RIGHTS
//!    \--keeper.sock----/       requests, replies, the exit
//!
//! Claiming --lease gone--> (ends; no VMM was started)
//!    | claimed
//! Starting --failed--> Failed{step, message} --\
//!    | VMM answers                              exit.json, lingers for its clients, removes its traces, ends
//! Running --VMM ended--> Ended{exit} ----------/
//! ```
//! The VMM cannot outlive the keeper (parent-death signal), the keeper does not outlive the VMM. The lock on
//! `keeper.lock` is held by inheritance from before the keeper's first instruction to its end: it, not a pid,
//! says whether a keeper exists. Which files there are and who renames which: `files`. What is said on
//! the socket: [`wire`].

mod cgroup;
mod channel;
mod checkpoint;
mod child;
pub mod client;
mod connection;
mod console;
mod disk;
mod figures;
pub(crate) mod files;
mod guest_memory;
mod instance;
mod launch;
mod log;
mod machine;
mod qemu;
mod qmp;
mod recovery;
mod run;
mod sandbox;
pub(crate) mod spec;
mod start;
mod vmm;
pub mod wire;

pub use cgroup::LimitsOnOffer;
pub(crate) use cgroup::remove as remove_cgroup;
use cgroup::retry_busy;
pub(crate) use client::Greeting;
pub(crate) use console::{last_lines, tail as console_tail};
pub(crate) use disk::{FIRST_NODE, frozen, layer};
pub(crate) use instance::KeptInstance;
use launch::{LaunchError, launch};
pub(crate) use recovery::{adopt, reclaim};
pub use run::main;
pub(crate) use start::start;
