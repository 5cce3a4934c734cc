//! The way of another transport to the API: a connection that does not leave the process.
//!
//! What is asked on it is asked by the caller of that transport, with what that caller showed: it passes the same layers as
//! a request from outside, and has no other rights.

use crate::{
    http::{ApiError, App, Call, Caller, key_of, nobody},
    listener::Connection,
    shutdown::Shutdown,
    tasks::TaskKind,
};
use axum::{
    Router,
    http::{HeaderValue, request::Parts},
};
use futures::{FutureExt, future::BoxFuture};
use offshoot_api::{
    Client, ClientError,
    client::{Dial, Wire},
};
use std::{fmt, sync::Arc};
use tokio::io::duplex;

/// Bytes each way that nobody has taken yet.
const BUFFER: usize = 64 * 1024;

/// A client of the `api` that is whoever sent `parts`, and within the transaction that they name.
pub fn client(call: &Call, api: Router, parts: &Parts) -> Result<Client, ApiError> {
    // Without one nobody would be known, and we not be here.
    let caller = *parts.extensions.get::<Caller>().ok_or_else(nobody)?;
    let key = key_of(&parts.headers).filter(|_| !matches!(caller, Caller::User { .. }));
    let authorization = key.map(|key| HeaderValue::from_str(&format!("Bearer {key}")));
    let mut authorization = authorization.transpose().map_err(|_| nobody())?;
    if let Some(authorization) = &mut authorization {
        authorization.set_sensitive(true);
    }
    let inside = Inside { app: call.app.clone(), api, caller };
    let client = Client::dialling(Arc::new(inside), authorization);
    let client = call.within.map_or(client.clone(), |transaction| client.within(transaction));
    Ok(if call.no_wake { client.without_waking() } else { client })
}

struct Inside {
    app: App,
    api: Router,
    caller: Caller,
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
