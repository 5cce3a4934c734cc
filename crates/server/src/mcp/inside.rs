//! The way of a tool to the API: a connection that does not leave the process.
//!
//! What is asked on it is asked by the caller who began the session, with what that caller showed: it passes the same
//! layers as a request from outside, and has no other rights.

use crate::{
    http::{App, Caller},
    listener::Connection,
    shutdown::Shutdown,
    tasks::TaskKind,
};
use axum::Router;
use futures::{FutureExt, future::BoxFuture};
use offshoot_api::{
    ClientError,
    client::{Dial, Wire},
};
use std::fmt;
use tokio::io::duplex;

/// Bytes each way that nobody has taken yet.
const BUFFER: usize = 64 * 1024;

pub struct Inside {
    app: App,
    api: Router,
    caller: Caller,
}

impl Inside {
    pub fn new(app: &App, api: Router, caller: Caller) -> Self {
        Self { app: app.clone(), api, caller }
    }
}

impl fmt::Debug for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inside").field("caller", &self.caller).finish_non_exhaustive()
    }
}

impl Dial for Inside {
    fn dial(&self) -> BoxFuture<'_, Result<Box<dyn Wire>, ClientError>> {
        let (ours, theirs) = duplex(BUFFER);
        let connection = Connection {
            caller: self.caller,
            router: self.api.clone(),
            // A session that a shutdown ends has something to ask still; what is asked then is cut with all the rest.
            shutdown: Shutdown::default(),
            tasks: self.app.tasks.clone(),
        };
        let shutdown = self.app.shutdown.clone();
        self.app.tasks.spawn(TaskKind::Connection, async move {
            tokio::select! {
                () = connection.serve(theirs) => {}
                () = shutdown.expired() => {}
            }
        });
        let ours: Box<dyn Wire> = Box::new(ours);
        std::future::ready(Ok(ours)).boxed()
    }
}
