//! Length-delimited MessagePack: a `u32` length (big-endian), then one value.
//!
//! The length is judged before anything is allocated; trailing bytes inside a frame are refused.

use crate::message::MAX_MESSAGE;
use bytes::{Buf as _, BytesMut};
use serde::{Deserialize as _, Serialize, de::DeserializeOwned};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};

const PREFIX: usize = 4;
/// Read ahead at least this much: most messages are smaller, and come with their successor.
const READ_AHEAD: usize = 4 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("a message of {length} bytes exceeds the limit of {MAX_MESSAGE}")]
    TooLarge { length: usize },
    #[error("the stream ended inside a message")]
    Truncated,
    #[error("a message cannot be decoded as {expected}")]
    Decode {
        expected: &'static str,
        #[source]
        source: Box<rmp_serde::decode::Error>,
    },
    #[error("{expected} is followed by further bytes in the same frame")]
    Trailing { expected: &'static str },
    #[error("a message cannot be encoded")]
    Encode(#[source] Box<rmp_serde::encode::Error>),
    /// An earlier `send` was cancelled or failed half-way: what follows would be misread.
    #[error("an earlier message was sent only in part")]
    Broken,
    #[error("the stream failed")]
    Io(#[source] io::Error),
}

/// Decodes the body of one frame.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    let expected = std::any::type_name::<T>();
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(body);
    let value = T::deserialize(&mut deserializer)
        .map_err(|source| CodecError::Decode { expected, source: Box::new(source) })?;
    match serde::de::IgnoredAny::deserialize(&mut deserializer) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(error))
            if error.kind() == io::ErrorKind::UnexpectedEof =>
        {
            Ok(value)
        }
        _ => Err(CodecError::Trailing { expected }),
    }
}

/// Appends one whole frame to `out`; on failure `out` is as before.
pub fn encode<T: Serialize + ?Sized>(message: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    let encoded = rmp_serde::encode::write_named(out, message);
    let length = out.len() - start - PREFIX;
    let result = match encoded {
        Err(source) => Err(CodecError::Encode(Box::new(source))),
        Ok(()) if length > MAX_MESSAGE => Err(CodecError::TooLarge { length }),
        Ok(()) => u32::try_from(length).map_err(|_| CodecError::TooLarge { length }),
    };
    match result {
        Ok(prefix) => {
            out[start..start + PREFIX].copy_from_slice(&prefix.to_be_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Splits a stream into typed halves.
pub fn messages<S: AsyncRead + AsyncWrite>(
    stream: S,
) -> (MessageReader<ReadHalf<S>>, MessageWriter<WriteHalf<S>>) {
    let (read, write) = tokio::io::split(stream);
    (MessageReader::new(read), MessageWriter::new(write))
}

#[derive(Debug)]
pub struct MessageReader<R> {
    io: R,
    buffer: BytesMut,
}

impl<R> MessageReader<R> {
    pub fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new() }
    }

    /// The stream, and what was read ahead of the last message.
    pub fn into_parts(self) -> (R, BytesMut) {
        (self.io, self.buffer)
    }

    /// Takes a whole frame out of the buffer, if there is one.
    fn take_buffered<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CodecError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MAX_MESSAGE {
            return Err(CodecError::TooLarge { length });
        }
        let Some(body) = rest.get(..length) else {
            self.buffer.reserve(PREFIX + length - self.buffer.len());
            return Ok(None);
        };
        let value = decode(body);
        self.buffer.advance(PREFIX + length);
        value.map(Some)
    }
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// The next message, or `None` where the stream ended between two. Cancel-safe.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CodecError> {
        loop {
            if let Some(message) = self.take_buffered()? {
                return Ok(Some(message));
            }
            if self.buffer.capacity() - self.buffer.len() < PREFIX {
                self.buffer.reserve(READ_AHEAD);
            }
            // `limit` keeps memory bounded by what was reserved: `read_buf` alone would grow a full buffer.
            if self.io.read_buf(&mut self.buffer).await.map_err(CodecError::Io)? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(CodecError::Truncated) };
            }
        }
    }
}

#[derive(Debug)]
pub struct MessageWriter<W> {
    io: W,
    out: Vec<u8>,
    broken: bool,
}

impl<W> MessageWriter<W> {
    pub fn new(io: W) -> Self {
        Self { io, out: Vec::new(), broken: false }
    }

    pub fn into_inner(self) -> W {
        self.io
    }
}

