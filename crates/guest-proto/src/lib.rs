//! The protocol between the host and the agent inside a VM.
//!
//! ```text
//! client (host)                                   server (guest)
//!   exec, files, tcp, info, health                  Services: the agent, or an in-memory fake
//! ------------------------------------------------------------------------------------------------
//! message + codec   length-delimited MessagePack; a `Tunnel` where raw bytes flow
//! session           yamux: streams with their own flow-control window; caps; one driver task
//! resync            self-delimiting chunks with epoch tag, sequence, length and CRC
//! pipe              virtio-serial port, vsock or socketpair: anything AsyncRead + AsyncWrite
//! ```
//! Either side may open a stream. The first frame on a stream says what it is for: [`message::HostOpen`] from
//! the host, [`message::GuestOpen`] from the guest (which names a registered service, else it is refused).
//! Everything that comes from the guest is untrusted: sizes are capped before anything is allocated, and what
//! the client hands to its caller has been checked against what was asked for.
//!
//! # Wire format
//!
//! **Chunk** (`resync`), at most 32 KiB in all, integers big-endian:
//!
//! | field    | bytes | meaning |
//! |----------|-------|---------|
//! | magic    | 4     | `F5 'O' 'S' C1`; `F5` and `C1` never occur in UTF-8 text |
//! | kind     | 1     | 1 sync (host: "a new epoch begins"), 2 echo (guest: "I follow"), 3 data |
//! | reserved | 1     | 0 |
//! | length   | 2     | payload bytes; 16 for sync and echo |
//! | tag      | 8     | first 8 bytes of the epoch token: chunks of another epoch are dropped |
//! | sequence | 4     | of data chunks, from 0 per epoch and direction: repeats are dropped, a gap ends the epoch |
//! | crc      | 4     | CRC-32 (IEEE) of the 20 bytes before it and the payload |
//! | payload  | length| sync, echo: the 16-byte epoch token; data: bytes of the session |
//!
//! **Session**: yamux frames (12-byte header: version, type, flags, stream id, length). The host is the yamux
//! client. Half-close (FIN) is not used: a stream dropped after its FIN cannot be reset any more and would leave
//! the peer waiting for credit for ever. Ends are messages; dropping a stream resets it.
//!
//! **Message** (`codec`):
//!
//! | field   | bytes  | meaning |
//! |---------|--------|---------|
//! | length  | 4      | of the body, at most [`message::MAX_MESSAGE`] |
//! | body    | length | one MessagePack value, structs as maps by field name; trailing bytes are refused |
//!
//! **Tunnel** (TCP and host services), after the `Reply::Ok`:
//!
//! | field   | bytes  | meaning |
//! |---------|--------|---------|
//! | length  | 4      | of the block, at most [`message::CHUNK`]; 0 ends this direction |
//! | block   | length | raw bytes |

pub mod client;
pub mod codec;
pub mod compute;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod message;
pub mod resync;
pub mod server;
pub mod session;
mod task;
mod tunnel;

pub use codec::CodecError;
pub use session::CloseReason;
pub use tunnel::Tunnel;
