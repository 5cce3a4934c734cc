//! Offshoot for agents that speak the Model Context Protocol: tools and resources over the typed client of the API.
//!
//! ```text
//! stdio  (`offshoot mcp`) --> Server --> tools, resources --> Session { client, its own VM } --> offshoot_api::Client
//! `/mcp` (offshoot-server) --^                                                                        |
//!                                       the daemon's socket, or its own router in the same process <--+
//! ```
//! There is one implementation of every tool, and it has no privilege: what a tool does is what requests of `/v1` do for
//! the same caller. What is new here is made for readers that are models: text that says what happened and what to do
//! next, and bounds that are told.

#![forbid(unsafe_code)]

mod call;
mod gathered;
mod progress;
mod reply;
mod resources;
mod server;
mod session;
mod stdio;
mod tools;

pub use server::Server;
pub use session::{AtEnd, DEFAULT_IDLE, Options, Session, rests, running};
pub use stdio::serve_stdio;
pub use tools::names;
