//! Streams to a client: the answer's head and its first messages leave together, then messages as they come, several at
//! once where several are ready. A client that reads slowly slows its source; nothing piles up here.

use super::{
    Code, ConnectError, MAX_MESSAGE,
    frame::{self, Messages},
    unary::{Deadline, check_content},
};
use crate::http::{App, BODY_DEADLINE, Unread};
use axum::{
    body::Body,
    extract::{FromRequest, Request},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, Stream, stream};
use serde::{Serialize, de::DeserializeOwned};
use std::{convert::Infallible, time::Duration};
use tokio::time::{Instant, sleep_until, timeout};

const CONTENT: &str = "application/connect+json";
const KEEPALIVE: HeaderName = HeaderName::from_static("keepalive-ping-interval");
/// Between two messages, unless the client asks for another time.
const KEEPALIVE_DEFAULT: Duration = Duration::from_secs(90);
const KEEPALIVE_LEAST: Duration = Duration::from_secs(1);
/// Bytes of frames that are put together before they leave.
const TOGETHER: usize = 64 * 1024;
/// Bytes of output in one message.
pub const MAX_FRAME_DATA: usize = 32 * 1024;

/// The one message of a request that is answered by a stream.
#[derive(Debug)]
pub struct OneMessage<T> {
    pub message: T,
    pub pace: Pace,
}

impl<T: DeserializeOwned> FromRequest<App> for OneMessage<T> {
    type Rejection = Failed;
    async fn from_request(request: Request, _: &App) -> Result<Self, Failed> {
        let pace = Pace::of(request.headers())?;
        check_content(request.headers(), CONTENT)?;
        let mut messages = Messages::new(request.into_body());
        match timeout(BODY_DEADLINE, messages.next()).await.map_err(|_elapsed| Unread::Late)?? {
            Some(message) => Ok(Self { message, pace }),
            None => Err(ConnectError::invalid("the request has no message").into()),
        }
    }
}

/// A stream that ends before it has begun. Its status is 200 all the same, as the protocol wants it.
#[derive(Debug)]
pub struct Failed(ConnectError);

impl<E: Into<ConnectError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        tracing::debug!(code = ?self.0.code, message = self.0.message, "stream failed");
        let mut out = BytesMut::new();
        frame::end(&mut out, Err(&self.0));
        ([(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT))], out.freeze()).into_response()
    }
}

/// A whole stream of messages from the client; answered by [`summed_up`].
impl FromRequest<App> for Messages {
    type Rejection = Failed;
    async fn from_request(request: Request, _: &App) -> Result<Self, Failed> {
        check_content(request.headers(), CONTENT)?;
        Ok(Self::new(request.into_body()))
    }
}

/// The one message that answers a stream, or why there is none.
pub fn summed_up(outcome: Result<impl Serialize, ConnectError>) -> Response {
    match outcome {
        Err(error) => Failed(error).into_response(),
        Ok(message) => {
            let mut out = BytesMut::new();
            frame::message(&mut out, &message);
            frame::end(&mut out, Ok(()));
            ([(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT))], out.freeze()).into_response()
        }
    }
}

/// When a stream says that it is still there, and when its time is up.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub keepalive: Duration,
    pub limit: Option<Duration>,
}

impl Pace {
    fn of(headers: &HeaderMap) -> Result<Self, ConnectError> {
        let seconds = headers.get(KEEPALIVE).and_then(|value| value.to_str().ok()?.parse().ok());
        let keepalive = seconds.map_or(KEEPALIVE_DEFAULT, Duration::from_secs).max(KEEPALIVE_LEAST);
        Ok(Self { keepalive, limit: Deadline::of(headers)?.0 })
    }
}

/// Where a stream's messages come from.
pub trait Source: Send + 'static {
    type Message: Serialize + Send;
    /// `None` after the last one; an error is the last one. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<Result<Self::Message, ConnectError>>> + Send;
    /// Says nothing.
    fn keepalive() -> Self::Message;
}

/// Begins with `first`, which its caller has waited for.
pub fn respond<S: Source>(app: &App, first: S::Message, source: S, pace: Pace) -> Response {
    let mut response = Body::from_stream(frames(app.clone(), first, source, pace)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT));
    response
}

struct Open<S> {
    app: App,
    source: S,
    pace: Pace,
    until: Option<Instant>,
}

fn frames<S: Source>(
    app: App,
    first: S::Message,
    source: S,
    pace: Pace,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    // Of a time no clock reaches: never.
    let until = pace.limit.and_then(|limit| Instant::now().checked_add(limit));
    let open = Open { app, source, pace, until };
    stream::unfold((Some(first), Some(open)), async |(first, open)| {
        let mut open = open?;
        let mut out = BytesMut::new();
        let next = match first {
            Some(first) => Some(Ok(first)),
            None => open.next().await,
        };
        let mut next = Some(next);
        loop {
            match next {
                Some(Some(Ok(message))) => frame::message(&mut out, &message),
                Some(Some(Err(error))) => {
                    frame::end(&mut out, Err(&error));
                    return Some((Ok(out.freeze()), (None, None)));
                }
                Some(None) => {
                    frame::end(&mut out, Ok(()));
                    return Some((Ok(out.freeze()), (None, None)));
                }
                // Nothing more is ready.
                None => return Some((Ok(out.freeze()), (None, Some(open)))),
            }
            next = if out.len() < TOGETHER { open.source.next().now_or_never() } else { None };
        }
    })
}

impl<S: Source> Open<S> {
    async fn next(&mut self) -> Option<Result<S::Message, ConnectError>> {
        let late = async {
            match self.until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            next = self.source.next() => next,
            () = late => {
                let limit = self.pace.limit.unwrap_or_default();
                Some(Err(ConnectError::new(Code::DeadlineExceeded, format!("the stream was open for {limit:?}"))))
            }
            () = self.app.shutdown.requested() => {
                Some(Err(ConnectError::new(Code::Unavailable, "the daemon ends; what runs in the VM runs on")))
            }
            () = tokio::time::sleep(self.pace.keepalive) => Some(Ok(S::keepalive())),
        }
    }
}

const _: () = assert!(MAX_FRAME_DATA * 2 < MAX_MESSAGE);
