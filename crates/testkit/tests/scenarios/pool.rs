//! The warm pool as a user meets it: the second VM does not boot, and shares nothing with the first.

use crate::vm;
use offshoot_testkit::{TestEnv, wait_for};
use serde_json::Value;
use std::{collections::BTreeSet, time::Duration};

/// For a template to be made and an instance after it, on a host that is busy.
const WARM: Duration = Duration::from_secs(120);

#[track_caller]
fn shelf(env: &TestEnv) -> Value {
    let status = env.run(&["status", "--json"]).success().json();
    status["daemon"]["pool"]["shelves"][0].clone()
}

#[track_caller]
fn wait_until_ready(env: &TestEnv) {
    wait_for("the pool to have an instance", WARM, || shelf(env)["ready"] == 1);
}

/// What no two machines share, a line each.
#[track_caller]
fn identity(env: &TestEnv, name: &str) -> Vec<String> {
    let script = "cat /etc/machine-id; hostname; head -c16 /dev/urandom | od -An -tx1";
    let said = env.run(&["exec", name, "--", "sh", "-c", script]).success().stdout;
    said.lines().map(str::to_owned).collect()
}

#[track_caller]
fn vmms(env: &TestEnv) -> usize {
    env.processes().iter().filter(|process| process.command_line.contains("qemu-system")).count()
}

#[test]
fn vms_after_the_first_are_claimed_and_share_nothing() {
    let env = TestEnv::with_pool(1);
    env.run(&["run", "--", "true"]).success();
    wait_until_ready(&env);
    let said = env.run(&["run", "--", "hostname"]).success();
    assert!(!said.stdout.trim().is_empty(), "{said}");
    let first = shelf(&env);
    assert_eq!((&first["claimed"], &first["missed"]), (&1.into(), &1.into()), "{first}");

    let mut seen = BTreeSet::new();
    for name in ["a", "b"] {
        wait_until_ready(&env);
        env.run(&["create", name, "--start"]).success();
        let claimed = vm(&env, name);
        assert_eq!(claimed["last_start"]["from"], "pool", "{claimed}");
        assert_eq!(claimed["attestations"]["hostname"], name, "{claimed}");
        let identity = identity(&env, name);
        assert_eq!(identity[1], name);
        assert!(identity.iter().all(|line| seen.insert(line.clone())), "{identity:?} beside {seen:?}");
        env.run(&["exec", name, "--context", "main", "-c", "x = 41"]).success();
    }
    assert!(
        env.run(&["context", "list", "a", "--json"]).success().json()["contexts"]
            .as_array()
            .is_some_and(|contexts| contexts.len() == 1)
    );
    // They are VMs like any other.
    env.run(&["fork", "a"]).success();
    assert_eq!(env.run(&["exec", "a-1", "--context", "main", "-c", "x + 1"]).success().stdout.trim(), "42");
    env.run(&["exec", "b", "--", "sh", "-c", "echo kept >/kept && sync"]).success();
    env.run(&["restart", "b"]).success();
    assert_eq!(env.run(&["exec", "b", "--", "cat", "/kept"]).success().stdout, "kept\n");
    assert_eq!(vm(&env, "b")["last_start"]["from"], "boot");

    wait_until_ready(&env);
    assert_eq!(vmms(&env), 4, "a, a-1, b and an instance");
    env.kill_daemon();
    assert_eq!(env.run(&["exec", "a", "--", "hostname"]).success().stdout, "a\n");
    wait_for("the instance that nobody claimed to be gone", Duration::from_secs(30), || vmms(&env) == 3);
    env.finish();
}
