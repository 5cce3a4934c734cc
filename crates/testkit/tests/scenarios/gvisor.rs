//! What holds for virtual machines holds for gVisor's sandboxes: the same scenarios, by a daemon that prefers them.

use crate::{await_state, branch, crash::assert_consistent};
use offshoot_testkit::{TestEnv, wait_for};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

#[test]
fn the_transcript_of_branching_is_true_on_gvisor() {
    if let Some(env) = TestEnv::on_gvisor() {
        branch::transcript(env);
    }
}

#[test]
fn a_transaction_cut_by_the_death_of_the_daemon_is_found_rolled_back_on_gvisor() {
    if let Some(env) = TestEnv::on_gvisor() {
        branch::cut_by_death(env);
    }
}

#[test]
fn restored_clone_has_new_entropy_and_machine_id_on_gvisor() {
    if let Some(env) = TestEnv::on_gvisor() {
        branch::renewed_copies(env);
    }
}

#[test]
fn snapshots_form_a_tree_and_rollback_goes_anywhere_in_it_on_gvisor() {
    if let Some(env) = TestEnv::on_gvisor() {
        branch::tree(env);
    }
}

/// Kills the kernel of a VM's sandbox.
fn kill_kernel(env: &TestEnv, name: &str) {
    let id = crate::vm(env, name)["id"].as_str().expect("an id").replace('-', "");
    let sandbox = format!("{}-g", &id[20..]);
    let own = |p: &&offshoot_testkit::Process| {
        p.command_line.contains("runsc-sandbox") && p.command_line.contains(&sandbox)
    };
    assert!(env.processes().iter().find(own).expect("its sandbox runs").kill());
}

/// Nothing else of the sandbox outlives its kernel: no process, no directory, no control group.
#[test]
fn a_sandbox_whose_kernel_is_killed_leaves_nothing_and_starts_from_its_snapshot() {
    let Some(env) = TestEnv::on_gvisor() else { return };
    branch::start(&env, "a");
    branch::python(&env, "a", "x=41");
    env.run(&["snapshot", "a", "kept"]).success();
    kill_kernel(&env, "a");
    await_state(&env, "a", "failed", Duration::from_secs(60));
    env.run(&["rollback", "a", "a@kept"]).success();
    env.run(&["resume", "a"]).success();
    assert_eq!(branch::python(&env, "a", "x+=1; print(x)").stdout, "42\n");
    env.finish();
}

/// Everything a stop is to keep, and what it is not to bring back.
const WRITE: &str = "mkdir -p /srv/deep/er && echo content >/srv/deep/er/file && ln /srv/deep/er/file /srv/again && \
    ln -s ../nowhere /srv/link && mkfifo /srv/pipe && rm /etc/issue && rm -r /usr/share/doc && mkdir /usr/share/doc && \
    echo new >/usr/share/doc/new && chmod 700 /var/lib && chown 1234:4321 /srv/again && chmod 4755 /srv/again && \
    touch -d @5 /srv/deep/er && head -c 3000000 /dev/urandom >/srv/noise && truncate -s 1G /srv/sparse && \
    echo kept >/tmp/kept && echo kept >/dev/shm/gone && echo kept >/run/gone && sync";
/// What is to be the same afterwards.
const LOOK: &str = "cd /srv; cat deep/er/file; readlink link; test -p pipe && echo pipe; ls /usr/share/doc; \
    stat -c '%n %a %u %g %s %h' again deep/er/file noise sparse /var/lib; stat -c %Y deep/er; sha256sum noise; cat /tmp/kept; \
    test -e /etc/issue || echo no issue; ls -d /dev/shm/gone /run/gone 2>/dev/null | wc -l";

