//! Reading a file: all of it or a part, compressed if the client would have it so. One chunk in memory.

use super::{
    FileQuery, HttpError, gzip,
    range::{self, Wanted},
};
use crate::e2b::{
    envd::guest::{Fault, Files},
    sandbox::Sandbox,
};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::stream;
use offshoot_guest_proto::{client::EntryReader, message::Entry};
use offshoot_types::FileAccess;
use std::io;

pub async fn read(sandbox: Sandbox, query: FileQuery, headers: HeaderMap) -> Result<Response, HttpError> {
    let path = query.path.as_deref().unwrap_or_default();
    let files = Files::open(&sandbox, query.user(&sandbox), FileAccess::Read, path).await?;
    let open = async |offset, length| {
        let opened = files.entries().read(path, offset, length).await;
        opened.map_err(|error| files.fault(error))
    };
    let (wanted, reader) = if range::depends(&headers) {
        // What is to be read depends on the file.
        let entry = open(0, Some(0)).await?.entry().clone();
        let wanted = range::wanted(&headers, entry.stat.size, seconds(&entry));
        match wanted {
            Wanted::All => (wanted, open(0, None).await?),
            Wanted::Part { offset, length } => (wanted, open(offset, Some(length)).await?),
            Wanted::Unsatisfiable | Wanted::NotModified | Wanted::Changed => {
                return Ok(nothing(wanted, &entry));
            }
        }
    } else {
        (Wanted::All, open(0, None).await?)
    };
    let entry = reader.entry().clone();
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    let compressed = wanted == Wanted::All
        && !range::depends(&headers)
        && entry.stat.size >= gzip::WORTH
        && accepted.is_some_and(gzip::is_wanted);
    // Of a file that grows meanwhile, what it was. Files of /proc are larger than they say.
    let promised = match wanted {
        Wanted::Part { length, .. } => Some(length),
        _ => Some(entry.stat.size).filter(|&size| size > 0),
    };
    let source =
        Contents { files, reader, left: promised, compressor: compressed.then(gzip::Compressor::new) };
    // The answer's head leaves together with the first bytes.
    let (first, rest) = source.next().await;
    let body = stream::unfold((first, rest), async |(ready, rest)| match (ready, rest) {
        (Some(bytes), rest) => Some((bytes, (None, rest))),
        (None, None) => None,
        (None, Some(rest)) => {
            let (next, rest) = rest.next().await;
            next.map(|bytes| (bytes, (None, rest)))
        }
    });
    let mut response = Body::from_stream(body).into_response();
    describe(response.headers_mut(), &entry);
    if compressed {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    } else if let Some(length) = promised {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    if let Wanted::Part { offset, length } = wanted {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {offset}-{}/{}", offset + length - 1, entry.stat.size);
        insert(response.headers_mut(), header::CONTENT_RANGE, &range);
    }
    Ok(response)
}

/// An answer without the file.
fn nothing(wanted: Wanted, entry: &Entry) -> Response {
    let status = match wanted {
        Wanted::NotModified => StatusCode::NOT_MODIFIED,
        Wanted::Changed => StatusCode::PRECONDITION_FAILED,
        _ => StatusCode::RANGE_NOT_SATISFIABLE,
    };
    let mut response = status.into_response();
    describe(response.headers_mut(), entry);
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{}", entry.stat.size));
    }
    response
}

fn describe(headers: &mut HeaderMap, entry: &Entry) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Some(date) = range::date(seconds(entry)) {
        insert(headers, header::LAST_MODIFIED, &date);
    }
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, text: &str) {
    headers.insert(name, HeaderValue::from_str(text).expect("digits and dates are ASCII"));
}

fn seconds(entry: &Entry) -> i64 {
    entry.stat.modified_ns.div_euclid(1_000_000_000)
}

/// The file as it comes.
struct Contents {
    files: Files,
    reader: EntryReader,
    /// Bytes that are still to be sent.
    left: Option<u64>,
    compressor: Option<gzip::Compressor>,
}

type Piece = io::Result<Bytes>;

impl Contents {
    /// The next bytes, and where the others come from. A guest that gives up half-way breaks the body, so that nobody
    /// takes it for the whole.
    async fn next(mut self) -> (Option<Piece>, Option<Self>) {
        loop {
            let piece = match self.piece().await {
                Err(fault) => return (Some(Err(broken(&fault))), None),
                Ok(Some(piece)) => piece,
                Ok(None) => {
                    let last = self.compressor.take().map(|compressor| compressor.finish().map(Bytes::from));
                    return (last, None);
                }
            };
            let piece = match &mut self.compressor {
                None => Ok(piece),
                Some(compressor) => compressor.push(&piece).map(Bytes::from),
            };
            match piece {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => return (Some(Ok(piece)), Some(self)),
                Err(error) => return (Some(Err(error)), None),
            }
        }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Fault> {
        if self.left == Some(0) {
            return Ok(None);
        }
        let piece = self.reader.next().await.map_err(|error| self.files.fault(error))?;
        Ok(piece.map(|mut piece| {
            if let Some(left) = &mut self.left {
                piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= piece.len() as u64;
            }
            piece
        }))
    }
}

fn broken(fault: &Fault) -> io::Error {
    tracing::info!(?fault, "a file could not be read to its end");
    io::Error::other("the file could not be read to its end")
}
