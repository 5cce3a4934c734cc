//! What is written down, and whose it is.

use crate::{await_state, vm, vmm};
use offshoot_testkit::{TestEnv, wait_for};
use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

#[test]
fn scenario_5_a_new_daemon_adopts_running_vms_and_sees_dead_ones() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    env.run(&["create", "b", "--start"]).success();
    env.run(&["exec", "a", "--", "sh", "-c", "echo here >/dev/shm/memory"]).success();
    let (a, b) = (vm(&env, "a"), vm(&env, "b"));
    let process = vmm(&env, a["id"].as_str().expect("an id"));
    env.kill_daemon();
    assert!(process.is_alive(), "the VM lives on without a daemon");
    assert!(vmm(&env, b["id"].as_str().expect("an id")).kill());

    assert_eq!(vm(&env, "a")["state"], "running");
    assert_eq!(vm(&env, "a")["generation"], a["generation"], "adoption is not a move");
    assert!(process.is_alive(), "undisturbed");
    env.run(&["exec", "a", "--", "cat", "/dev/shm/memory"]).success().prints("here\n");
    await_state(&env, "b", "failed", Duration::from_secs(2));
    env.run(&["start", "b"]).success();
    env.finish();
}

#[test]
fn an_exec_survives_the_daemon_and_is_taken_up_again() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let mut session = env.spawn(&[
        "exec",
        "a",
        "--",
        "sh",
        "-c",
        "echo begun >/workspace/log; sleep 4; echo done >>/workspace/log",
    ]);
    wait_for("the exec to begin", Duration::from_secs(10), || {
        env.run(&["exec", "a", "--", "cat", "/workspace/log"]).stdout == "begun\n"
    });
    env.kill_daemon();
    let status = session.child.wait().expect("the client ends");
    assert_eq!(status.code(), Some(125), "a client without its daemon says so");
    wait_for("the process in the guest to finish", Duration::from_secs(15), || {
        env.run(&["exec", "a", "--", "cat", "/workspace/log"]).stdout == "begun\ndone\n"
    });
    env.finish();
}

#[test]
fn scenario_6_configuration_persists_across_daemons() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--memory", "384M", "--cpus", "2", "--disk", "3G"]).success();
    let before = vm(&env, "a");
    assert_eq!(
        (&before["memory_mib"], &before["cpus"], &before["disk_mib"]),
        (&384.into(), &2.into(), &3072.into())
    );
    env.run(&["daemon", "stop"]).success();
    assert_eq!(before, vm(&env, "a"));
    env.kill_daemon();
    assert_eq!(before, vm(&env, "a"));
    env.finish();
}

#[test]
fn scenario_8_processes_are_known_by_more_than_a_pid() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let record = vm(&env, "a");
    let id = record["id"].as_str().expect("an id");
    let keeper = find_file(&env.state_dir().join("vms").join(id.replace('-', "")), "keeper.json");
    let mut identity: serde_json::Value =
        serde_json::from_slice(&fs::read(&keeper).expect("read keeper.json")).expect("keeper.json is JSON");
    env.kill_daemon();
    // The record now names a stranger: this very test process, alive, but started at another time.
    let vmm = vmm(&env, id);
    let keeper_process =
        env.processes().into_iter().find(|p| p.command_line.contains(" keeper ")).expect("a keeper");
    assert!(keeper_process.kill(), "the keeper dies");
    wait_for("the VMM to die with its keeper", Duration::from_secs(5), || !vmm.is_alive());
    replace_pid(&mut identity, std::process::id());
    fs::write(&keeper, identity.to_string()).expect("rewrite keeper.json");
    await_state(&env, "a", "failed", Duration::from_secs(5));
    // pid_reuse_does_not_kill_stranger: we are still here to say so.
    env.run(&["destroy", "a"]).success();
    env.finish();
}

fn replace_pid(value: &mut serde_json::Value, pid: u32) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, inner) in map {
                if key == "pid" { *inner = pid.into() } else { replace_pid(inner, pid) }
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| replace_pid(item, pid)),
        _ => {}
    }
}

fn find_file(dir: &std::path::Path, name: &str) -> std::path::PathBuf {
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_name() == name {
                return entry.path();
            }
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    panic!("no {name} below {}", dir.display())
}

