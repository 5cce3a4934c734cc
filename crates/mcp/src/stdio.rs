//! One session on standard input and output.

use crate::{Server, Session};
use offshoot_types::{ErrorCode, Failure};
use rmcp::{ServiceExt, service::ServerInitializeError, transport::io::stdio_pipes};

/// Serves `session` until its client closes standard input or `leave` comes. The session is not ended by that.
pub async fn serve_stdio(session: Session, leave: impl Future<Output = ()>) -> Result<(), Failure> {
    let mut leave = std::pin::pin!(leave);
    let beginning = Server::new(session).serve(stdio_pipes());
    let running = tokio::select! {
        begun = beginning => match begun {
            Ok(running) => running,
            // A client that looks whether there is a program, and leaves.
            Err(ServerInitializeError::ConnectionClosed(_)) => return Ok(()),
            Err(error) => {
                return Err(Failure::new(ErrorCode::InvalidArgument, "the client did not begin a session")
                    .caused_by(&error)
                    .hint("standard input and output are for a client that speaks MCP"));
            }
        },
        () = &mut leave => return Ok(()),
    };
    let stop = running.cancellation_token();
    let mut waiting = std::pin::pin!(running.waiting());
    let ended = tokio::select! {
        ended = &mut waiting => ended,
        () = &mut leave => {
            stop.cancel();
            waiting.await
        }
    };
    ended
        .map(drop)
        .map_err(|error| Failure::new(ErrorCode::Internal, "the session ended in a panic").caused_by(&error))
}
