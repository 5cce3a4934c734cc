//! Messages in a stream: `flags (1) | length (4, big endian) | JSON`.

use super::{Code, ConnectError, MAX_MESSAGE};
use axum::body::{Body, BodyDataStream};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use serde::{Serialize, de::DeserializeOwned};

const PREFIX: usize = 5;
const COMPRESSED: u8 = 1;
const LAST: u8 = 2;

/// Appends a message.
pub fn message(out: &mut BytesMut, message: &impl Serialize) {
    frame(out, 0, message);
}

/// Appends what ends a stream.
pub fn end(out: &mut BytesMut, outcome: Result<(), &ConnectError>) {
    #[derive(Serialize)]
    struct End<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a ConnectError>,
    }
    frame(out, LAST, &End { error: outcome.err() });
}

fn frame(out: &mut BytesMut, flags: u8, message: &impl Serialize) {
    let start = out.len();
    out.put_u8(flags);
    out.put_u32(0);
    serde_json::to_writer(out.writer(), message).expect("messages are plain data");
    let length = u32::try_from(out.len() - start - PREFIX).expect("messages are small");
    out[start + 1..start + PREFIX].copy_from_slice(&length.to_be_bytes());
}

/// The messages of a request's body, one at a time; what is held of it is one message and what came with it.
#[derive(Debug)]
pub struct Messages {
    body: BodyDataStream,
    buffer: BytesMut,
    over: bool,
}

impl Messages {
    pub fn new(body: Body) -> Self {
        Self { body: body.into_data_stream(), buffer: BytesMut::new(), over: false }
    }

    /// `None` at the end. Cancel-safe.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ConnectError> {
        match self.next_frame().await? {
            None => Ok(None),
            Some(frame) => super::unary::parse(&frame).map(Some),
        }
    }

    /// What is left of the body.
    pub fn into_body(self) -> BodyDataStream {
        self.body
    }

    async fn next_frame(&mut self) -> Result<Option<Bytes>, ConnectError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            if self.over {
                return Ok(None);
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => {
                    return Err(ConnectError::new(
                        Code::Unavailable,
                        format!("the request broke off: {error}"),
                    ));
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(ConnectError::invalid("the request ends inside a message")),
            }
        }
    }

    /// A whole frame, if there is one.
    fn take(&mut self) -> Result<Option<Bytes>, ConnectError> {
        let Some((&[flags, a, b, c, d], rest)) = self.buffer.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if flags & COMPRESSED != 0 {
            return Err(ConnectError::new(Code::Unimplemented, "compressed messages are not understood"));
        }
        if length > MAX_MESSAGE {
            let problem = format!("a message of {length} bytes, at most {MAX_MESSAGE}");
            return Err(ConnectError::new(Code::ResourceExhausted, problem));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let frame = self.buffer.split_to(length).freeze();
        if flags & LAST != 0 {
            self.over = true;
            return Ok(None);
        }
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use serde_json::{Value, json};

    fn body(pieces: Vec<&[u8]>) -> Messages {
        let pieces: Vec<Result<Bytes, std::io::Error>> =
            pieces.into_iter().map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Messages::new(Body::from_stream(stream::iter(pieces)))
    }

    #[tokio::test]
    async fn messages_are_found_however_the_body_is_cut() {
        let mut wire = BytesMut::new();
        for value in [json!({ "a": 1 }), json!({}), json!({ "b": "c" })] {
            message(&mut wire, &value);
        }
        for size in [1, 2, 7, 100] {
            let mut messages = body(wire.chunks(size).collect());
            let mut found = Vec::new();
            while let Some(value) = messages.next::<Value>().await.unwrap() {
                found.push(value);
            }
            assert_eq!(found, [json!({ "a": 1 }), json!({}), json!({ "b": "c" })], "by {size}");
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let cases: [(&[u8], Code); 5] = [
            (&[0, 0, 0, 0, 4, b'{', b'}', b'{', b'}'], Code::InvalidArgument),
            (&[0, 0, 0, 0, 9, b'{'], Code::InvalidArgument),
            (&[0, 0, 0, 0, 1, b'x'], Code::InvalidArgument),
            (&[1, 0, 0, 0, 2, b'{', b'}'], Code::Unimplemented),
            (&[0, 255, 255, 255, 255], Code::ResourceExhausted),
        ];
        for (bytes, code) in cases {
            assert_eq!(body(vec![bytes]).next::<Value>().await.unwrap_err().code, code, "{bytes:?}");
        }
        assert_eq!(body(vec![]).next::<Value>().await, Ok(None));
    }

    #[test]
    fn a_stream_ends_with_or_without_an_error() {
        let mut out = BytesMut::new();
        end(&mut out, Ok(()));
        assert_eq!(&out[..], b"\x02\0\0\0\x02{}");
        out.clear();
        end(&mut out, Err(&ConnectError::new(Code::NotFound, "gone")));
        assert_eq!(&out[5..], br#"{"error":{"code":"not_found","message":"gone"}}"#);
    }
}
