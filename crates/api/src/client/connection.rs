//! Connections to the socket, and the plain request-and-answer part of the protocol.

use super::{
    ClientError,
    dial::{Dial, Way, Wire},
};
use crate::v1::{AGENT_HEADER, ErrorBody, MAX_CODE_MESSAGE, MAX_FRAME, NO_WAKE_HEADER, TRANSACTION_HEADER};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Empty, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http1,
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use offshoot_types::{AgentName, TransactionId};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};
use tokio::sync::oneshot;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

/// Largest JSON answer: a full directory listing fits several times over.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A handle to one daemon; cheap to clone, clones share one idle connection.
#[derive(Clone)]
pub struct Client {
    way: Way,
    /// Sent with every request; a socket needs none.
    key: Option<HeaderValue>,
    idle: Arc<Mutex<Option<http1::SendRequest<Body>>>>,
    within: Option<TransactionId>,
    agent: Option<AgentName>,
    no_wake: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("way", &self.way).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects when the first request is made.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::by(Way::Socket(Arc::from(socket.into())), None)
    }

    /// The same by another way than a socket. `authorization` goes with every request, as its header of that name.
    pub fn dialling(dial: Arc<dyn Dial>, authorization: Option<HeaderValue>) -> Self {
        Self::by(Way::Dialled(dial), authorization)
    }

    fn by(way: Way, key: Option<HeaderValue>) -> Self {
        Self { way, key, idle: Arc::default(), within: None, agent: None, no_wake: false }
    }

    /// A handle whose requests are made from within an open transaction.
    #[must_use = "the handle it is called on stays outside the transaction"]
    pub fn within(&self, transaction: TransactionId) -> Self {
        Self { within: Some(transaction), ..self.clone() }
    }

    /// A handle whose requests say on whose behalf they are made, for the history.
    #[must_use = "the handle it is called on says nothing of it"]
    pub fn on_behalf_of(&self, agent: AgentName) -> Self {
        Self { agent: Some(agent), ..self.clone() }
    }

    /// A handle whose requests are refused rather than wake a suspended VM.
    #[must_use = "the handle it is called on wakes them"]
    pub fn without_waking(&self) -> Self {
        Self { no_wake: true, ..self.clone() }
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "offshoot");
        let request = match &self.key {
            Some(key) => request.header(header::AUTHORIZATION, key),
            None => request,
        };
        let request = match self.within {
            Some(transaction) => request.header(TRANSACTION_HEADER, transaction.to_string()),
            None => request,
        };
        let request = match &self.agent {
            Some(agent) => request.header(AGENT_HEADER, agent.as_str()),
            None => request,
        };
        if self.no_wake { request.header(NO_WAKE_HEADER, "1") } else { request }
    }

    /// Of a client that was made with one.
    pub fn socket(&self) -> Option<&Path> {
        match &self.way {
            Way::Socket(socket) => Some(socket),
            Way::Dialled(_) => None,
        }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, None::<&()>).await
    }

    /// One request with an optional JSON body, one JSON answer.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let bytes = self.round_trip(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| ClientError::protocol("request", error))
    }

    /// One request whose answer has no body.
    pub(super) async fn empty(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(), ClientError> {
        self.round_trip(method, path, body).await.map(drop)
    }

    async fn round_trip(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Bytes, ClientError> {
        let mut builder = self.request(method, path);
        let body = match body {
            Some(value) => {
                builder = builder.header(header::CONTENT_TYPE, "application/json");
                let json =
                    serde_json::to_vec(value).map_err(|error| ClientError::protocol("request", error))?;
                full(json)
            }
            None => empty(),
        };
        let (sender, response) = self.send(build(builder, body)?).await?;
        let bytes = accept(response).await?;
        // Only now is the connection free again.
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        bytes
    }

    /// One request whose answer is a stream of bytes.
    pub(super) async fn stream(&self, path: &str) -> Result<ByteStream, ClientError> {
        let (_, stream) = self.stream_with_headers(path).await?;
        Ok(stream)
    }

    pub(super) async fn stream_with_headers(
        &self,
        path: &str,
    ) -> Result<(HeaderMap, ByteStream), ClientError> {
        let (_, response) = self.send(build(self.request(Method::GET, path), empty())?).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let (parts, body) = response.into_parts();
        Ok((parts.headers, ByteStream::new(body)))
    }

    /// One request with a streamed body, one JSON answer.
    pub(super) async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<T, ClientError> {
        // An answer that comes while we still send is a refusal: it ends the body where it is.
        let (answered, answer) = oneshot::channel::<()>();
        let body = StreamBody::new(content.take_until(answer).map_ok(Frame::data)).boxed_unsync();
        let (_, response) = self.send(build(self.request(Method::PUT, path), body)?).await?;
        drop(answered);
        let bytes = accept(response).await??;
        serde_json::from_slice(&bytes).map_err(|error| ClientError::protocol("upload", error))
    }

    /// Upgrades a fresh connection to a WebSocket.
    pub(super) async fn websocket(&self, path: &str) -> Result<Socket, ClientError> {
        let key = generate_key();
        let builder = self
            .request(Method::GET, path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let mut sender = self.connect().await?;
        let response = sender
            .send_request(build(builder, empty())?)
            .await
            .map_err(|error| ClientError::io("request", error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(|value| value.as_bytes());
        if accepted != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(ClientError::protocol("upgrade", "the server did not accept our WebSocket key"));
        }
        let upgraded =
            hyper::upgrade::on(response).await.map_err(|error| ClientError::io("upgrade", error))?;
        // A message may be as long as the largest of all frames; the server keeps within that.
        let config = WebSocketConfig::default()
            .read_buffer_size(64 * 1024)
            .write_buffer_size(0)
            .max_message_size(Some(MAX_CODE_MESSAGE.max(MAX_FRAME)))
            .max_frame_size(Some(MAX_CODE_MESSAGE.max(MAX_FRAME)));
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await)
    }

    async fn send(
        &self,
        mut request: Request<Body>,
    ) -> Result<(http1::SendRequest<Body>, Response<Incoming>), ClientError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut sender) = idle {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((sender, response)),
                Err(mut refused) => match refused.take_message() {
                    // The idle connection was closed before it took the request: a new one may.
                    Some(back) => request = back,
                    None => return Err(ClientError::io("request", refused.into_error())),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response =
            sender.send_request(request).await.map_err(|error| ClientError::io("request", error))?;
        Ok((sender, response))
    }

    async fn connect(&self) -> Result<http1::SendRequest<Body>, ClientError> {
        let wire = self.way.connect().await?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(wire)).await.map_err(|error| ClientError::io("connect", error))?;
        drive(connection);
        Ok(sender)
    }
}

/// Lets hyper move the bytes of one connection.
#[expect(
    clippy::disallowed_methods,
    reason = "the task ends with the last handle to its connection, whose failure each request reports itself"
)]
fn drive(connection: http1::Connection<TokioIo<Box<dyn Wire>>, Body>) {
    tokio::spawn(connection.with_upgrades());
}

