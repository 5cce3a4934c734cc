//! State that branches, as a user sees it: live contexts, forks, transactions, races, and what is left of each.

use crate::{await_state, vm, vmm};
use offshoot_testkit::{CommandOutput, TestEnv, wait_for};
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Runs Python in the live context `main` of a VM.
#[track_caller]
pub fn python(env: &TestEnv, vm: &str, code: &str) -> CommandOutput {
    env.run(&["exec", vm, "--context", "main", "-c", code]).success()
}

/// Runs a shell line in a VM.
#[track_caller]
pub fn shell(env: &TestEnv, vm: &str, line: &str) -> String {
    env.run(&["exec", vm, "--", "sh", "-c", line]).success().stdout.trim_end().to_owned()
}

#[track_caller]
pub fn start(env: &TestEnv, name: &str) {
    env.run(&["create", name, "--start"]).success();
}

#[test]
fn the_transcript_of_branching_is_true() {
    transcript(TestEnv::new());
}

pub fn transcript(env: TestEnv) {
    start(&env, "a");
    shell(&env, "a", "mkdir -p /workspace && echo kept >/workspace/file");

    python(&env, "a", "x=41");
    let names = env.run(&["fork", "a", "--count", "3"]).success().stdout;
    let forks: Vec<&str> = names.lines().collect();
    assert_eq!(forks, ["a-1", "a-2", "a-3"]);
    let mut random = BTreeSet::new();
    for fork in &forks {
        assert_eq!(python(&env, fork, "x+=1; print(x)").stdout, "42\n", "{fork}");
        random.insert(shell(&env, fork, "head -c16 /dev/urandom | od -An -tx1"));
    }
    assert_eq!(random.len(), 3, "no two forks read the same from /dev/urandom");
    assert_eq!(python(&env, "a", "print(x)").stdout, "41\n", "the source went on undisturbed");

    let tried = env.run(&["try", "a", "--", "sh", "-c", "rm -rf /workspace; exit 1"]).exits(1);
    assert!(tried.stderr.contains("rolled back"), "{tried}");
    assert_eq!(shell(&env, "a", "cat /workspace/file"), "kept");
    assert_eq!(python(&env, "a", "print(x)").stdout, "41\n", "the interpreter came back with the VM");

    env.run(&[
        "race",
        "a",
        "-n",
        "4",
        "--score",
        "cat /score",
        "--",
        "sh",
        "-c",
        "shuf -i 1-99 -n 1 >/score",
    ])
    .success();
    let best: u32 = shell(&env, "a", "cat /score").parse().expect("the winner's score");
    assert!((1..=99).contains(&best));
    env.finish();
}

#[test]
fn a_vm_keeps_itself_before_each_command_and_goes_back_by_itself_when_one_fails() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start", "--snapshot-policy", "before-exec"]).success();
    let automatic = || {
        let listed = env.run(&["snapshot", "list", "a", "--json"]).success().json();
        let snapshots = listed["snapshots"].as_array().expect("`snapshots`").clone();
        let automatic = snapshots.into_iter().filter(|snapshot| snapshot["origin"] == "auto");
        automatic.map(|snapshot| snapshot["id"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    };
    shell(&env, "a", "mkdir -p /workspace && echo kept >/workspace/file");
    let kept = automatic();
    assert_eq!(kept.len(), 1, "strictly before the command");
    env.run(&["rollback", "a", &kept[0]]).success();
    env.run(&["exec", "a", "--", "test", "-e", "/workspace/file"]).exits(1);
    env.run(&["undo", "a"]).success();
    assert_eq!(shell(&env, "a", "cat /workspace/file"), "kept");

    env.run(&["snapshot", "policy", "a", "never", "--auto-rollback", "on"]).success();
    let before = automatic().len();
    env.run(&["exec", "a", "--", "sh", "-c", "rm -rf /workspace; exit 9"]).exits(9);
    env.run(&["snapshot", "policy", "a", "--auto-rollback", "off"]).success();
    assert_eq!(shell(&env, "a", "cat /workspace/file"), "kept", "the VM went back by itself");
    let status = env.run(&["status", "a", "--json"]).success().json();
    assert_eq!(status["snapshot_policy"]["mode"], "never");
    assert!(automatic().len() <= before + 1, "one snapshot for one command");

    // More than are kept of those that nobody asked for.
    env.run(&["snapshot", "policy", "a", "before-exec"]).success();
    for _ in 0..32 {
        shell(&env, "a", "true");
    }
    wait_for("the oldest are let go", Duration::from_secs(60), || automatic().len() < 32);
    env.finish();
}

#[test]
fn an_idle_vm_rests_without_a_process_and_wakes_where_it_was_for_whoever_asks() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start", "--idle-suspend", "2s"]).success();
    let id = vm(&env, "a")["id"].as_str().expect("an id").to_owned();
    python(&env, "a", "x=41");
    let process = vmm(&env, &id);
    await_state(&env, "a", "suspended", Duration::from_secs(60));
    wait_for("its process is gone", Duration::from_secs(10), || !process.is_alive());
    env.run(&["--no-wake", "exec", "a", "--", "true"]).exits(125);
    assert_eq!(python(&env, "a", "x+=1; print(x)").stdout, "42\n", "woken, it goes on");

    // What runs keeps it awake, for longer than it may be idle.
    let out = env.run(&["exec", "a", "--", "sh", "-c", "sleep 5; echo worked"]).success();
    assert_eq!(out.stdout, "worked\n");

    // A daemon that is gone is no reason not to wake: the next one knows that nobody suspended it.
    await_state(&env, "a", "suspended", Duration::from_secs(60));
    env.kill_daemon();
    assert_eq!(python(&env, "a", "print(x)").stdout, "42\n");

    // Its time is up although it works; a request wakes it again.
    env.run(&["life", "a", "--idle-suspend", "never", "--lifetime", "2s"]).success();
    let mut busy = env.spawn(&["exec", "a", "--", "sleep", "600"]);
    await_state(&env, "a", "suspended", Duration::from_secs(60));
    env.run(&["life", "a", "--lifetime", "never"]).success();
    assert_eq!(python(&env, "a", "print(x)").stdout, "42\n");
    env.run(&["life", "a", "--lifetime", "2s", "--on-timeout", "destroy"]).success();
    wait_for("its time is up", Duration::from_secs(60), || {
        env.run(&["list", "--json"]).success().json()["vms"].as_array().is_some_and(Vec::is_empty)
    });
    busy.child.wait().expect("its caller ends");
    env.finish();
}

