//! Engine, store and fake provider under random schedules of commands and troubles, checked against a plain model.
//!
//! ```text
//! seed --> Schedule: steps, each some commands and some troubles         (schedule.rs; nothing else is random)
//!            |
//!            v          commands           visits of checkpoints
//!   Run ----------> Engine -------------> Board: crash, fail, repeat, kill, lose replies, fill the disk, turn the clock
//!    |  (run.rs)      |  real SQLite, real files       (trouble.rs)
//!    |                v
//!    |            FakeHost: machines with guests that outlive the engine
//!    v
//!   at rest --> invariants (invariants.rs) and what the model expects (model.rs) --> lines of the log
//! ```
//! **What is deterministic.** All tasks run on one thread with tokio's paused clock, which moves on only when nothing
//! can run, and what blocks (SQLite, files) is done in place by the task that asks for it. So the order of everything
//! the engine does follows from the seed. The log has names and ordinals for ids and no times, and the same seed gives
//! the same log: that is a test below.
//!
//! **What is not.** The ids themselves, and with them the names of files; the host's clock, which only file times and
//! the guest's own clock show; how the writer groups its commits. None of them decides anything here.
//!
//! A crash drops every task of an engine at one instruction, as the crash tests do; writes that were queued with the
//! store are carried out first, which is a crash a moment later. What a power cut does to SQLite is not tried here.
//!
//! A failing seed is printed with how to repeat it; it belongs into `seeds.txt`, which runs first.

#![expect(clippy::disallowed_macros, reason = "a test that fails says how to repeat it")]

mod acts;
mod expectation;
mod invariants;
mod log;
mod model;
mod run;
mod schedule;
mod trouble;
mod verdict;
mod world;

use schedule::Schedule;
use std::time::{Duration, Instant};

/// Schedules of each of the two tests that run everywhere: about half a minute together on two slow cores.
const FEW: u64 = 60;

/// Runs one schedule to its end on a runtime of its own and returns its log.
fn simulate(seed: u64) -> Vec<String> {
    offshoot_store::block_in_place();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let log = log::Log::default();
    let schedule = Schedule::new(seed);
    // In a task of its own, so that a panic of it is told with the log.
    let ended = runtime.block_on(runtime.spawn(run::run(schedule, log.clone())));
    let broken = match ended {
        Ok(Ok(())) => return log.lines(),
        Ok(Err(broken)) => broken,
        Err(panicked) => format!("the simulation panicked: {panicked}"),
    };
    panic!(
        "seed {seed}: {broken}\n\n{}\n\nrepeat it with\n    OFFSHOOT_SIM_SEED={seed} cargo test -p offshoot-engine --test simulation kept\nand add the seed to seeds.txt",
        log.lines().join("\n"),
    );
}

fn kept() -> Vec<u64> {
    let lines = include_str!("seeds.txt").lines();
    let words =
        lines.filter_map(|line| line.split('#').next()).map(str::trim).filter(|word| !word.is_empty());
    words.map(|word| word.parse().expect("a seed a line")).collect()
}

#[test]
fn kept_seeds() {
    match std::env::var("OFFSHOOT_SIM_SEED") {
        Ok(seed) => println!("{}", simulate(seed.parse().expect("a number")).join("\n")),
        Err(_) => kept().into_iter().for_each(|seed| drop(simulate(seed))),
    }
}

#[test]
fn odd_seeds() {
    (0..FEW).for_each(|n| drop(simulate(2 * n + 1)));
}

#[test]
fn even_seeds() {
    (0..FEW).for_each(|n| drop(simulate(2 * n)));
}

#[test]
fn the_same_seed_gives_the_same_log() {
    for seed in 1000..1010 {
        let (first, second) = (simulate(seed), simulate(seed));
        let differs = first.iter().zip(&second).position(|(a, b)| a != b);
        if let Some(at) = differs {
            panic!(
                "seed {seed}, line {at}: {}\nand then:  {}\n\n{}",
                first[at],
                second[at],
                first[..at].join("\n")
            );
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

/// As many as fit into `OFFSHOOT_SOAK_SECONDS` (a minute unless set), beginning at seed `OFFSHOOT_SIM_FIRST`.
#[test]
fn heavy_soak_of_random_schedules() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let limit = Duration::from_secs(number("OFFSHOOT_SOAK_SECONDS").unwrap_or(60));
    let first = number("OFFSHOOT_SIM_FIRST").unwrap_or(10_000);
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get() as u64);
    let began = Instant::now();
    let total: u64 = std::thread::scope(|scope| {
        let run = |worker| {
            let mut count = 0;
            while began.elapsed() < limit {
                drop(simulate(first + worker + count * workers));
                count += 1;
            }
            count
        };
        let workers: Vec<_> = (0..workers).map(|worker| scope.spawn(move || run(worker))).collect();
        workers.into_iter().map(|worker| worker.join().expect("every schedule holds")).sum()
    });
    println!("{total} schedules, seeds from {first}");
    assert!(total > 0);
}
