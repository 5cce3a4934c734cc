//! Files and directories between the host and a VM.
//!
//! ```text
//! SRC, DST --place--> which side is the VM
//!   into a VM   walk the local tree ------> one atomic write per file
//!   out of one  list, read ---------------> tree::Directory, which cannot be led out of its root
//! ```
//! What comes out of a VM is hostile: names are checked one component at a time, links are made but never
//! followed, set-id bits are dropped. A file arrives whole or not at all, on either side.

mod download;
mod place;
mod tree;
mod upload;

pub use place::Place;

use place::{LocalPath, RemotePath};

use crate::{
    failure::{Result, Stop, usage},
    printer::Printer,
    progress::Progress,
    trace::TraceEvent,
    view,
};
use offshoot_api::Client;
use offshoot_types::Failure;
use serde::Serialize;

/// Deepest directory that is copied. Each level holds a descriptor open.
const MAX_DEPTH: usize = 256;

/// What was copied.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub bytes: u64,
    /// Sockets, devices and pipes, which have no content to copy.
    pub skipped: Vec<String>,
}

impl Copied {
    pub fn summary(&self) -> String {
        let count = |number: u64, one: &str, many: &str| match number {
            0 => None,
            1 => Some(format!("1 {one}")),
            n => Some(format!("{n} {many}")),
        };
        let parts: Vec<String> = [
            count(self.files, "file", "files"),
            count(self.directories, "directory", "directories"),
            count(self.symlinks, "symlink", "symlinks"),
        ]
        .into_iter()
        .flatten()
        .collect();
        if parts.is_empty() {
            return "copied nothing".into();
        }
        format!("copied {} ({})", parts.join(", "), view::size(self.bytes))
    }
}

/// A copy under way: who to ask, as whom, and what has been done so far.
#[derive(Debug)]
struct Job<'a> {
    client: &'a Client,
    user: Option<String>,
    printer: &'a Printer,
    progress: &'a Progress,
    copied: Copied,
}

impl Job<'_> {
    fn arrived(&mut self, path: &str, bytes: u64) {
        self.copied.files += 1;
        TraceEvent::Copied { path, bytes }.emit();
    }

    fn chunk(&mut self, bytes: usize) {
        self.copied.bytes += bytes as u64;
        self.progress.advance(bytes as u64);
    }

    fn skip(&mut self, path: &str) {
        self.printer.note(&format!(
            "`{}` is neither file, directory nor link: skipped",
            crate::printer::visible(path)
        ));
        self.copied.skipped.push(path.to_owned());
    }
}

/// Which way a copy goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Into { from: LocalPath, to: RemotePath },
    OutOf { from: RemotePath, to: LocalPath },
}

impl Route {
    pub fn between(from: Place, to: Place) -> Result<Self, Failure> {
        match (from, to) {
            (Place::Local(from), Place::Remote(to)) => Ok(Self::Into { from, to }),
            (Place::Remote(from), Place::Local(to)) => Ok(Self::OutOf { from, to }),
            (Place::Local(_), Place::Local(_)) => Err(usage("neither side is in a VM")
                .hint("write the VM's side as NAME:/PATH, such as `web:/workspace`")),
            (Place::Remote(_), Place::Remote(_)) => {
                Err(usage("both sides are in a VM").hint("copy out of the one first, then into the other"))
            }
        }
    }
}

/// Copies one file or tree.
pub async fn copy(
    client: &Client,
    printer: &Printer,
    progress: &Progress,
    route: &Route,
    user: Option<String>,
) -> Result<Copied> {
    let job = Job { client, user, printer, progress, copied: Copied::default() };
    match route {
        Route::Into { from, to } => upload::upload(job, from, to).await,
        Route::OutOf { from, to } => download::download(job, from, to).await,
    }
}

fn too_deep(path: &str) -> Stop {
    usage(format!("`{path}` lies more than {MAX_DEPTH} directories deep"))
        .hint("pack it with `tar` inside the VM and copy the archive")
        .into()
}
