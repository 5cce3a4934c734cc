//! From create to destroy, and what may not be done in between.

use crate::{await_state, events, states, vm, vmm};
use offshoot_testkit::TestEnv;
use std::time::Duration;

#[test]
fn scenario_1_complete_lifecycle() {
    let env = TestEnv::new();
    env.run(&["create", "a"]).success().prints("a\n");
    assert_eq!(vm(&env, "a")["state"], "stopped");
    env.run(&["start", "a"]).success();
    let running = vm(&env, "a");
    assert_eq!(running["state"], "running");
    assert_eq!(running["guest"]["health"], "responsive");
    env.run(&["exec", "a", "--", "true"]).success();
    env.run(&["stop", "a"]).success();
    assert_eq!(vm(&env, "a")["state"], "stopped");

    let events = events(&env, "a");
    assert_eq!(states(&events), ["creating", "stopped", "starting", "running", "stopping", "stopped"]);
    let generations: Vec<u64> = events.iter().filter_map(|e| e["generation"].as_u64()).collect();
    assert!(generations.is_sorted_by(|a, b| a < b), "each move bumps the generation: {generations:?}");
    for event in events.iter().filter(|e| e["event"] == "state-changed") {
        assert!(!event["reason"].as_str().unwrap_or_default().is_empty(), "each move has a reason: {event}");
        assert_ne!(event["from"], event["to"], "never X to X");
    }
    env.run(&["destroy", "a"]).success();
    env.run(&["status", "a"]).exits(3);
    env.finish();
}

#[test]
fn scenario_2_restart_keeps_id_and_disk_and_loses_memory() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let before = vm(&env, "a");
    env.run(&["exec", "a", "--", "sh", "-c", "echo kept >/workspace/file; echo lost >/dev/shm/file"])
        .success();
    env.run(&["restart", "a"]).success();
    let after = vm(&env, "a");
    assert_eq!(before["id"], after["id"]);
    assert!(after["generation"].as_u64() > before["generation"].as_u64());
    assert_ne!(before["started_at"], after["started_at"]);
    env.run(&["exec", "a", "--", "cat", "/workspace/file"]).success().prints("kept\n");
    env.run(&["exec", "a", "--", "cat", "/dev/shm/file"]).exits(1);
    // L8: a stop leaves the data disk's journal clean.
    let console = env.run(&["logs", "a", "--console"]).success();
    assert!(!console.stdout.contains("recovery complete"), "clean_stop_leaves_clean_journal: {console}");
    env.finish();
}

#[test]
fn pause_stops_the_guests_clock_of_work_and_resume_goes_on() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    env.run(&["pause", "a"]).success();
    assert_eq!(vm(&env, "a")["state"], "paused");
    env.run(&["exec", "a", "--", "true"]).exits(125).stderr_has("resume");
    env.run(&["resume", "a"]).success();
    env.run(&["exec", "a", "--", "true"]).success();
    env.run(&["pause", "a"]).success();
    env.run(&["stop", "a"]).success();
    assert_eq!(vm(&env, "a")["state"], "stopped");
    env.finish();
}

#[test]
fn wrong_states_say_the_state_and_what_to_do() {
    let env = TestEnv::new();
    env.run(&["create", "a"]).success();
    env.run(&["pause", "a"]).exits(4).stderr_has("stopped");
    env.run(&["exec", "a", "--", "true"]).exits(125).stderr_has("offshoot start a");
    // Already there is success: asking twice is not an error.
    env.run(&["stop", "a"]).success();
    env.run(&["start", "a"]).success();
    env.run(&["start", "a"]).success();
    env.run(&["resume", "a"]).success();
    env.finish();
}

#[test]
fn scenario_18_a_vmm_killed_from_outside_is_noticed() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let before = vm(&env, "a");
    let process = vmm(&env, before["id"].as_str().expect("an id"));
    assert!(process.kill());
    let failed = await_state(&env, "a", "failed", Duration::from_secs(2));
    let reason = failed["failure"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("signal 9") || reason.contains("SIGKILL"), "the signal is named: {failed}");
    env.run(&["exec", "a", "--", "true"]).exits(125);
    // Failed is recoverable.
    env.run(&["start", "a"]).success();
    env.run(&["exec", "a", "--", "true"]).success();
    env.finish();
}

