//! From the process to the screen, or into memory for the one JSON document.

use crate::{
    failure::Result,
    printer::{Printer, Stream},
};
use offshoot_api::v1;
use offshoot_types::Bytes as Size;
use serde::Serialize;

/// What `--json` keeps of a program's output unless `--max-output` says otherwise.
pub const CAPTURE_LIMIT: Size = Size(16 << 20);

/// Where output goes.
#[derive(Debug)]
pub enum Sink {
    /// As it comes, to our own two streams.
    Passed,
    /// Kept until the end. The guest is told to send no more than fits.
    Kept(Captured),
}

/// Output of a whole run.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Captured {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Sink {
    pub fn of(printer: &Printer) -> Self {
        if printer.is_json() { Self::Kept(Captured::default()) } else { Self::Passed }
    }

    pub async fn write(&mut self, printer: &Printer, stream: v1::Stream, bytes: &[u8]) -> Result {
        match (self, stream) {
            (Self::Passed, v1::Stream::Stdout) => printer.stream(Stream::Stdout, bytes).await,
            (Self::Passed, v1::Stream::Stderr) => printer.stream(Stream::Stderr, bytes).await,
            (Self::Kept(kept), v1::Stream::Stdout) => {
                kept.stdout.extend_from_slice(bytes);
                Ok(())
            }
            (Self::Kept(kept), v1::Stream::Stderr) => {
                kept.stderr.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    pub fn captured(self) -> Captured {
        match self {
            Self::Passed => Captured::default(),
            Self::Kept(kept) => kept,
        }
    }
}

/// Bytes in a JSON document: text if they are UTF-8, else base64, and which of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Text {
    pub data: String,
    pub encoding: &'static str,
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        match v1::Output::from_bytes(bytes) {
            v1::Output::Utf8(data) => Self { data, encoding: "utf-8" },
            v1::Output::Base64(data) => Self { data, encoding: "base64" },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_text_are_marked_as_such() {
        assert_eq!(Text::from(b"hi".to_vec()), Text { data: "hi".into(), encoding: "utf-8" });
        assert_eq!(Text::from(vec![0xff, 0xfe]), Text { data: "//4=".into(), encoding: "base64" });
    }
}
