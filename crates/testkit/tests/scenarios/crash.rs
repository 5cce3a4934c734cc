//! kill -9 at any moment leaves no process, socket, file or row without an owner.

use crate::{
    branch::{python, start},
    vm,
};
use offshoot_testkit::{TestEnv, wait_for, wait_for_value};
use serde_json::Value;
use std::time::{Duration, Instant};

/// After a daemon died: every listed VM is in a state with a meaning, and every process belongs to a listed VM.
#[track_caller]
pub(crate) fn assert_consistent(env: &TestEnv) {
    // The new daemon serves while it mends what was cut off; that must come to an end.
    let settled = |vm: &Value| {
        ["stopped", "running", "paused", "suspended", "failed"]
            .contains(&vm["state"].as_str().expect("a state"))
    };
    let vms = wait_for_value("no VM to be left half way", Duration::from_secs(20), || {
        let listed = env.run(&["list", "--json"]).success().json();
        let vms = listed["vms"].as_array().expect("a list").clone();
        vms.iter().all(settled).then_some(vms)
    });
    let with_process = |vm: &&Value| ["running", "paused"].contains(&vm["state"].as_str().expect("a state"));
    let owned: Vec<String> =
        vms.iter().filter(with_process).map(|vm| vm["id"].as_str().expect("an id").to_owned()).collect();
    wait_for("only processes of running VMs", Duration::from_secs(10), || {
        env.processes()
            .iter()
            .filter(|p| p.command_line.contains("qemu-system"))
            .all(|p| owned.iter().any(|id| p.command_line.contains(id.as_str())))
    });
    let known: Vec<String> = vms.iter().map(|vm| vm["id"].as_str().expect("an id").to_owned()).collect();
    for entry in std::fs::read_dir(env.state_dir().join("vms")).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owned = known.iter().any(|id| *id == name || id.replace('-', "") == name);
        assert!(owned, "{name} under vms/ belongs to nobody: {known:?}");
    }
}

/// Starts a verb, kills the daemon after a delay, and looks at what the next daemon makes of it.
fn kill_during(env: &TestEnv, arguments: &[&str], delay: Duration) {
    let mut session = env.spawn(arguments);
    let end = Instant::now() + delay;
    wait_for("the moment to strike", delay + Duration::from_secs(5), || Instant::now() >= end);
    if env.daemon_pid().is_some() {
        env.kill_daemon();
    }
    let _ = session.child.kill();
    session.child.wait().expect("the client ends");
    assert_consistent(env);
}

#[test]
fn scenario_42_kill_9_of_the_daemon_during_create_start_exec_and_destroy() {
    let env = TestEnv::new();
    env.run(&["list"]).success();
    for (round, delay) in [5, 20, 45, 80].map(Duration::from_millis).into_iter().enumerate() {
        let name = format!("c{round}");
        kill_during(&env, &["create", &name], delay);
        // Whatever became of it, the name can be used or is in use: never in between.
        let out = env.run(&["create", &name]);
        assert!([0, 4].contains(&out.code.expect("no signal")), "{out}");
        kill_during(&env, &["destroy", &name, "--yes"], delay);
        env.run(&["destroy", &name, "--yes"]);
        env.run(&["status", &name]).exits(3);
    }
    for delay in [30, 150, 600, 1500].map(Duration::from_millis) {
        env.run(&["create", "s"]).success();
        kill_during(&env, &["start", "s"], delay);
        env.run(&["start", "s"]).success();
        kill_during(&env, &["exec", "s", "--", "sh", "-c", "sleep 0.2; echo done"], delay / 4);
        env.run(&["exec", "s", "--", "true"]).success();
        kill_during(&env, &["stop", "s"], delay / 2);
        kill_during(&env, &["destroy", "s", "--yes"], delay / 3);
        // Begun means done: the next daemon may be finishing it just now.
        env.run(&["destroy", "s", "--yes"]);
    }
    env.finish();
}

#[test]
fn a_run_whose_daemon_or_client_dies_leaves_nothing() {
    let env = TestEnv::new();
    for (kill_client, once_running) in [(true, false), (false, false), (true, true), (false, true)] {
        env.run(&["list"]).success();
        let mut session = env.spawn(&["run", "--", "sleep", "1000"]);
        // Not before the daemon has the request: the client would start another, as it should.
        wait_for("the moment to strike", Duration::from_secs(60), || {
            let vms = env.run(&["list", "--json"]).success().json()["vms"].clone();
            vms[0].is_object() && (!once_running || vms[0]["state"] == "running")
        });
        if kill_client {
            session.child.kill().expect("kill the client");
        } else {
            env.kill_daemon();
        }
        wait_for("the client to end", Duration::from_secs(20), || {
            session.child.try_wait().expect("wait for the client").is_some()
        });
        wait_for("the VM of the run to be gone", Duration::from_secs(20), || {
            env.run(&["list", "--json"]).success().json()["vms"].as_array().is_some_and(Vec::is_empty)
        });
        assert_consistent(&env);
    }
    env.finish();
}

