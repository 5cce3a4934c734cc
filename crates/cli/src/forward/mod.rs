//! Ports of this host that lead into a VM.
//!
//! ```text
//! Door (listener) --accept, at most CONNECTIONS at once; others wait in its backlog--> a WebSocket of the API
//!                 <--bytes both ways, each with an end of its own, as fast as the slower side takes them-->
//! Watch (events)  --stopped, destroyed, failed, rolled back--> all of it ends: what was reached is no more
//! ```
//! One task carries everything: a connection that is dropped is closed on both sides.

mod door;
mod mapping;
mod watch;

pub use door::Door;
pub use mapping::{Mapping, Reach};
pub use watch::Watch;

use crate::{failure::Result, printer::Printer};
use futures::{StreamExt, future::select_all, stream::FuturesUnordered};
use offshoot_api::Client;
use offshoot_types::Failure;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

/// Connections open at once, of all doors together. The daemon takes a few more for one VM, so that none is refused.
const CONNECTIONS: usize = 200;
/// After an accept that failed for lack of descriptors: they are freed by others, not announced.
const PAUSE: Duration = Duration::from_millis(100);

/// Forwards until the VM is no longer the one it was; returns why.
pub async fn serve(client: &Client, printer: &Printer, doors: &[Door], watch: &Watch) -> Result<Failure> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut open = FuturesUnordered::new();
    let mut ended = std::pin::pin!(watch.ended(client));
    let mut from = Instant::now();
    loop {
        tokio::select! {
            biased;
            ended = ended.as_mut() => return ended,
            Some(()) = open.next() => {}
            (door, place, accepted) = accept(doors, &places, from) => match accepted {
                Ok(stream) => open.push(async move {
                    door.carry(client, printer, watch, stream).await;
                    drop(place);
                }),
                Err(error) => {
                    door.say(printer, format!("a connection to {} could not be accepted: {error}", door.address()));
                    from = Instant::now() + PAUSE;
                }
            },
        }
    }
}

/// The next connection, from whichever door. A place comes first: who has none waits in the backlog, unknown to the VM.
async fn accept<'a>(
    doors: &'a [Door],
    places: &Arc<Semaphore>,
    from: Instant,
) -> (&'a Door, Option<OwnedSemaphorePermit>, io::Result<TcpStream>) {
    // Nobody closes it.
    let place = places.clone().acquire_owned().await.ok();
    sleep_until(from).await;
    let each = doors.iter().map(|door| Box::pin(async move { (door, door.accept().await) }));
    let ((door, accepted), _, _) = select_all(each).await;
    (door, place, accepted)
}
