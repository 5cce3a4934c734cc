//! The harness of the tests that run the real `offshoot` binary against real VMs.
//!
//! [`TestEnv`] owns everything a test touches: a state directory, a runtime directory, a cleared environment.
//! [`TestEnv::finish`] ends the test: it stops what runs and then *observes* that nothing is left: no process,
//! socket, cgroup or file. Images are shared with the user's own store, read-only.

mod command_output;
mod environment;
mod processes;
mod wait;

pub use command_output::CommandOutput;
pub use environment::{Session, TestEnv};
pub use processes::{Process, processes_mentioning};
pub use wait::{wait_for, wait_for_value};