#[test]
fn a_stopped_sandbox_has_its_files_when_it_is_started_again() {
    let Some(env) = TestEnv::on_gvisor() else { return };
    branch::start(&env, "a");
    branch::shell(&env, "a", WRITE);
    let before = branch::shell(&env, "a", LOOK);
    for needle in ["content", "pipe", "1234", "4755", "no issue", "new", "1073741824"] {
        assert!(before.contains(needle), "{needle}: {before}");
    }
    env.run(&[
        "exec",
        "a",
        "--detach",
        "--",
        "sh",
        "-c",
        "trap 'echo asked >/srv/asked; exit' TERM; sleep 1000 & wait",
    ])
    .success();
    env.run(&["stop", "a"]).success();
    await_state(&env, "a", "stopped", Duration::from_secs(10));
    assert!(!env.processes().iter().any(|p| p.command_line.contains("runsc")), "its processes are gone");
    env.kill_daemon();
    env.run(&["start", "a"]).success();
    // What lies in file systems of the kernel's own is gone, as on any machine.
    let expected = format!("{}0", before.strip_suffix('2').expect("both were there"));
    assert_eq!(branch::shell(&env, "a", LOOK), expected);
    assert_eq!(branch::shell(&env, "a", "cat /srv/asked"), "asked", "programs were asked to end");
    // It is a machine like before: states of it are taken, and gone back to.
    branch::python(&env, "a", "x=41");
    env.run(&["snapshot", "a", "kept"]).success();
    branch::shell(&env, "a", "echo later >/srv/later; rm /srv/deep/er/file");
    env.run(&["restart", "a"]).success();
    assert_eq!(
        branch::shell(&env, "a", "cat /srv/later; test -e /srv/deep/er/file || echo gone"),
        "later\ngone"
    );
    env.run(&["rollback", "a", "a@kept"]).success();
    assert_eq!(branch::python(&env, "a", "x+=1; print(x)").stdout, "42\n");
    assert_eq!(branch::shell(&env, "a", LOOK), expected);
    env.run(&["stop", "a"]).success();
    // Of a stopped one there is no state to copy.
    env.run(&["snapshot", "a", "disk"]).stderr_has("no disk to take a snapshot of");
    env.run(&["start", "a"]).success();
    assert_eq!(branch::shell(&env, "a", "cat /srv/deep/er/file"), "content");
    kill_kernel(&env, "a");
    await_state(&env, "a", "failed", Duration::from_secs(60));
    env.run(&["start", "a"]).stderr_has("rollback");
    env.run(&["destroy", "a", "--yes", "--snapshots"]).success();
    env.finish();
}

#[test]
fn a_daemon_killed_while_a_sandbox_is_stopped_loses_nothing() {
    let Some(env) = TestEnv::on_gvisor() else { return };
    branch::start(&env, "a");
    branch::shell(&env, "a", "head -c 12000000 /dev/urandom >/srv/noise; sync");
    let sum = branch::shell(&env, "a", "sha256sum /srv/noise");
    for delay in [50, 300, 600, 1000, 1500, 2500].map(Duration::from_millis) {
        let mut session = env.spawn(&["stop", "a"]);
        let end = Instant::now() + delay;
        wait_for("the moment to strike", delay + Duration::from_secs(5), || Instant::now() >= end);
        env.kill_daemon();
        let _ = session.child.kill();
        session.child.wait().expect("the client ends");
        assert_consistent(&env);
        env.run(&["start", "a"]).success();
        assert_eq!(branch::shell(&env, "a", "sha256sum /srv/noise"), sum, "{delay:?}");
    }
    env.run(&["destroy", "a", "--yes"]).success();
    env.finish();
}

/// The archive of a stopped VM.
fn archives(env: &TestEnv) -> Vec<PathBuf> {
    let vms = std::fs::read_dir(env.state_dir().join("vms")).expect("a directory of VMs").flatten();
    let files = vms.filter_map(|vm| std::fs::read_dir(vm.path()).ok()).flat_map(|files| files.flatten());
    files.map(|file| file.path()).filter(|path| path.to_string_lossy().contains("/disk-")).collect()
}

#[test]
fn a_sandbox_is_not_stopped_while_the_host_has_no_room_for_its_files() {
    let Some(able) = TestEnv::on_gvisor() else { return };
    able.finish();
    let mut env = TestEnv::with_small_disk("64m");
    env.set_provider("gvisor");
    branch::start(&env, "a");
    branch::shell(&env, "a", "head -c 100000000 /dev/urandom >/srv/noise");
    let sum = branch::shell(&env, "a", "sha256sum /srv/noise");
    let python = branch::python(&env, "a", "x=41");
    assert_eq!(python.stdout, "");
    env.run(&["stop", "a"]).stderr_has("runs on").exits(7);
    assert_eq!(branch::shell(&env, "a", "sha256sum /srv/noise"), sum);
    assert_eq!(branch::python(&env, "a", "x+=1; print(x)").stdout, "42\n", "nothing of it was ended");
    assert!(archives(&env).is_empty());
    branch::shell(&env, "a", "rm /srv/noise; echo small >/srv/small");
    env.run(&["stop", "a"]).success();
    let [archive] = archives(&env).try_into().expect("one archive");
    let whole = std::fs::read(&archive).expect("the archive is readable");
    let mut bad = whole.clone();
    *bad.last_mut().expect("it is not empty") ^= 1;
    std::fs::write(&archive, bad).expect("the archive is writable");
    env.run(&["start", "a"]).stderr_has("damaged").exits(8);
    std::fs::write(&archive, whole).expect("the archive is writable");
    env.run(&["start", "a"]).success();
    assert_eq!(branch::shell(&env, "a", "cat /srv/small"), "small");
    env.run(&["destroy", "a", "--yes"]).success();
    env.finish();
}