#[test]
fn a_race_is_won_by_the_highest_score_and_can_be_undone() {
    let env = TestEnv::new();
    start(&env, "a");
    // Each racer knows itself by its host name only: the score is its last digit.
    let script = "hostname | sed 's/.*\\(.\\)$/\\1/' | tr -cd 0-9 >/score; test -s /score || echo 0 >/score";
    let race =
        env.run(&["race", "a", "-n", "3", "--score", "cat /score", "--", "sh", "-c", script]).success();
    assert_ne!(shell(&env, "a", "cat /score"), "", "{race}");
    let left: Vec<String> = env.run(&["list", "--json"]).success().json()["vms"]
        .as_array()
        .expect("`vms`")
        .iter()
        .filter_map(|vm| Some(vm["name"].as_str()?.to_owned()))
        .collect();
    assert_eq!(left, ["a"], "the other racers are gone");
    env.run(&["undo", "a"]).success();
    assert_eq!(shell(&env, "a", "ls /score 2>/dev/null; echo done"), "done");
    env.finish();
}

#[test]
fn a_transaction_cut_by_the_death_of_the_daemon_is_found_rolled_back() {
    cut_by_death(TestEnv::new());
}

pub fn cut_by_death(env: TestEnv) {
    start(&env, "a");
    shell(&env, "a", "mkdir -p /workspace && echo kept >/workspace/file");
    let id = vm(&env, "a")["id"].as_str().expect("an id").to_owned();
    let mut tried = env.spawn(&["try", "a", "--", "sh", "-c", "rm -rf /workspace; echo harm done; sleep 60"]);
    let mut line = String::new();
    let stdout = tried.child.stdout.take().expect("standard output is a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("the transaction speaks");
    assert_eq!(line, "harm done\n");
    let refused = env.run(&["exec", "a", "--", "true"]).exits(125);
    assert!(refused.stderr.contains("transaction"), "an open transaction owns the VM: {refused}");
    env.kill_daemon();
    let tried = tried.child.wait_with_output().expect("the caller ends");
    assert_eq!(tried.status.code(), Some(125));
    let said = String::from_utf8_lossy(&tried.stderr);
    assert!(said.contains("the connection to the daemon broke") && !said.contains("defect"), "{said}");
    assert_eq!(shell(&env, "a", "cat /workspace/file"), "kept");
    assert_eq!(vm(&env, "a")["id"], id.as_str(), "the same VM");
    env.finish();
}

#[test]
fn snapshots_form_a_tree_and_rollback_goes_anywhere_in_it() {
    tree(TestEnv::new());
}

pub fn tree(env: TestEnv) {
    start(&env, "a");
    python(&env, "a", "x=1");
    shell(&env, "a", "echo one >/data");
    env.run(&["snapshot", "a", "one"]).success();
    python(&env, "a", "x=2");
    shell(&env, "a", "echo two >/data; sync");
    env.run(&["snapshot", "a", "two"]).success();
    env.run(&["rollback", "a", "a@one"]).success();
    assert_eq!(python(&env, "a", "print(x)").stdout, "1\n");
    assert_eq!(shell(&env, "a", "cat /data"), "one");
    env.run(&["rollback", "a", "a@two"]).success();
    assert_eq!(python(&env, "a", "print(x)").stdout, "2\n");
    assert_eq!(shell(&env, "a", "cat /data"), "two");
    env.run(&["undo", "a"]).success();
    assert_eq!(shell(&env, "a", "cat /data"), "one", "undo takes the last rollback back");
    let tree = env.run(&["snapshot", "list", "a", "--tree"]).success();
    assert!(tree.stdout.contains("one") && tree.stdout.contains("two"), "{tree}");
    env.run(&["snapshot", "verify", "a@one"]).success();
    env.run(&["fork", "a@two", "--name", "late"]).success();
    assert_eq!(python(&env, "late", "print(x)").stdout, "2\n");
    env.finish();
}

#[test]
fn restored_clone_has_new_entropy_and_machine_id() {
    renewed_copies(TestEnv::new());
}

pub fn renewed_copies(env: TestEnv) {
    start(&env, "a");
    python(&env, "a", "import random, ssl, uuid; random.random()");
    let js = "const c = require('crypto'); c.randomUUID(); Math.random(); 0";
    env.run(&["exec", "a", "--context", "js", "--lang", "javascript", "-c", js]).success();
    env.run(&["fork", "a", "--count", "4"]).success();
    let mut seen: Vec<BTreeSet<String>> = vec![BTreeSet::new(); 9];
    for fork in ["a-1", "a-2", "a-3", "a-4"] {
        let code = "print(random.random()); print(ssl.RAND_bytes(16).hex()); print(uuid.uuid4())";
        let python = python(&env, fork, code).stdout;
        let code = "console.log(c.randomBytes(16).toString('hex')); console.log(c.randomUUID()); \
                    console.log(Math.random())";
        let js =
            env.run(&["exec", fork, "--context", "js", "--lang", "javascript", "-c", code]).success().stdout;
        let machine = shell(&env, fork, "cat /etc/machine-id");
        let hostname = shell(&env, fork, "hostname");
        assert_eq!(hostname, fork);
        let urandom = shell(&env, fork, "head -c16 /dev/urandom | od -An -tx1");
        let values = python.lines().map(str::to_owned).chain(js.lines().map(str::to_owned));
        let values: Vec<String> = values.chain([machine, hostname, urandom]).collect();
        assert_eq!(values.len(), seen.len(), "{python} {js}");
        for (set, value) in seen.iter_mut().zip(values) {
            set.insert(value);
        }
    }
    let names = [
        "random.random",
        "ssl.RAND_bytes",
        "uuid4",
        "randomBytes",
        "randomUUID",
        "Math.random",
        "machine-id",
        "hostname",
        "/dev/urandom",
    ];
    for (name, set) in names.iter().zip(&seen) {
        assert_eq!(set.len(), 4, "{name} repeats among forks: {set:?}");
    }
    env.finish();
}

#[test]
fn clock_after_restore() {
    let env = TestEnv::new();
    start(&env, "a");
    // The guest believes it is hours ago when its state is taken, as a snapshot that waited for hours does.
    shell(&env, "a", "date -s @$(( $(date +%s) - 18000 )) >/dev/null");
    env.run(&["snapshot", "a", "old"]).success();
    env.run(&["fork", "a@old", "--name", "late"]).success();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let before = now();
    let guest: f64 = shell(&env, "late", "date +%s.%N").parse().expect("seconds");
    assert!(guest > before - 0.05 && guest < now() + 0.05, "the guest says {guest}, the host {before}");
    env.finish();
}

#[test]
fn a_suspended_vm_has_no_process_and_continues_where_it_was() {
    let env = TestEnv::new();
    start(&env, "a");
    python(&env, "a", "x=41");
    let machine = shell(&env, "a", "cat /etc/machine-id");
    env.run(&["suspend", "a"]).success();
    assert_eq!(vm(&env, "a")["state"], "suspended");
    assert!(!env.processes().iter().any(|p| p.command_line.contains("qemu-system")), "no process is left");
    env.run(&["resume", "a"]).success();
    assert_eq!(python(&env, "a", "x+=1; print(x)").stdout, "42\n");
    assert_eq!(shell(&env, "a", "cat /etc/machine-id"), machine, "the same machine");
    env.finish();
}

#[test]
fn a_forked_exec_goes_on_in_the_source_and_its_streams_stay_open() {
    let env = TestEnv::new();
    start(&env, "a");
    let counting =
        env.spawn(&["exec", "a", "--", "sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done"]);
    env.run(&["fork", "a", "--count", "2"]).success();
    let out = counting.child.wait_with_output().expect("the exec ends");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "1\n2\n3\n4\n5\n6\n");
    env.finish();
}
