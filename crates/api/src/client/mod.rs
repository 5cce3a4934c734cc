//! A typed client of the daemon, over its Unix socket.
//!
//! ```text
//! Client -- http: requests on a kept-alive connection ------> JSON in, JSON out
//!        -- http: upgraded to a WebSocket ------------------> ExecConnection, TcpConnection
//! ```
//! Nothing here retries a request that the daemon may have seen: an idle connection that turns out closed is
//! replaced only while the request is still entirely ours.

mod connection;
mod error;
mod exec;
mod files;
mod system;
mod tcp;
mod vms;

pub use connection::{ByteStream, Client};
pub use error::ClientError;
pub use exec::{ExecConnection, ExecEvent, ExecEvents, ExecInput};
pub use files::FileDownload;
pub use tcp::TcpConnection;