#[test]
fn a_killed_keeper_takes_its_vmm_along_and_the_vm_is_failed() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let id = vm(&env, "a")["id"].as_str().expect("an id").to_owned();
    let keeper = env
        .processes()
        .into_iter()
        .find(|p| p.command_line.contains("keeper") && !p.command_line.contains("qemu-system"))
        .expect("a keeper runs");
    let vmm = crate::vmm(&env, &id);
    assert!(keeper.kill());
    crate::await_state(&env, "a", "failed", Duration::from_secs(3));
    assert!(!vmm.is_alive());
    env.run(&["start", "a"]).success();
    env.finish();
}

/// Random numbers whose seed a failing test has printed.
#[derive(Debug)]
pub(crate) struct Dice {
    pub seed: u32,
    state: u64,
}

impl Dice {
    pub fn new() -> Self {
        let seed = std::process::id();
        eprintln!("seed {seed}");
        Self { seed, state: u64::from(seed) | 1 }
    }

    /// Below `bound`.
    pub fn roll(&mut self, bound: u64) -> u64 {
        // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

/// The long form of scenario 42: random verbs and kills for a while (`OFFSHOOT_SOAK_SECONDS`, default 120).
#[test]
fn heavy_soak_random_verbs_and_kills() {
    let seconds = std::env::var("OFFSHOOT_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(120);
    let end = Instant::now() + Duration::from_secs(seconds);
    let env = TestEnv::new();
    let mut dice = Dice::new();
    let seed = dice.seed;
    let mut next = |bound| dice.roll(bound);
    let names = ["p", "q"];
    let mut rounds = 0;
    while Instant::now() < end {
        let name = names[next(2) as usize];
        let verb: Vec<&str> = match next(8) {
            0 => vec!["create", name],
            1 | 2 => vec!["start", name],
            3 => vec!["stop", name],
            4 => vec!["exec", name, "--", "sh", "-c", "echo x >>/workspace/log; sync"],
            5 => vec!["restart", name],
            6 => vec!["pause", name],
            _ => vec!["destroy", name, "--yes"],
        };
        if next(3) == 0 {
            kill_during(&env, &verb, Duration::from_millis(next(3000)));
        } else {
            let out = env.run(&verb);
            assert!(
                [0, 3, 4, 125].contains(&out.code.expect("no signal")),
                "round {rounds}, seed {seed}: {out}"
            );
        }
        rounds += 1;
    }
    assert_consistent(&env);
    assert!(rounds > 0);
    eprintln!("{rounds} rounds");
    env.finish();
}

#[test]
fn the_history_tells_it_all_after_kill_9_of_the_daemon_and_runs_it_again() {
    let env = TestEnv::new();
    start(&env, "a");
    env.run(&["snapshot", "take", "a", "clean"]).success();
    env.run(&["exec", "a", "--agent", "planner", "--", "sh", "-c", "echo $((6 * 7)); echo x >/tmp/made"])
        .success();
    env.run(&["exec", "a", "--", "cat", "/tmp/not-there"]).exits(1);
    python(&env, "a", "x = 41; print(x + 1)");
    env.run(&["exec", "a", "--", "seq", "100000"]).success();
    env.run(&["rollback", "a", "a@clean"]).success();
    let after = env.run(&["exec", "a", "--", "cat", "/tmp/made"]).exits(1);
    assert!(after.stderr.contains("No such file"), "{after}");
    env.kill_daemon();

    let all = env.run(&["history", "a", "--json"]).success().json();
    let entries = all["entries"].as_array().expect("a list");
    assert_eq!((&all["total"], entries.len()), (&5.into(), 5), "{all}");
    let undone: Vec<bool> = entries.iter().map(|entry| entry["undone_by"].is_string()).collect();
    assert_eq!(undone, [false, true, true, true, true], "newest first: {all}");
    let (long, code, failed, first) = (&entries[1], &entries[2], &entries[3], &entries[4]);
    assert_eq!(
        (&first["agent"], &first["succeeded"], &first["before"]["exact"]),
        (&"planner".into(), &true.into(), &true.into())
    );
    assert_eq!(
        (&failed["exit"]["code"], &code["kind"], &code["language"]),
        (&1.into(), &"code".into(), &"python".into())
    );
    assert_eq!(env.run(&["history", "a", "--failures", "--json"]).success().json()["total"], 2);
    let id = |entry: &serde_json::Value| entry["id"].as_str().expect("an id").to_owned();
    let counted: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    env.run(&["history", "show", &id(long), "--stdout"]).success().prints(&counted);

    for entry in [first, failed, long] {
        env.run(&["history", "replay", &id(entry), "--exit-code"]).success();
    }
    assert_eq!(env.run(&["list", "--json"]).success().json()["vms"].as_array().map(Vec::len), Some(1));
    env.run(&["exec", "a", "--", "cat", "/tmp/made"]).exits(1);
    env.finish();
}
