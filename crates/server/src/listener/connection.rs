//! One connection: HTTP/1.1 or, by prior knowledge, HTTP/2.

use crate::{
    http::Caller,
    shutdown::Shutdown,
    tasks::{TaskKind, Tasks},
};
use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service;

/// How long a caller may take to send the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of one request's head, and of what is buffered of an answer that its reader does not take.
const MAX_BUFFER: usize = 256 * 1024;
/// Requests under way at once on one connection of HTTP/2.
const MAX_STREAMS: u32 = 128;
/// How often a silent connection of HTTP/2 is tried, and how long it may take to answer.
const PING: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Connection {
    pub caller: Caller,
    pub router: Router,
    pub shutdown: Shutdown,
    pub tasks: Tasks,
}

impl Connection {
    pub async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Self { caller, router, shutdown, tasks } = self;
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(caller);
            // A router is always ready.
            router.clone().call(request)
        });
        let mut builder = auto::Builder::new(Streams(tasks));
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(MAX_BUFFER);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(MAX_BUFFER)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = shutdown.requested() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = shutdown.expired() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            // Callers that leave in the middle are everyday life.
            tracing::debug!(error = %error, "connection ended");
        }
    }
}

/// Runs the requests of a connection of HTTP/2.
#[derive(Debug, Clone)]
struct Streams(Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.spawn(TaskKind::Stream, stream);
    }
}
