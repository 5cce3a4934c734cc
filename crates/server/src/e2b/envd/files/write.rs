//! Writing files: one as the request's body, or several as parts of a form.

use super::{FileQuery, HttpError, Written, gzip::Expander};
use crate::{
    e2b::{
        envd::guest::{Fault, Files},
        sandbox::Sandbox,
    },
    http::drain,
};
use axum::{
    Json,
    body::{Body, BodyDataStream},
    http::{HeaderMap, StatusCode, header},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use multer::Multipart;
use offshoot_guest_proto::{client::EntryWriter, message::Entry};
use offshoot_types::FileAccess;
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, ready},
    time::Duration,
};
use tokio::time::timeout;

/// How long an upload may stand still.
const STALLED: Duration = Duration::from_secs(60);
const METADATA: &str = "x-metadata-";
/// Files of one form.
const MAX_PARTS: usize = 1024;
/// Bytes of the head of one of them, and of what is before the first.
const MAX_HEAD: usize = 64 * 1024;

pub async fn write(
    sandbox: Sandbox,
    query: FileQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Vec<Written>>, HttpError> {
    let mut body = body.into_data_stream();
    let written = store(&sandbox, &query, &headers, &mut body).await;
    if written.is_err() {
        drain(&sandbox.call, body);
    }
    written.map(|entries| Json(entries.into_iter().map(Written::from).collect()))
}

async fn store(
    sandbox: &Sandbox,
    query: &FileQuery,
    headers: &HeaderMap,
    body: &mut BodyDataStream,
) -> Result<Vec<Entry>, HttpError> {
    let said = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content = said(header::CONTENT_TYPE);
    let upload = Upload { sandbox, user: query.user(sandbox), metadata: metadata(headers)? };
    let data = match said(header::CONTENT_ENCODING) {
        "" | "identity" => body.map(|piece| piece.map_err(io::Error::other)).left_stream(),
        "gzip" => expanded(body).right_stream(),
        other => {
            let message = format!("the body is encoded as {other:?}; only gzip is understood");
            return Err(HttpError::invalid(message));
        }
    };
    let data = std::pin::pin!(data);
    match content.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/octet-stream" => match &query.path {
            Some(path) => Ok(vec![upload.one(path, data).await?]),
            None => Err(HttpError::invalid("the query names no `path`, which this type of content needs")),
        },
        form if form.starts_with("multipart/") => {
            let boundary = multer::parse_boundary(content.replacen(form, "multipart/form-data", 1))
                .map_err(|error| HttpError::invalid(format!("the form: {error}")))?;
            upload.form(query.path.as_deref(), data, boundary).await
        }
        other => Err(HttpError::invalid(format!(
            "content of type {other:?} is not understood; expected multipart/form-data or application/octet-stream"
        ))),
    }
}

/// Names are in lower case, as those of headers are.
fn metadata(headers: &HeaderMap) -> Result<BTreeMap<String, String>, HttpError> {
    let mut found = BTreeMap::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(METADATA).filter(|key| !key.is_empty()) else { continue };
        let value =
            value.to_str().map_err(|_| HttpError::invalid(format!("metadata `{key}` is not ASCII")))?;
        found.insert(key.to_owned(), value.to_owned());
    }
    Ok(found)
}

fn expanded(body: &mut BodyDataStream) -> impl Stream<Item = io::Result<Bytes>> + '_ {
    let state = (body, Some(Expander::new()), Bytes::new());
    stream::unfold(state, async |(body, expander, mut rest)| {
        let mut expander = expander?;
        loop {
            if rest.is_empty() {
                match body.next().await {
                    Some(Ok(data)) => rest = data,
                    Some(Err(error)) => return Some((Err(io::Error::other(error)), (body, None, rest))),
                    None => return Some((expander.finish().map(Bytes::from), (body, None, rest))),
                }
            }
            let piece = rest.split_to(rest.len().min(Expander::PIECE));
            match expander.push(&piece) {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Some((Ok(data.into()), (body, Some(expander), rest))),
                Err(error) => return Some((Err(error), (body, None, rest))),
            }
        }
    })
}

struct Upload<'a> {
    sandbox: &'a Sandbox,
    user: &'a str,
    metadata: BTreeMap<String, String>,
}

