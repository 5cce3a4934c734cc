//! What callers and the daemon say to each other: versioned wire types, and a typed client.
//!
//! ```text
//! caller -> client::Client --HTTP/1.1 + WebSocket over a Unix socket--> offshoot-server
//!              |                                                            |
//!              +------------------ v1: the same structs --------------------+
//! ```
//! Wire types are strict where a caller writes (`deny_unknown_fields`; every conversion into the domain names
//! the field it refuses) and tolerant where a caller reads, so that an older client survives a newer daemon.
//! The words themselves (states, codes, ids) are `offshoot-types`' own; their texts are part of this contract.

pub mod client;
pub mod socket;
pub mod v1;

pub use client::{Client, ClientError};