#[test]
fn scenario_9_the_state_directory_is_private_and_strangers_in_it_are_reported() {
    let env = TestEnv::new();
    env.run(&["create", "a-b", "--start"]).success();
    env.run(&["create", "a_b"]).success();
    for dir in [env.state_dir(), env.state_dir().join("vms")] {
        let mode = fs::metadata(&dir).expect("the directory exists").mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} is {mode:o}", dir.display());
    }
    let mut sockets = Vec::new();
    let mut pending = vec![env.runtime_dir()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).expect("list the runtime directory").filter_map(Result::ok) {
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                assert_eq!(
                    entry.metadata().expect("metadata").permissions().mode() & 0o077,
                    0,
                    "{:?}",
                    entry.path()
                );
                pending.push(entry.path());
            } else {
                sockets.push(entry.path());
            }
        }
    }
    let api = sockets.iter().find(|p| p.ends_with("offshoot.sock")).expect("the API socket");
    assert_eq!(fs::metadata(api).expect("metadata").permissions().mode() & 0o777, 0o600);
    // A file that is not ours is reported and kept.
    let stray = env.state_dir().join("vms/notes.txt");
    fs::write(&stray, "mine").expect("write a stray file");
    env.run(&["daemon", "stop"]).success();
    let doctor = env.run(&["doctor", "--json"]);
    assert!(doctor.stdout.contains("notes.txt"), "{doctor}");
    assert_eq!(fs::read_to_string(&stray).expect("still there"), "mine");
    fs::remove_file(&stray).expect("remove it");
    env.finish();
}

#[test]
fn scenario_10_concurrent_verbs_on_one_vm_are_linearisable() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let verbs: [&[&str]; 5] = [
        &["start", "a"],
        &["pause", "a"],
        &["resume", "a"],
        &["exec", "a", "--", "true"],
        &["status", "a", "--json"],
    ];
    let over = AtomicBool::new(false);
    let (env_ref, over_ref) = (&env, &over);
    std::thread::scope(|scope| {
        // An exec that began before somebody else's pause goes on when the VM does.
        scope.spawn(move || {
            while !over_ref.load(Ordering::Relaxed) {
                env_ref.run(&["resume", "a"]);
            }
        });
        let tasks: Vec<_> =
            (0..50).map(|i| scope.spawn(move || env_ref.run(verbs[i % verbs.len()]))).collect();
        let results: Vec<_> = tasks.into_iter().map(|task| task.join().expect("no panic")).collect();
        over.store(true, Ordering::Relaxed);
        for out in results {
            let code = out.code.expect("no signal");
            assert!([0, 4, 125].contains(&code), "succeeds or names the state that refused it: {out}");
            if code != 0 {
                assert!(out.stderr.contains("paused") || out.stderr.contains("state"), "{out}");
            }
        }
    });
    env.run(&["resume", "a"]).success();
    env.run(&["exec", "a", "--", "true"]).success();
    env.finish();
}

#[test]
fn an_explicit_daemon_takes_over_from_an_autostarted_one_and_is_the_only_one() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let before = vm(&env, "a");
    let auto = env.daemon_pid().expect("an autostarted daemon");
    let mut explicit = env.spawn(&["serve"]);
    wait_for("the explicit daemon to serve", Duration::from_secs(10), || {
        env.daemon_pid().is_some_and(|pid| pid != auto)
    });
    assert_eq!(vm(&env, "a")["generation"], before["generation"], "the VM was handed over");
    env.run(&["exec", "a", "--", "true"]).success();
    env.run(&["serve"]).exits(4).stderr_has("already");
    env.run(&["destroy", "a", "--yes"]).success();
    env.run(&["daemon", "stop", "--vms"]).success();
    assert!(explicit.child.wait().expect("it ends").success());
    env.finish();
}

#[test]
fn no_autostart_refuses_with_a_hint() {
    let env = TestEnv::new();
    env.run(&["--no-autostart", "list"]).exits(8).stderr_has("offshoot serve");
    assert!(env.daemon_pid().is_none());
    env.finish();
}

#[test]
fn a_daemon_started_with_another_runtime_directory_is_found_by_its_record() {
    let env = TestEnv::new();
    env.run(&["create", "a"]).success();
    let daemon = env.daemon_pid();
    let elsewhere = env.work_dir().join("run");
    fs::DirBuilder::new().mode(0o700).create(&elsewhere).expect("make another runtime directory");
    let out = env.run_adjusted(&["status", "a", "--json"], |command| {
        command.env("XDG_RUNTIME_DIR", &elsewhere);
    });
    assert_eq!(out.success().json()["state"], "stopped");
    assert_eq!(env.daemon_pid(), daemon, "no second daemon was started");
    env.finish();
}
