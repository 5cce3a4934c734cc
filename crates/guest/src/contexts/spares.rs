//! Interpreters that were started before anybody needs them: under emulation a start takes most of a second.
//!
//! ```text
//! prepare --> started --> has done what the first code needs --> kept --> a new context's --> renewed --> its first code
//!                |                 |                              |                              |
//!                +-----------------+-------- ended by anything ---+------------------------------+--> another is started
//! ```
//! A template of a VM holds some, so each is that of many VMs: none runs anybody's code before it has taken new random
//! numbers, and gone to the directory and taken on the environment of its context. A thaw has no need to wait for them.
//! They are the first to go where memory is short.

use super::{Contexts, DEATH, interpreter::Interpreter};
use crate::fault::{Context as _, fault};
use offshoot_guest_proto::message::{GuestError, GuestErrorKind, Language};
use std::{
    collections::BTreeMap,
    fs, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    time::timeout,
};

/// One per language and user; more users than this have none.
const MAX: usize = 8;
/// For an interpreter to start and to load what most code needs; what an image's does can be much, and its CPU emulated.
const WARM: Duration = Duration::from_secs(240);
const RENEWAL: Duration = Duration::from_secs(2);
/// The first to be ended for want of memory.
const EXPENDABLE: &str = "1000";
/// As likely as any other process.
const USUAL: &str = "0";

#[derive(Debug, Default)]
pub(super) struct Spares {
    kept: Mutex<Vec<Spare>>,
    /// One is made at a time.
    preparing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
pub(super) struct Spare {
    user: String,
    pub(super) interpreter: Interpreter,
}

impl Spares {
    pub(super) fn kept(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the one for that language and user, if it lives.
    pub fn take(&self, language: Language, user: &str) -> Option<Interpreter> {
        let mut kept = self.kept();
        kept.retain(|spare| spare.interpreter.live.exit().is_none());
        let of = |spare: &Spare| spare.interpreter.live.language == language && spare.user == user;
        let found = kept.iter().position(of)?;
        let interpreter = kept.swap_remove(found).interpreter;
        // Gone this moment: whoever gives it code sees that.
        let _gone = set_oom_score(&interpreter, USUAL);
        Some(interpreter)
    }

    pub fn keep(&self, user: String, interpreter: Interpreter) {
        self.kept().push(Spare { user, interpreter });
    }

    /// How many processes they are.
    pub fn count(&self) -> usize {
        self.kept().iter().filter(|spare| spare.interpreter.live.exit().is_none()).count()
    }
}

impl Contexts {
    /// Has an interpreter ready for the first context of that language and user: started unless there is one, and
    /// made to do once more what its first code will need, for where nothing is translated yet.
    pub async fn prepare(self: &Arc<Self>, language: Language, user: String) -> Result<(), GuestError> {
        let (done, prepared) = oneshot::channel();
        let contexts = Arc::clone(self);
        // A task of its own: a host that leaves in the middle shall not leave it in the middle of something.
        crate::task::forever("spare", async move {
            let outcome = contexts.make_ready(language, user).await;
            // A host that has left does not want to know.
            let _left = done.send(outcome);
        });
        let gone = || fault(GuestErrorKind::Other, "prepare an interpreter: given up".to_owned());
        prepared.await.unwrap_or_else(|_| Err(gone()))
    }

    async fn make_ready(&self, language: Language, user: String) -> Result<(), GuestError> {
        let _one = self.spares.preparing.lock().await;
        self.freezer.running().await;
        let mut interpreter = match self.spares.take(language, &user) {
            Some(interpreter) => interpreter,
            None if self.spares.count() >= MAX => {
                let message = format!("prepare an interpreter: {MAX} are kept, the most of a VM");
                return Err(fault(GuestErrorKind::Exhausted, message));
            }
            None => self.start("spare", language, &user, None, &BTreeMap::new())?,
        };
        interpreter.stale = true;
        let ready = async {
            set_oom_score(&interpreter, EXPENDABLE)?;
            interpreter.warm().await?;
            interpreter.renew().await
        };
        let ready = timeout(WARM, ready).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(error) = ready {
            put_down(interpreter).await;
            return Err(error).context("prepare an interpreter for", &user);
        }
        self.spares.keep(user, interpreter);
        Ok(())
    }

    /// Processes that stand still with the others and run nobody's code before they are renewed.
    pub fn spares(&self) -> u32 {
        u32::try_from(self.spares.count()).unwrap_or(u32::MAX)
    }
}

/// Names, and with `*` begins of names, that an interpreter, or a library it may have loaded, reads once: one that runs
/// already comes too late for them.
const READ_AT_START: [&str; 14] = [
    "PYTHON*",
    "NODE*",
    "BASH*",
    "LD_*",
    "LC_*",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TZDIR",
    "MALLOC_*",
    "MPL*",
    "OMP_*",
    "OPENBLAS_*",
    "SSL_*",
];

/// Whether one that runs already can take on this environment.
pub(super) fn can_be_settled(env: &BTreeMap<String, String>) -> bool {
    let read = |name: &String| {
        READ_AT_START.iter().any(|&one| match one.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == one,
        })
    };
    !env.keys().any(read)
}

/// Has the interpreter a context took over from those kept ready take new random numbers, and become that context's. One
/// that does not is ended: a new one takes its place.
pub(super) async fn renewed(
    turn: OwnedMutexGuard<Option<Interpreter>>,
) -> OwnedMutexGuard<Option<Interpreter>> {
    if !turn.as_ref().is_some_and(|interpreter| interpreter.stale) {
        return turn;
    }
    let context = Arc::clone(OwnedMutexGuard::mutex(&turn));
    let (done, renewed) = oneshot::channel();
    // As above: it is renewed when the next code has its turn, or gone.
    crate::task::forever("renewal", async move {
        let mut turn = turn;
        if let Some(mut interpreter) = turn.take() {
            let ready = async {
                interpreter.renew().await?;
                interpreter.settle().await
            };
            match timeout(RENEWAL, ready).await {
                Ok(Ok(())) => {
                    interpreter.stale = false;
                    *turn = Some(interpreter);
                }
                Ok(Err(_)) | Err(_) => put_down(interpreter).await,
            }
        }
        drop(done.send(turn));
    });
    match renewed.await {
        Ok(turn) => turn,
        // The task is gone, and its turn with it.
        Err(_) => context.lock_owned().await,
    }
}

async fn put_down(interpreter: Interpreter) {
    // Empty already: as wanted. One that the kernel does not let go of has no code and no descriptors of ours.
    drop(interpreter.live.kill());
    let _stuck = timeout(DEATH, interpreter.live.exited()).await;
}

fn set_oom_score(interpreter: &Interpreter, score: &str) -> io::Result<()> {
    fs::write(format!("/proc/{}/oom_score_adj", interpreter.live.pid), score)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_read_at_a_start_keeps_from_taking_over_one_that_runs() {
        let settles = |name: &str| can_be_settled(&[(name.to_owned(), String::new())].into());
        for late in ["LANG", "LANGUAGE", "LC_ALL", "TZ", "PYTHONPATH", "NODE_OPTIONS", "LD_PRELOAD"] {
            assert!(!settles(late), "{late}");
        }
        for free in ["LANGCHAIN_API_KEY", "LANGSMITH_TRACING", "TZ_NAME", "HOME", "lang"] {
            assert!(settles(free), "{free}");
        }
    }
}
