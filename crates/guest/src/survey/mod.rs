//! What the VM is made of, for a host that compares it with another.
//!
//! ```text
//! upper  what the VM wrote    --\                           which paths may differ from the image
//! now    upper over the image  --+-- walk, in path order --> those that do: as they are, as they were
//! image  read-only            --/
//! ```
//! What an upper layer means (whiteouts, opaque and renamed directories) is the kernel's business: the walk only looks
//! where it wrote, and compares what the two other trees show there. No symbolic link is followed, and no mount of the
//! VM's programs is entered. A page is worked on for a moment on a blocking thread, and the host is told that there is
//! none yet: a slow disk stalls nothing else, and a host that leaves ends the work.

mod contents;
mod entry;
mod layers;
mod processes;
mod walk;

pub use entry::names;
pub use layers::Layers;

use crate::{
    fault::{Context, fault},
    users::Users,
};
use contents::Hashing;
use offshoot_guest_proto::{
    message::{GuestErrorKind, MAX_PAGE, MAX_SURVEY_PATH, Paged, ProcessInfo},
    server::{Detached, SurveyPeer},
};
use serde::Serialize;
use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use walk::Walk;

/// How long one page is worked on. Well below the patience of the host.
const SPELL: Duration = Duration::from_millis(500);
/// Bytes of a page of paths, about: a message holds eight times that.
const PAGE_BYTES: usize = 64 * 1024;
/// What is read of a file in one go.
const BLOCK: usize = 128 * 1024;

/// Work that is done in short spells.
trait Spells: Send + 'static {
    type Item: Serialize + Send + 'static;
    /// For the text of an error.
    const WHAT: &'static str;
    /// Goes on for about a [`SPELL`]; what was found, and whether there is more to come.
    fn spell(&mut self) -> io::Result<(Vec<Self::Item>, bool)>;
    fn left_out(&self) -> u64;
}

/// Every path that is not as in the image.
pub async fn changes(layers: Layers, peer: SurveyPeer) -> Result<(), Detached> {
    send(Walk::new(layers), peer).await
}

/// What files hold now.
pub async fn contents(layers: Layers, paths: Vec<Vec<u8>>, peer: SurveyPeer) -> Result<(), Detached> {
    let odd = |path: &Vec<u8>| path.len() > MAX_SURVEY_PATH || !path.starts_with(b"/") || path.contains(&0);
    if paths.len() > MAX_PAGE || paths.iter().any(odd) {
        peer.refuse(crate::fault::invalid("hash files: too many paths, or one that is none")).await;
        return Ok(());
    }
    send(Hashing::new(layers, paths), peer).await
}

async fn send<S: Spells>(mut work: S, mut peer: SurveyPeer) -> Result<(), Detached> {
    peer.accept().await?;
    loop {
        let spell = tokio::task::spawn_blocking(move || {
            let done = work.spell();
            (work, done)
        });
        let done;
        (work, done) = match spell.await {
            Ok((given_back, done)) => (given_back, done.context(S::WHAT, "the VM's disk")),
            Err(error) => {
                let error = fault(GuestErrorKind::Other, format!("{}: {error}", S::WHAT));
                return peer.send(&Paged::<S::Item>::Failed(error)).await;
            }
        };
        let more = match done {
            Ok((items, true)) if items.is_empty() => {
                peer.send(&Paged::<S::Item>::Working).await?;
                true
            }
            Ok((items, more)) => {
                if !items.is_empty() {
                    peer.send(&Paged::Page(items)).await?;
                }
                more
            }
            Err(error) => return peer.send(&Paged::<S::Item>::Failed(error)).await,
        };
        if !more {
            return peer.send(&Paged::<S::Item>::End { left_out: work.left_out() }).await;
        }
    }
}

/// What runs. A process that is stuck in the kernel may keep whoever reads its command line waiting.
pub async fn processes(users: Arc<Users>, mut peer: SurveyPeer) -> Result<(), Detached> {
    let listing = move || processes::list(Path::new("/proc"), std::process::id(), &users);
    let listed = tokio::task::spawn_blocking(listing)
        .await
        .unwrap_or_else(|error| Err(fault(GuestErrorKind::Other, format!("list processes: {error}"))));
    let mut items = match listed {
        Ok(items) => items,
        Err(error) => {
            peer.refuse(error).await;
            return Ok(());
        }
    };
    peer.accept().await?;
    while !items.is_empty() {
        let rest = items.split_off(items.len().min(PROCESSES_PER_PAGE));
        peer.send(&Paged::Page(items)).await?;
        items = rest;
    }
    peer.send(&Paged::<ProcessInfo>::End { left_out: 0 }).await
}

/// Each with a command line of four kilobytes still fits a message.
const PROCESSES_PER_PAGE: usize = 64;

/// Says when a spell is over.
struct Spell(Instant);

impl Spell {
    fn begin() -> Self {
        Self(Instant::now())
    }
    fn is_over(&self) -> bool {
        self.0.elapsed() >= SPELL
    }
}
