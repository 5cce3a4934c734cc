//! What runs VMs: the seam between the engine and a virtual machine monitor.
//!
//! ```text
//! engine driver --(typed)--> vm::Vm<Running|Paused> --(dyn)--> Instance --unix socket--> offshoot keeper --> VMM
//!                                     ^                                                        (survives the daemon)
//!                            Provider::boot / Provider::adopt
//! ```
//! One conformance suite (`conformance`) runs on the fake and on every real provider. Only this crate spawns
//! host processes for VMs; the engine never names a hypervisor.

// Lifted in `os` alone.
#![deny(unsafe_code)]

pub mod archive;
pub mod conformance;
pub mod disk;
pub mod facts;
pub mod fake;
pub mod gvisor;
pub mod instance;
pub mod keeper;
pub mod memory;
mod os;
pub mod parts;
pub mod process;
mod program;
pub mod qemu;
pub mod speed;
mod task;
pub mod vm;

pub use instance::{
    Adoption, AfterCheckpoint, BootError, BootPlan, BootStep, Capabilities, Checkpoint, CheckpointPlan,
    Diagnostics, DiskStack, Durability, Exit, GuestIo, Instance, InstanceError, InstanceRecord, Provider,
    ReclaimReport, RestorePlan, StopReport, StopStep, UndoReport, Usage,
};
