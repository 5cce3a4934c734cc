//! What differs between two states: files, packages, processes.
//!
//! ```text
//! VM that runs ---------------------------> its guest, as it is while it is looked at
//! snapshot, suspended VM, stopped VM -----> a fork of it that nobody else sees -> its guest; destroyed again
//!
//! guest: paths that are not as in the image, in path order --\
//!                                                             merged: one path at a time, whatever there are
//! guest: the same --------------------------------------------/   `--> files of one size are hashed in both
//! ```
//! Only a guest can read its disk: a host that mounted it would trust its file system. Such a fork is who it was copied
//! from, has no network, stands still from its first moment on and leaves with the request, as racers do. Both states
//! must be over the same image: then what neither of them changed is the same.
//!
//! What a guest says is bounded item by item and as a whole, and compared, never used as a path here.

mod files;
mod packages;
mod processes;
mod report;
mod side;

pub use report::{
    DiffReport, Differences, Entry, EntryKind, FileChange, LookedAt, PackageChange, PackageManager,
    ProcessChange, Subject,
};

use crate::{Engine, core::Core, error};
use offshoot_policy::{Authorized, Grant};
use offshoot_types::{Command, ErrorCode, Failure, ForkSource, TransactionId};
use side::Place;
use std::{sync::Arc, time::Duration};

/// A comparison that takes longer is given up: a guest that goes on telling of itself for ever holds a copy of a VM.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// What is to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffOptions {
    pub files: bool,
    pub packages: bool,
    pub processes: bool,
    /// Most differences of each kind that are told; the others are counted.
    pub limit: usize,
}

impl Engine {
    /// Compares two states ([`Command::Diff`]). Dropping it leaves nothing behind.
    pub async fn diff(
        &self,
        permit: Authorized<Command>,
        options: DiffOptions,
    ) -> Result<DiffReport, Failure> {
        self.core().manager.check_open()?;
        let (command, grant) = permit.into_parts();
        let Command::Diff { from, to } = command else {
            return Err(error::wrong_permit("diff", command.action()));
        };
        let looking = Looking { core: self.core().clone(), grant, within: self.transaction() };
        // Not detached: what is made on the way belongs to this future, and is destroyed when that is dropped.
        let compared = Box::pin(looking.compare(from, to, options));
        tokio::time::timeout(LONGEST, compared).await.unwrap_or_else(|_elapsed| {
            let message = format!("the comparison did not end within {} minutes", LONGEST.as_secs() / 60);
            Err(Failure::new(ErrorCode::Timeout, message)
                .hint("`--packages` and `--processes` leave the files out"))
        })
    }
}

/// Who looks.
struct Looking {
    core: Arc<Core>,
    grant: Grant,
    /// The transaction it is asked for in.
    within: Option<TransactionId>,
}

impl Looking {
    async fn compare(
        &self,
        from: ForkSource,
        to: ForkSource,
        options: DiffOptions,
    ) -> Result<DiffReport, Failure> {
        let (from, to) = (self.find(from).await?, self.find(to).await?);
        if from.is(&to) {
            return Ok(DiffReport::same(from.subject(), to.subject(), options));
        }
        if options.files && from.image != to.image {
            return Err(other_images(&from, &to));
        }
        let (from, to) = tokio::try_join!(self.look(from, "from"), self.look(to, "to"))?;
        let report = DiffReport {
            files: match options.files {
                true => Some(files::compare(&from, &to, options.limit).await?),
                false => None,
            },
            packages: match options.packages {
                true => Some(packages::compare(&from, &to, options.limit).await?),
                false => None,
            },
            processes: match options.processes {
                true => Some(processes::compare(&from, &to, options.limit).await?),
                false => None,
            },
            from: from.subject.clone(),
            to: to.subject.clone(),
        };
        // Gone before the answer says that they are not needed any more.
        tokio::join!(from.leave(), to.leave());
        Ok(report)
    }
}

fn other_images(from: &Place, to: &Place) -> Failure {
    let message = format!(
        "`{}` and `{}` are over different images ({} and {}): their files cannot be compared",
        from.name, to.name, from.image, to.image
    );
    Failure::new(ErrorCode::Unsupported, message)
        .hint("what differs is told relative to one image; `--packages` and `--processes` can be compared")
}
