//! The Connect protocol with its JSON codec, as its public specification has it: calls of one message, and streams of
//! framed messages either way. No compression, which the clients never ask for.

mod error;
mod frame;
mod json;
mod stream;
mod unary;

pub use error::{Code, ConnectError};
pub use frame::Messages;
pub use json::{base64_bytes, null_is_default, number};
pub use stream::{Failed, MAX_FRAME_DATA, OneMessage, Pace, Source, respond, summed_up};
pub use unary::{Deadline, Unary};

/// Bytes of one message from a client.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
