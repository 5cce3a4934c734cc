//! An idle VM is moved to a fresh base: its snapshots become small, and nobody in it can tell.

use crate::{events, vm};
use offshoot_testkit::{TestEnv, wait_for};
use std::time::Duration;

const MOVED: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

/// What a snapshot of it would copy.
#[track_caller]
fn own_memory(env: &TestEnv) -> u64 {
    vm(env, "a")["usage"]["own_memory_bytes"].as_u64().expect("a VM that runs has memory of its own")
}

#[track_caller]
fn python(env: &TestEnv, code: &str) -> String {
    env.run(&["exec", "a", "--context", "main", "-c", code]).success().stdout.trim().to_owned()
}

#[track_caller]
fn console(env: &TestEnv) -> String {
    env.run(&["logs", "a", "--console"]).success().stdout
}

#[track_caller]
fn identity(env: &TestEnv) -> String {
    let script =
        "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; sha256sum /kept; pgrep -x sleep";
    env.run(&["exec", "a", "--", "sh", "-c", script]).success().stdout
}

#[test]
fn an_idle_vm_goes_on_over_a_fresh_base_and_nobody_in_it_can_tell() {
    let env = TestEnv::with_rebase_idle("2s");
    env.run(&["create", "a", "--start"]).success();
    env.run(&["exec", "a", "--", "sh", "-c", "head -c 3000000 /dev/urandom >/kept"]).success();
    env.run(&["exec", "a", "--", "sh", "-c", "nohup sleep 100000 >/dev/null 2>&1 &"]).success();
    let seeded = "import random, time; random.seed(42); first = random.random(); began = time.time()";
    python(&env, &format!("{seeded}; data = bytes(range(256)) * 1000"));
    let (before, had) = (vm(&env, "a"), own_memory(&env));
    assert!(had > 40 * MIB, "it booted, and has all it touched: {had}");
    let (was, said) = (identity(&env), console(&env));
    let moves = || events(&env, "a").iter().filter(|event| event["event"] == "rebased").count();
    // Reading its events is no use of it.
    wait_for("it to be moved", MOVED, || moves() == 1);

    let (after, has) = (vm(&env, "a"), own_memory(&env));
    assert!(has < had / 4, "{has} of {had}");
    assert_eq!(after["generation"].as_u64(), before["generation"].as_u64().map(|was| was + 1));
    for same in ["id", "state", "started_at", "position", "attestations", "last_start"] {
        assert_eq!(after[same], before[same], "{same}");
    }
    assert_eq!(identity(&env), was, "names, files, and the process in the background");
    // Seeded with 42, Python's second and third numbers are these: nobody drew one, and nobody seeded anew.
    assert_eq!(
        python(&env, "random.random(), random.random()"),
        "(0.025010755222666936, 0.27502931836911926)"
    );
    assert_eq!(python(&env, "data == bytes(range(256)) * 1000, time.time() > began"), "(True, True)");
    assert!(!said.is_empty() && console(&env).starts_with(&said), "what it said since its boot can be read");

    // A snapshot of it is small, and complete without the process; so is all that follows from it.
    let small = env.run(&["snapshot", "a", "small", "--json"]).success().json();
    assert!(small["size_bytes"].as_u64().expect("a size") < 32 * MIB, "{small}");
    env.run(&["snapshot", "verify", "a@small"]).success();
    env.kill_daemon();
    env.run(&["exec", "a", "--", "rm", "/kept"]).success();
    env.run(&["rollback", "a", "a@small"]).success();
    assert_eq!(identity(&env), was);
    env.run(&["fork", "a@small", "--name", "b"]).success();
    let forked = env.run(&["exec", "b", "--context", "main", "-c", "len(data)"]).success();
    assert_eq!(forked.stdout.trim(), "256000");
    env.finish();
}