impl<W: AsyncWrite + Unpin> MessageWriter<W> {
    /// Hands one message to the stream. Not cancel-safe: after a cancelled call every further one fails.
    pub async fn send<T: Serialize + ?Sized>(&mut self, message: &T) -> Result<(), CodecError> {
        if self.broken {
            return Err(CodecError::Broken);
        }
        self.out.clear();
        encode(message, &mut self.out)?;
        self.broken = true;
        self.io.write_all(&self.out).await.map_err(CodecError::Io)?;
        self.io.flush().await.map_err(CodecError::Io)?;
        self.broken = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ExecEvent, FileChunk, HostOpen, Reply, ShutdownKind};
    use std::time::Duration;

    fn frame<T: Serialize>(message: &T) -> Vec<u8> {
        let mut out = Vec::new();
        encode(message, &mut out).unwrap();
        out
    }

    #[tokio::test]
    async fn a_length_beyond_the_cap_is_refused_before_anything_is_allocated() {
        let wire = u32::MAX.to_be_bytes();
        let mut reader = MessageReader::new(&wire[..]);
        let error = reader.recv::<HostOpen>().await.unwrap_err();
        assert!(matches!(error, CodecError::TooLarge { length } if length == u32::MAX as usize), "{error}");
        assert!(reader.buffer.capacity() <= READ_AHEAD);
    }

    #[tokio::test]
    async fn messages_cut_anywhere_arrive_whole_and_in_order() {
        let sent = [FileChunk::Data(vec![7; 100_000]), FileChunk::Data(vec![]), FileChunk::End];
        let wire: Vec<u8> = sent.iter().flat_map(frame).collect();
        let (mut far, near) = tokio::io::duplex(7);
        let feed = async {
            far.write_all(&wire).await.unwrap();
            drop(far);
        };
        let read = async {
            let mut reader = MessageReader::new(near);
            let mut got = Vec::new();
            while let Some(chunk) = reader.recv::<FileChunk>().await.unwrap() {
                got.push(chunk);
            }
            got
        };
        let ((), got) = tokio::join!(feed, read);
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn an_end_inside_a_message_is_not_a_clean_end() {
        let wire = frame(&FileChunk::End);
        let mut reader = MessageReader::new(&wire[..wire.len() - 1]);
        assert!(matches!(reader.recv::<FileChunk>().await, Err(CodecError::Truncated)));
    }

    #[test]
    fn bytes_behind_the_value_are_refused() {
        let mut wire = frame(&ShutdownKind::PowerOff);
        wire.push(0xC0);
        assert!(matches!(decode::<ShutdownKind>(&wire[PREFIX..]), Err(CodecError::Trailing { .. })));
    }

    #[test]
    fn unknown_fields_and_variants_are_refused() {
        #[derive(Serialize)]
        enum Later {
            Started { pid: u32, surprise: bool },
            Paused { pid: u32 },
        }
        for message in [Later::Started { pid: 1, surprise: true }, Later::Paused { pid: 1 }] {
            let wire = frame(&message);
            assert!(decode::<ExecEvent>(&wire[PREFIX..]).is_err());
        }
        #[derive(Serialize)]
        enum TwoAnswers {
            Maybe(()),
        }
        assert!(decode::<Reply<()>>(&frame(&TwoAnswers::Maybe(()))[PREFIX..]).is_err());
        // A map with both `Ok` and `Err`.
        let mut both = vec![0x82];
        both.extend_from_slice(b"\xa2Ok\xc0\xa3Err\xc0");
        assert!(decode::<Reply<()>>(&both).is_err());
    }

    #[test]
    fn a_message_that_is_too_large_leaves_the_buffer_as_it_was() {
        let mut out = vec![1, 2, 3];
        assert!(matches!(
            encode(&FileChunk::Data(vec![0; MAX_MESSAGE]), &mut out),
            Err(CodecError::TooLarge { .. })
        ));
        assert_eq!(out, [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_writer_whose_send_was_cancelled_refuses_to_go_on() {
        let (near, _far) = tokio::io::duplex(8);
        let mut writer = MessageWriter::new(near);
        let large = FileChunk::Data(vec![0; 100]);
        let cancelled = tokio::time::timeout(Duration::from_millis(1), writer.send(&large));
        assert!(cancelled.await.is_err());
        assert!(matches!(writer.send(&FileChunk::End).await, Err(CodecError::Broken)));
    }
}
