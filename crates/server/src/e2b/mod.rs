//! The API of E2B's SDKs: one VM, opened by its access token, and (`control`) what makes and ends such VMs.
//!
//! ```text
//! request --address: names a sandbox?--no--> the API, key needed
//!              | yes: from here on it is answered here, whatever it is
//!              v
//!          route: the VM by its name, running or woken by requests --> access: token, signature, or open on this host
//!              | Sandbox (what the holder of the token may do is policy's to say)
//!              '-> 49983 envd    49999 interpreter    others: into the VM (`preview`)
//! ```
//! A sandbox is a VM, and its id is the VM's name. What the wire calls a thing is said here and nowhere else.

mod access;
mod address;
mod announce;
mod control;
mod envd;
mod interpreter;
mod refusal;
mod route;
mod sandbox;
mod token;

pub use announce::{Announce, Environment, environment};
pub use control::{is_of_control, no_such_method, refusal, routes as control_routes};
pub use route::{Doors, route};
pub use token::{Purpose, Tokens};
