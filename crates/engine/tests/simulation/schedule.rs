//! From a seed to what is done and what goes wrong.

use offshoot_provider::{
    BootStep, StopStep,
    fake::{BootFault, CheckpointFault, GuestFault},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[derive(Debug)]
pub struct Schedule {
    pub steps: Vec<Step>,
}

/// Commands given at once, and what goes wrong meanwhile.
#[derive(Debug)]
pub struct Step {
    pub acts: Vec<Act>,
    pub troubles: Vec<(When, Trouble)>,
}

#[derive(Debug, Clone, Copy)]
pub struct Act {
    pub verb: Verb,
    /// Which of the VMs there are when its turn comes.
    pub slot: u32,
    /// Chooses among what else there is then.
    pub pick: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Create,
    Start,
    Stop,
    Restart,
    Pause,
    Resume,
    Destroy,
    /// A process that prints and ends.
    Echo,
    /// A process that nobody waits for.
    Sleep,
    /// A file in the guest.
    Write,
    /// A variable of a live context: what memory holds.
    SetVariable,
    Snapshot,
    SnapshotDisk,
    RemoveSnapshot,
    RollbackNewest,
    RollbackTo,
    Undo,
    Suspend,
    Fork,
    ForkSnapshot,
    /// A write that is kept, or that fails and is undone; as one command, and as begin, write, end.
    Try,
    TryAndFail,
    TransactAndCommit,
    TransactAndRollBack,
    /// Nothing is asked of it until it suspends itself, then a process. Some of the others are made this.
    Rest,
    /// The same until it is moved to a fresh base. Some of the starts are made this.
    Rebase,
}

impl Verb {
    /// Whether others of this kind may be asked of the same VM at the same time, and what holds is still known.
    pub const fn mixes(self) -> bool {
        matches!(
            self,
            Self::Start
                | Self::Stop
                | Self::Restart
                | Self::Pause
                | Self::Resume
                | Self::Destroy
                | Self::Echo
        )
    }
    pub const fn forks(self) -> bool {
        matches!(self, Self::Fork | Self::ForkSnapshot)
    }
    pub const fn transacts(self) -> bool {
        matches!(self, Self::Try | Self::TryAndFail | Self::TransactAndCommit | Self::TransactAndRollBack)
    }
    pub const fn rolls_back(self) -> bool {
        matches!(self, Self::RollbackNewest | Self::RollbackTo | Self::Undo)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Before,
    /// At the n-th visit of a checkpoint since the step began, or never if there are fewer.
    Visit(u32),
    /// Once the commands have ended.
    After,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trouble {
    /// The daemon dies, and perhaps the next one too: at that visit of its recovery.
    Crash {
        again: Option<u32>,
    },
    /// The step or its undo counts as failed, whatever it did.
    Fail,
    /// What was just done is done once more.
    Repeat,
    /// One of the machines is killed from outside, loses its keeper, or panics.
    KillVmm(u32),
    LoseKeeper(u32),
    Panic(u32),
    LoseReplies(u32),
    Boot(BootFault),
    Restore(BootFault),
    Checkpoint(CheckpointFault),
    Guest(GuestFault),
    /// Until the step is over.
    DiskFull,
    /// The host's clock, in seconds.
    Clock(i64),
    /// Until the step is over.
    NoImages,
}

impl Schedule {
    pub fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let steps = random.random_range(10..=24);
        // Without something to begin with half of every schedule is refused.
        let mut all = Vec::from([Verb::Create, Verb::Start, Verb::Write, Verb::SetVariable].map(calm));
        all.extend((0..steps).map(|_| step(&mut random)));
        Self { steps: all }
    }
}

fn calm(verb: Verb) -> Step {
    // A pick that makes sense of everything.
    Step { acts: vec![Act { verb, slot: 0, pick: 1 }], troubles: vec![] }
}

fn step(random: &mut ChaCha8Rng) -> Step {
    let wanted = weighted(random, &[(1, 7), (2, 2), (3, 1)]);
    let mut acts: Vec<Act> = Vec::new();
    while acts.len() < wanted {
        let act = Act { verb: weighted(random, &VERBS), slot: slot(random), pick: random.random() };
        // What is new by the end of a step is told from its name: one at a time makes VMs of others.
        if act.verb.forks() && !acts.is_empty() {
            continue;
        }
        acts.push(act);
        if act.verb.forks() {
            break;
        }
    }
    let troubles = weighted(random, &[(0, 4), (1, 4), (2, 2)]);
    Step { acts, troubles: (0..troubles).map(|_| (when(random), trouble(random))).collect() }
}

const VERBS: [(Verb, u32); 24] = [
    (Verb::Create, 3),
    (Verb::Start, 8),
    (Verb::Stop, 2),
    (Verb::Restart, 2),
    (Verb::Pause, 2),
    (Verb::Resume, 3),
    (Verb::Destroy, 2),
    (Verb::Echo, 2),
    (Verb::Sleep, 1),
    (Verb::Write, 5),
    (Verb::SetVariable, 4),
    (Verb::Snapshot, 6),
    (Verb::SnapshotDisk, 2),
    (Verb::RemoveSnapshot, 2),
    (Verb::RollbackNewest, 4),
    (Verb::RollbackTo, 4),
    (Verb::Undo, 3),
    (Verb::Suspend, 4),
    (Verb::Fork, 4),
    (Verb::ForkSnapshot, 2),
    (Verb::Try, 2),
    (Verb::TryAndFail, 3),
    (Verb::TransactAndCommit, 2),
    (Verb::TransactAndRollBack, 2),
];

fn weighted<T: Copy>(random: &mut ChaCha8Rng, of: &[(T, u32)]) -> T {
    let total = of.iter().map(|(_, weight)| weight).sum();
    let mut at: u32 = random.random_range(0..total);
    for (value, weight) in of {
        match at.checked_sub(*weight) {
            Some(rest) => at = rest,
            None => return *value,
        }
    }
    unreachable!("less than the total")
}

fn pick<T: Copy>(random: &mut ChaCha8Rng, of: &[T]) -> T {
    of[random.random_range(0..of.len() as u32) as usize]
}

/// The first VMs more often: states that take several steps to reach are reached there.
fn slot(random: &mut ChaCha8Rng) -> u32 {
    pick(random, &[0, 0, 0, 1, 1, 2, 3, 4])
}

fn when(random: &mut ChaCha8Rng) -> When {
    match weighted(random, &[(0, 2), (1, 7), (2, 1)]) {
        0 => When::Before,
        1 => When::Visit(random.random_range(1..=24)),
        _ => When::After,
    }
}

fn trouble(random: &mut ChaCha8Rng) -> Trouble {
    /// How often each of the arms below.
    const WEIGHTS: [(u32, u32); 14] = [
        (0, 6),
        (1, 3),
        (2, 2),
        (3, 2),
        (4, 1),
        (5, 1),
        (6, 2),
        (7, 1),
        (8, 2),
        (9, 2),
        (10, 2),
        (11, 2),
        (12, 2),
        (13, 1),
    ];
    match weighted(random, &WEIGHTS) {
        0 => Trouble::Crash { again: random.random_bool(0.3).then(|| random.random_range(1..=6)) },
        1 => Trouble::Fail,
        2 => Trouble::Repeat,
        3 => Trouble::KillVmm(random.random()),
        4 => Trouble::LoseKeeper(random.random()),
        5 => Trouble::Panic(random.random()),
        6 => Trouble::LoseReplies(random.random_range(1..=3)),
        7 => Trouble::Boot(boot_fault(random)),
        8 => Trouble::Restore(boot_fault(random)),
        9 => {
            use CheckpointFault::{CrashAfterSwitch, CrashBefore, Refuse, Timeout};
            Trouble::Checkpoint(pick(random, &[Refuse, Timeout, CrashBefore, CrashAfterSwitch]))
        }
        10 => {
            use GuestFault::{FailFreeze, FailThaw, SilentFreeze, SilentThaw};
            Trouble::Guest(pick(random, &[FailFreeze, SilentFreeze, FailThaw, SilentThaw]))
        }
        11 => Trouble::DiskFull,
        12 => {
            let far = pick(random, &[1, 60, 3600, 8 * 3600, 400 * 24 * 3600]);
            Trouble::Clock(if random.random() { far } else { -far })
        }
        _ => Trouble::NoImages,
    }
}

fn boot_fault(random: &mut ChaCha8Rng) -> BootFault {
    let step = pick(random, &[BootStep::Keeper, BootStep::Vmm, BootStep::Channel]);
    match random.random_range(0..4) {
        0 => BootFault::Fail(step),
        1 => BootFault::FailAndLeave(step),
        2 => BootFault::SilentGuest,
        _ => BootFault::Stubborn(pick(random, &[StopStep::Term, StopStep::Kill])),
    }
}