#[test]
fn a_guest_that_powers_itself_off_is_stopped_and_a_panic_is_a_failure() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    // reboot(2) with LINUX_REBOOT_CMD_POWER_OFF: the guest ends itself, so its exec ends without a status.
    let power_off = "import ctypes, os; os.sync(); ctypes.CDLL(None).reboot(0x4321fedc)";
    env.run(&["exec", "--timeout", "10s", "a", "--", "python3", "-c", power_off]).exits(125);
    await_state(&env, "a", "stopped", Duration::from_secs(15));
    env.run(&["start", "a"]).success();
    let _ = env.run(&[
        "exec",
        "--timeout",
        "10s",
        "a",
        "--",
        "sh",
        "-c",
        "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger",
    ]);
    let failed = await_state(&env, "a", "failed", Duration::from_secs(15));
    assert!(failed["failure"]["reason"].as_str().unwrap_or_default().contains("panic"), "{failed}");
    env.finish();
}

#[test]
fn scenario_22_an_existing_name_is_refused_and_the_first_untouched() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--memory", "320M"]).success();
    let before = vm(&env, "a");
    env.run(&["create", "a", "--memory", "512M"]).exits(4).stderr_has("`a`");
    assert_eq!(before, vm(&env, "a"));
    // Names that look alike do not collide.
    env.run(&["create", "a-b"]).success();
    env.run(&["create", "a_b"]).success();
    env.finish();
}

#[test]
fn scenario_23_unknown_names_exit_3_with_the_nearest_and_no_effect() {
    let env = TestEnv::new();
    env.run(&["create", "webserver"]).success();
    for verb in ["start", "stop", "restart", "pause", "resume", "status", "logs", "wait"] {
        let out = env.run(&[verb, "webserve"]).exits(3);
        assert!(out.stderr.contains("webserver"), "the nearest name is suggested: {out}");
    }
    env.run(&["destroy", "webserve", "--yes"]).exits(3);
    env.run(&["cp", "webserve:/etc/hostname", "x"]).exits(3);
    assert_eq!(vm(&env, "webserver")["state"], "stopped");
    env.finish();
}

#[test]
fn bad_names_and_sizes_are_usage_errors() {
    let env = TestEnv::new();
    for name in ["A", "-a", "a/b", "..", "a b", "é"] {
        env.run(&["create", "--", name]).exits(2);
    }
    for memory in ["0", "1M", "999999G", "lots"] {
        env.run(&["create", "a", "--memory", memory]).exits(2);
    }
    env.run(&["create", "a", "--cpus", "0"]).exits(2);
    env.run(&["create", "a", "--provider", "docker"]).exits(2).stderr_has("docker");
    env.run(&["create", "a", "--image", "../../etc"]).exits(2);
    env.run(&["create", "a", "--image", "nope"]).exits(3).stderr_has("offshoot image build nope");
    assert_eq!(env.run(&["list", "--json"]).json()["vms"].as_array().map(Vec::len), Some(0));
    env.finish();
}

#[test]
fn a_provider_that_is_not_there_is_refused_by_name() {
    let env = TestEnv::new();
    // Its daemon finds neither.
    for provider in ["gvisor", "qemu"] {
        let create = ["create", "a", "--provider", provider];
        let out = env.run_adjusted(&create, |command| {
            command.env("PATH", env.work_dir());
        });
        out.exits(8).stderr_has(provider);
    }
    assert_eq!(env.run(&["list", "--json"]).json()["vms"].as_array().map(Vec::len), Some(0));
    env.finish();
}

#[test]
fn isolation_is_a_minimum_and_never_lowered() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--isolation", "user-space-kernel", "--start"]).success();
    let class = vm(&env, "a")["isolation"].as_str().expect("a class").to_owned();
    let out = env.run(&["create", "b", "--isolation", "hardware-vm", "--start"]);
    if class == "hardware-vm" {
        out.success();
    } else {
        out.exits(8).stderr_has("hardware-vm");
    }
    env.finish();
}
