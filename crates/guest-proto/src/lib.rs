//! The protocol between the host and the agent inside a VM.
//!
//! ```text
//! service frames    length-delimited MessagePack (`message`, `codec`)
//! multiplexer       yamux: streams with their own flow-control window (`session`)
//! resync            self-delimiting chunks with length, CRC and epoch (`resync`)
//! byte pipe         virtio-serial port, vsock, or a socketpair: anything AsyncRead + AsyncWrite
//! ```
//! Either side may open a stream. The first frame on a stream says what it is for: [`message::HostOpen`] from
//! the host, [`message::GuestOpen`] from the guest (which names a registered service, else it is refused).
//! Everything that comes from the guest is untrusted: sizes are capped before anything is allocated.

pub mod message;