impl Upload<'_> {
    async fn one<E: std::error::Error + 'static>(
        &self,
        path: &str,
        data: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<Entry, HttpError> {
        let files = Files::open(self.sandbox, self.user, FileAccess::Write, path).await?;
        let opened = files.entries().write(path, self.metadata.clone()).await;
        let written = match opened.map_err(|error| files.fault(error)) {
            Ok(writer) => fill(&files, writer, data).await,
            Err(fault) => Err(fault.into()),
        };
        match written {
            Ok(entry) => Ok(files.complete(Ok(entry)).await?),
            Err(Unwritten::Fault(fault)) => {
                Err(files.complete::<Entry>(Err(fault)).await.unwrap_err().into())
            }
            // Recorded as interrupted, which it was.
            Err(Unwritten::Upload(error)) => Err(error),
        }
    }

    /// Every part named `file` is one; where it goes says the query, for the only one, or its file name.
    async fn form<'d>(
        &self,
        path: Option<&str>,
        data: impl Stream<Item = io::Result<Bytes>> + Send + 'd,
        boundary: String,
    ) -> Result<Vec<Entry>, HttpError> {
        let broken = |error: multer::Error| {
            HttpError::invalid(match error {
                multer::Error::StreamReadFailed(cause) => format!("the form: {cause}"),
                error => format!("the form: {error}"),
            })
        };
        let held = Held::default();
        let mut form = Multipart::new(held.counted(data), boundary);
        let (mut written, mut named) = (Vec::new(), Vec::<String>::new());
        while let Some(mut part) = self.patiently(form.next_field()).await?.map_err(broken)? {
            held.given_back();
            if part.name() != Some("file") {
                while self.patiently(part.chunk()).await?.map_err(broken)?.is_some() {
                    held.given_back();
                }
                continue;
            }
            let path = match path.or(part.file_name()) {
                Some(path) if named.iter().any(|earlier| earlier == path) => {
                    return Err(HttpError::invalid(format!(
                        "`{path}` is there twice in one request; only the first of them was written"
                    )));
                }
                Some(path) if named.len() < MAX_PARTS => path.to_owned(),
                Some(_) => {
                    return Err(HttpError::invalid(format!("more than {MAX_PARTS} files in one request")));
                }
                None => return Err(HttpError::invalid("a part of the form has no file name")),
            };
            written.push(self.one(&path, part.inspect(|_| held.given_back())).await?);
            named.push(path);
        }
        match written.is_empty() {
            true => Err(HttpError::invalid("the form has no part named `file`")),
            false => Ok(written),
        }
    }

    async fn patiently<T>(&self, next: impl Future<Output = T>) -> Result<T, HttpError> {
        timeout(STALLED, next).await.map_err(|_elapsed| stalled())
    }
}

/// How many bytes the parser of a form has and gives nothing back for. It would look for the end of a part's head, or for the
/// first part, however far that is.
#[derive(Debug, Clone, Default)]
struct Held(Arc<AtomicUsize>);

impl Held {
    fn given_back(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// `data`, up to one piece more than may be held. The parser takes what is ready before it gives anything back: so one
    /// piece is ready at a time.
    fn counted<'d>(
        &self,
        data: impl Stream<Item = io::Result<Bytes>> + Send + 'd,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'd {
        let (held, mut data, mut taken) = (self.clone(), Box::pin(data), false);
        stream::poll_fn(move |context| {
            if std::mem::take(&mut taken) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let next = ready!(data.as_mut().poll_next(context));
            let Some(Ok(piece)) = &next else { return Poll::Ready(next) };
            taken = true;
            if held.0.fetch_add(piece.len(), Ordering::Relaxed) > MAX_HEAD {
                let problem = format!("more than {MAX_HEAD} bytes that belong to no part");
                return Poll::Ready(Some(Err(io::Error::other(problem))));
            }
            Poll::Ready(next)
        })
    }
}

fn stalled() -> HttpError {
    HttpError::new(StatusCode::REQUEST_TIMEOUT, format!("the upload stood still for {STALLED:?}"))
}

enum Unwritten {
    Fault(Fault),
    Upload(HttpError),
}

impl From<Fault> for Unwritten {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What came before a failure is in the file.
async fn fill<E: std::error::Error + 'static>(
    files: &Files,
    mut writer: EntryWriter,
    mut data: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<Entry, Unwritten> {
    loop {
        match timeout(STALLED, data.next()).await {
            Ok(Some(Ok(bytes))) => writer.send(&bytes).await.map_err(|error| files.fault(error))?,
            Ok(None) => return Ok(writer.finish().await.map_err(|error| files.fault(error))?),
            Ok(Some(Err(error))) => {
                let message = format!("the upload broke off: {error}");
                return Err(Unwritten::Upload(HttpError::invalid(message)));
            }
            Err(_elapsed) => return Err(Unwritten::Upload(stalled())),
        }
    }
}
