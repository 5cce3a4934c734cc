//! What was begun with an API key (or the cookie of a preview) ends with it: streams and sessions, which would go on as long as their caller likes.

use axum::body::Body;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Either, Shared, select},
    stream,
};
use offshoot_types::{ErrorCode, Failure};
use std::io;

const ENDED: &str =
    "what let this request in, an API key or the cookie of a preview, was removed or has expired";

/// Resolves when the key of a request is removed or expires.
#[derive(Clone)]
pub struct KeyEnds(Shared<BoxFuture<'static, ()>>);

impl std::fmt::Debug for KeyEnds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyEnds").finish_non_exhaustive()
    }
}

impl KeyEnds {
    pub fn new(ends: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(ends.boxed().shared())
    }

    pub fn reached(self) -> impl Future<Output = ()> + Send + Unpin {
        self.0
    }

    /// What is said to who has not been answered by then.
    pub fn failure() -> Failure {
        Failure::new(ErrorCode::Unauthenticated, ENDED)
    }

    /// An answer that breaks off then, rather than to look as if it had come to its end.
    pub fn bound(self, body: Body) -> Body {
        let parts = (body.into_data_stream(), self.reached());
        Body::from_stream(stream::unfold(Some(parts), async |parts| {
            let (mut data, mut ends) = parts?;
            match select(data.next(), &mut ends).await {
                Either::Left((Some(part), _)) => Some((part, Some((data, ends)))),
                Either::Left((None, _)) => None,
                Either::Right(_) => Some((Err(axum::Error::new(ended())), None)),
            }
        }))
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, ENDED)
}