fn build(builder: http::request::Builder, body: Body) -> Result<Request<Body>, ClientError> {
    builder.body(body).map_err(|error| ClientError::protocol("request", error))
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

/// The whole body. The outer error is the connection's, which is then not to be used again; the inner one is
/// the daemon's own answer.
async fn accept(response: Response<Incoming>) -> Result<Result<Bytes, ClientError>, ClientError> {
    let status = response.status();
    let bytes = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| ClientError::io("reading the answer", error))?
        .to_bytes();
    Ok(if status.is_success() { Ok(bytes) } else { Err(understand(status, &bytes)) })
}

async fn refusal(response: Response<Incoming>) -> ClientError {
    match accept(response).await {
        Ok(Err(error)) | Err(error) => error,
        Ok(Ok(_)) => ClientError::protocol("request", "a success where another protocol was asked for"),
    }
}

fn understand(status: StatusCode, bytes: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => ClientError::Api(Box::new(body)),
        Err(_) => ClientError::protocol("request", format!("status {status} without an error body")),
    }
}

/// Appends `parameters` to `path` as a query string.
pub(super) fn query(path: &str, parameters: &impl Serialize) -> String {
    match serde_urlencoded::to_string(parameters).expect("query types are flat structs of plain values") {
        empty if empty.is_empty() => path.into(),
        query => format!("{path}?{query}"),
    }
}

/// A body as it arrives.
pub struct ByteStream(BoxStream<'static, Result<Bytes, ClientError>>);

impl ByteStream {
    fn new(body: Incoming) -> Self {
        let frames = BodyStream::new(body).filter_map(|frame| async {
            match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => Some(Err(ClientError::io("download", error))),
            }
        });
        Self(frames.boxed())
    }
}

impl fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByteStream")
    }
}

impl Stream for ByteStream {
    type Item = Result<Bytes, ClientError>;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::ReadQuery;

    #[test]
    fn parameters_are_escaped_and_absent_ones_left_out() {
        let read = ReadQuery { path: "/a b&c=d".into(), ..ReadQuery::default() };
        assert_eq!(query("/f", &read), "/f?path=%2Fa+b%26c%3Dd&offset=0");
        assert_eq!(query("/f", &crate::v1::WaitQuery::default()), "/f");
    }

    #[tokio::test]
    async fn an_absent_socket_means_that_no_daemon_runs() {
        let error = Client::new("/nonexistent/offshoot.sock").health().await.unwrap_err();
        assert!(matches!(error, ClientError::NotRunning { .. }), "{error:?}");
    }
}
