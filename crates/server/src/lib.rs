//! The daemon: transports in front of an engine, and nothing else.
//!
//! ```text
//! Unix socket, TCP -> listener (who) -> http (wire <-> Command, one file per resource)
//!                                   \-> e2b  (one VM, opened by its access token)
//!                                   \-> mcp  (tools of agents, which are callers of http again)
//!                                   \-> terraphim  (code from models, the same)
//!                                   both --> preview (programs in a VM, over HTTP)
//!                                          |  policy: Authorized<Command>
//!                                          v
//!                                       engine <- wiring (images, providers, policy)
//! ```
//! [`serve`] is the whole life of a daemon, from claiming its state directory to letting go of it; VMs live on.
//! Handlers convert, ask policy, call the engine and convert back; they decide nothing.

mod activity;
mod characters;
mod claim;
mod e2b;
mod http;
mod idle;
mod images;
mod inside;
mod listener;
mod log;
mod mcp;
mod options;
mod preview;
mod ready;
mod record;
mod serve;
mod shutdown;
mod tasks;
mod terraphim;
#[cfg(test)]
mod tests;
mod wiring;

pub use e2b::{Announce, Environment};
pub use http::openapi_json;
pub use listener::{Listen, Tls};
pub use log::{LogFormat, install as install_log};
pub use options::{IDLE_TIMEOUT, ServeOptions, host_limits};
pub use ready::ReadyPipe;
pub use record::read as read_daemon_record;
pub use serve::{ServeError, serve};
pub use wiring::{Providers, gvisor_options, qemu_options};
