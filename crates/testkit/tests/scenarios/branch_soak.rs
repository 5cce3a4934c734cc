//! A real VM, forked, rolled back and killed at random beside a model of what it must hold.
//!
//! What is held is one number, in three places at once: a variable of a live interpreter, a file on the disk, and a
//! file in guest memory. A state in which they differ was torn.

use crate::crash::{Dice, assert_consistent};
use offshoot_testkit::{TestEnv, wait_for};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What a VM may hold: more than one number after a change whose answer was cut off.
type Held = Vec<u64>;

const SNAPSHOTS: usize = 6;

#[derive(Debug, Default)]
struct Model {
    vms: BTreeMap<String, Held>,
    /// Acknowledged, so they must be there, whatever died since.
    snapshots: BTreeMap<String, u64>,
    made: u64,
}

#[track_caller]
fn write(env: &TestEnv, vm: &str, number: u64) {
    let code = format!(
        "import os\nx = {number}\nfor path in ['/number', '/dev/shm/number']:\n with open(path, 'w') as f: f.write(str(x))"
    );
    env.run(&["exec", vm, "--context", "main", "-c", &code]).success();
}

/// What the VM holds; panics if its three places differ.
#[track_caller]
fn read(env: &TestEnv, vm: &str) -> u64 {
    let code = "print(x, open('/number').read(), open('/dev/shm/number').read())";
    let out = env.run(&["exec", vm, "--context", "main", "-c", code]).success();
    let numbers: Vec<u64> = out.stdout.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    assert!(numbers.len() == 3 && numbers.iter().all(|n| *n == numbers[0]), "{vm} was torn: {out}");
    numbers[0]
}

/// Runs a verb; with a `delay` the daemon is killed in the middle. True if the verb was acknowledged.
fn run(env: &TestEnv, arguments: &[&str], delay: Option<Duration>) -> bool {
    let Some(delay) = delay else {
        env.run(arguments).success();
        return true;
    };
    let mut session = env.spawn(arguments);
    let end = Instant::now() + delay;
    wait_for("the moment to strike", delay + Duration::from_secs(5), || Instant::now() >= end);
    if env.daemon_pid().is_some() {
        env.kill_daemon();
    }
    let acknowledged = session.child.wait().expect("the client ends").success();
    assert_consistent(env);
    acknowledged
}

/// For minutes with `cargo xtask soak` (`OFFSHOOT_SOAK_SECONDS`), shortly in the tests.
#[test]
fn heavy_soak_branches_rollbacks_and_kills() {
    let seconds = std::env::var("OFFSHOOT_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(45);
    let end = Instant::now() + Duration::from_secs(seconds);
    let env = TestEnv::new();
    let mut dice = Dice::new();
    env.run(&["create", "v0", "--start"]).success();
    write(&env, "v0", 0);
    let mut model = Model::default();
    model.vms.insert("v0".into(), vec![0]);
    let mut rounds = 0;
    while Instant::now() < end {
        let delay = (dice.roll(4) == 0).then(|| Duration::from_millis(dice.roll(400)));
        round(&env, &mut dice, &mut model, delay);
        for (vm, held) in &mut model.vms {
            let now = read(&env, vm);
            assert!(held.contains(&now), "round {rounds}: {vm} holds {now}, not one of {held:?}");
            *held = vec![now];
        }
        rounds += 1;
    }
    for (index, (snapshot, number)) in model.snapshots.iter().enumerate() {
        env.run(&["snapshot", "verify", snapshot]).success();
        let name = format!("last{index}");
        env.run(&["fork", snapshot, "--name", &name]).success();
        assert_eq!(read(&env, &name), *number, "{snapshot} holds what it held");
        env.run(&["destroy", &name, "--yes"]).success();
    }
    eprintln!("{rounds} rounds, {} snapshots", model.snapshots.len());
    env.finish();
}

fn round(env: &TestEnv, dice: &mut Dice, model: &mut Model, delay: Option<Duration>) {
    let pick = |dice: &mut Dice, of: usize| dice.roll(of as u64) as usize;
    let vm = model.vms.keys().nth(pick(dice, model.vms.len())).expect("a VM").clone();
    model.made += 1;
    match dice.roll(6) {
        0 | 1 => {
            write(env, &vm, model.made);
            model.vms.insert(vm, vec![model.made]);
        }
        2 if model.snapshots.len() < SNAPSHOTS => {
            let name = format!("s{}", model.made);
            if run(env, &["snapshot", &vm, &name], delay) {
                let held = model.vms[&vm][0];
                model.snapshots.insert(format!("{vm}@{name}"), held);
            }
        }
        3 => {
            let own: Vec<(String, u64)> = model
                .snapshots
                .iter()
                .filter(|(name, _)| name.starts_with(&format!("{vm}@")))
                .map(|(name, number)| (name.clone(), *number))
                .collect();
            if own.is_empty() {
                return;
            }
            let (snapshot, number) = &own[pick(dice, own.len())];
            let before = model.vms[&vm].clone();
            let acknowledged = run(env, &["rollback", &vm, snapshot], delay);
            let held = if acknowledged { vec![*number] } else { [before, vec![*number]].concat() };
            model.vms.insert(vm, held);
        }
        4 if model.vms.len() < 3 => {
            let name = format!("v{}", model.made);
            let number = model.vms[&vm][0];
            if run(env, &["fork", &vm, "--name", &name], delay) {
                model.vms.insert(name, vec![number]);
            } else if env.run(&["status", &name]).code == Some(0) {
                // Made, and only the answer was lost: all of it is there.
                model.vms.insert(name, vec![number]);
            }
        }
        _ => {
            let number = model.made;
            let script = format!("echo -n {number} >/number; exit 1");
            let arguments = ["try", vm.as_str(), "--", "sh", "-c", script.as_str()];
            match delay {
                // Whatever becomes of it, it was not committed.
                Some(_) => drop(run(env, &arguments, delay)),
                None => drop(env.run(&arguments).exits(1)),
            }
        }
    }
}
