//! Where troubles wait for their moment, and what they do then.

use crate::{
    log::Log,
    schedule::{Trouble, When},
    world::{ImageFiles, Wall},
};
use offshoot_engine::{Checkpoint, Fault, Phase};
use offshoot_provider::{Exit, fake::FakeHost};
use offshoot_store::{Store, fault};
use offshoot_types::{ErrorCode, Failure};
use std::sync::{Arc, Mutex, MutexGuard, atomic::Ordering};
use tokio::sync::Notify;

const SIGKILL: i32 = 9;

#[derive(Debug, Clone)]
pub struct Board(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: FakeHost,
    wall: Arc<Wall>,
    images: Arc<ImageFiles>,
    log: Log,
    state: Mutex<State>,
    crash: Notify,
}

#[derive(Debug, Default)]
struct State {
    visits: u32,
    planned: Vec<(When, Trouble)>,
    /// At which visit of its recovery the next daemon dies too.
    again: Option<u32>,
    met: Met,
    store: Option<Store>,
}

/// What a step met that widens what may have become of its commands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Met {
    /// A machine may have ended by itself.
    pub ended: bool,
    pub full: bool,
    /// A step or its undo counted as failed.
    pub failed: bool,
    /// Anything at all.
    pub any: bool,
}

impl Board {
    pub fn new(host: FakeHost, wall: Arc<Wall>, images: Arc<ImageFiles>, log: Log) -> Self {
        let (state, crash) = (Mutex::default(), Notify::new());
        Self(Arc::new(Inner { host, wall, images, log, state, crash }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// The engine of the moment lives on this record.
    pub fn attend(&self, store: Store) {
        self.state().store = Some(store);
    }

    /// Begins to count: `planned` belong to the step that begins.
    pub fn arm(&self, planned: Vec<(When, Trouble)>) {
        let mut state = self.state();
        (state.visits, state.planned, state.met) = (0, planned, Met::default());
    }

    /// For the recovery of the next daemon.
    pub fn arm_again(&self, visit: u32) {
        let mut state = self.state();
        (state.visits, state.planned) = (0, vec![(When::Visit(visit), Trouble::Crash { again: None })]);
    }

    /// Nothing goes wrong from here on. What was full has room again.
    pub async fn calm(&self) -> Met {
        let (met, store) = {
            let mut state = self.state();
            state.planned.clear();
            (state.met, state.store.clone())
        };
        self.0.images.missing.store(false, Ordering::SeqCst);
        self.0.host.heal();
        if let Some(store) = store.filter(|_| met.full) {
            fault::limit_pages(&store, None).await.expect("room again");
        }
        met
    }

    /// Resolves when the daemon is to die.
    pub async fn crashed(&self) {
        self.0.crash.notified().await;
    }

    pub fn again(&self) -> Option<u32> {
        self.state().again.take()
    }

    /// Meets what was planned for this moment. Whether the daemon is to die now.
    pub async fn meet(&self, when: When) -> bool {
        let mut crash = false;
        for trouble in self.take(when) {
            match trouble {
                // There is no step to fail or to repeat.
                Trouble::Fail | Trouble::Repeat => continue,
                Trouble::Crash { again } => {
                    self.state().again = again;
                    crash = true;
                }
                trouble => self.cause(trouble).await,
            }
            self.0.log.line(format!("    {trouble:?}"));
        }
        crash
    }

    fn take(&self, when: When) -> Vec<Trouble> {
        let mut state = self.state();
        let (due, rest): (Vec<_>, Vec<_>) = state.planned.drain(..).partition(|(at, _)| *at == when);
        state.planned = rest;
        state.met.any |= !due.is_empty();
        due.into_iter().map(|(_, trouble)| trouble).collect()
    }

    pub async fn visit(&self, at: Checkpoint) -> Fault {
        let visit = {
            let mut state = self.state();
            state.visits += 1;
            state.visits
        };
        for trouble in self.take(When::Visit(visit)) {
            if trouble == Trouble::Repeat && !matches!(at.phase, Phase::AfterAct | Phase::AfterUndo) {
                // There is nothing to repeat here; perhaps at the next one.
                self.state().planned.push((When::Visit(visit + 1), trouble));
                continue;
            }
            self.0.log.line(format!("    {}/{} {:?}: {trouble:?}", at.kind, at.step, at.phase));
            match trouble {
                Trouble::Crash { again } => {
                    self.state().again = again;
                    self.0.crash.notify_one();
                    std::future::pending::<()>().await;
                }
                Trouble::Fail => {
                    self.state().met.failed = true;
                    return Fault::Fail(Failure::new(ErrorCode::Backend, "on purpose"));
                }
                Trouble::Repeat => return Fault::Repeat,
                trouble => self.cause(trouble).await,
            }
        }
        Fault::Continue
    }

    async fn cause(&self, trouble: Trouble) {
        let host = &self.0.host;
        match trouble {
            Trouble::Crash { .. } | Trouble::Fail | Trouble::Repeat => {}
            Trouble::KillVmm(pick) => self.end(pick, &Exit::Signal(SIGKILL)),
            Trouble::LoseKeeper(pick) => self.end(pick, &Exit::KeeperLost),
            Trouble::Panic(pick) => {
                let line = "Kernel panic - not syncing: on purpose".into();
                self.end(pick, &Exit::GuestPanic { line });
            }
            Trouble::LoseReplies(count) => host.lose_replies(count as usize),
            Trouble::Boot(fault) => host.inject(fault),
            Trouble::Restore(fault) => host.inject_restore(fault),
            Trouble::Checkpoint(fault) => {
                self.state().met.ended = true;
                host.inject_checkpoint(fault);
            }
            Trouble::Guest(fault) => host.inject_guest(fault),
            Trouble::DiskFull => {
                let store = self.state().store.clone();
                let Some(store) = store else { return };
                self.state().met.full = true;
                let full = async {
                    let pages = fault::page_count(&store).await?;
                    fault::limit_pages(&store, Some(pages)).await
                };
                full.await.expect("the engine lives");
            }
            Trouble::Clock(seconds) => self.0.wall.turn(seconds),
            Trouble::NoImages => self.0.images.missing.store(true, Ordering::SeqCst),
        }
    }

    fn end(&self, pick: u32, exit: &Exit) {
        self.state().met.ended = true;
        let running = self.0.host.running_vms();
        if let Some(vm) = running.get(pick as usize % running.len().max(1)) {
            self.0.host.end(*vm, exit.clone());
        }
    }
}
