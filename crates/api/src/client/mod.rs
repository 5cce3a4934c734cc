//! A typed client of the daemon, over its Unix socket or whatever else leads to it.
//!
//! ```text
//! Client -- http: requests on a kept-alive connection ------> JSON in, JSON out
//!        -- http: upgraded to a WebSocket ------------------> Exec-, Try-, CodeConnection, RaceEvents, TcpConnection
//! ```
//! Nothing here retries a request that the daemon may have seen: an idle connection that turns out closed is
//! replaced only while the request is still entirely ours.

mod attempt;
mod connection;
mod contexts;
mod conversation;
mod dial;
mod error;
mod exec;
mod files;
mod history;
mod keys;
mod snapshots;
mod system;
mod tcp;
mod transactions;
mod vms;

pub use attempt::{RaceEvent, RaceEvents, TryConnection, TryEvent, TryEvents};
pub use connection::{ByteStream, Client};
pub use contexts::{CodeConnection, CodeControl, CodeEvent, CodeEvents};
pub use dial::{Dial, Wire, connect};
pub use error::ClientError;
pub use exec::{ExecConnection, ExecEvent, ExecEvents, ExecInput};
pub use files::FileDownload;
pub use tcp::TcpConnection;
