//! Daemons that verbs start, and how they make room for others.

use crate::{Ended, Home};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

/// A home whose daemons have something to boot VMs with; none is booted here.
struct Place {
    home: Home,
}

impl Place {
    fn new() -> Self {
        let home = Home::new();
        // The smallest program that could be an agent: an ELF header with one program header.
        let mut agent = vec![0_u8; 64 + 56];
        agent[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (agent[18], agent[32], agent[54], agent[56], agent[64]) = (62, 64, 56, 1, 1);
        fs::write(home.dir.path().join("agent"), agent).expect("write the agent");
        Self { home }
    }

    fn run(&self, words: &[&str]) -> Ended {
        Home::end(self.command(words))
    }

    fn command(&self, words: &[&str]) -> std::process::Command {
        let mut command = self.home.command(words);
        command.env("OFFSHOOT_GUEST_BIN", self.home.dir.path().join("agent"));
        command
    }

    fn daemon(&self) -> serde_json::Value {
        self.run(&["daemon", "status", "--json"]).json()
    }

    /// An explicit daemon, once it serves.
    fn serve(&self) -> Child {
        let child = self.command(&["serve"]).stderr(Stdio::null()).spawn().expect("it starts");
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.daemon()["pid"].as_u64() != Some(child.id().into()) {
            assert!(Instant::now() < deadline, "the explicit daemon does not serve");
        }
        child
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.run(&["daemon", "stop"]);
    }
}

#[test]
fn verbs_at_once_start_one_daemon_between_them() {
    let place = Place::new();
    let ended: Vec<Ended> = std::thread::scope(|scope| {
        let verbs: Vec<_> = (0..6).map(|_| scope.spawn(|| place.run(&["list", "--json"]))).collect();
        verbs.into_iter().map(|verb| verb.join().expect("no panic")).collect()
    });
    for one in &ended {
        assert_eq!((one.status, one.stderr.as_str()), (0, ""), "{}", one.stdout);
        assert_eq!(one.json()["vms"].as_array().map(Vec::len), Some(0));
    }
    let daemon = place.daemon();
    assert_eq!((daemon["running"].as_bool(), daemon["mode"].as_str()), (Some(true), Some("autostarted")));
    let pid = daemon["pid"].as_u64().expect("a process id");
    let words = fs::read(format!("/proc/{pid}/cmdline")).expect("it lives");
    let line = String::from_utf8_lossy(&words).replace('\0', " ");
    assert!(line.contains("offshoot serve"), "{line}");
    assert!(line.contains(&place.home.state_dir().display().to_string()), "{line}");
    let log = fs::read_to_string(place.home.state_dir().join("daemon.log")).expect("it has a log");
    assert_eq!(log.matches("ready").count(), 1, "one daemon became ready:\n{log}");
}

#[test]
fn a_stopped_daemon_is_gone_when_the_verb_returns() {
    let place = Place::new();
    assert_eq!(place.run(&["list"]).status, 0);
    let pid = place.daemon()["pid"].as_u64().expect("a process id");
    assert_eq!(place.run(&["daemon", "stop"]).status, 0);
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "it still runs: {state}");
    assert_eq!(place.daemon()["running"].as_bool(), Some(false));
}

#[test]
fn an_explicit_daemon_takes_over_and_a_second_one_is_refused() {
    let place = Place::new();
    assert_eq!(place.run(&["create", "web"]).status, 3, "there is no image, but now there is a daemon");
    assert_eq!(place.daemon()["mode"], "autostarted");
    let mut explicit = place.serve();
    assert_eq!(place.daemon()["mode"], "explicit");
    let second = place.run(&["serve"]);
    assert_eq!(second.status, 4, "{}", second.stderr);
    assert!(second.stderr.contains("runs already"), "{}", second.stderr);
    assert_eq!(place.run(&["daemon", "stop"]).status, 0);
    assert!(explicit.wait().expect("it ends").success());
}

#[test]
fn what_a_daemon_makes_is_private_whatever_the_umask() {
    let place = Place::new();
    let listing = place.command(&["list"]);
    let mut loose = std::process::Command::new("sh");
    loose.args(["-c", "umask 000; exec \"$0\" list"]).arg(listing.get_program()).env_clear();
    loose.envs(listing.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert_eq!(Home::end(loose).status, 0);
    for name in ["daemon.json", "daemon.log", "offshoot.db"] {
        let mode = fs::metadata(place.home.state_dir().join(name)).expect("it was made").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
    }
}

#[test]
fn an_explicit_daemon_takes_over_from_one_with_another_runtime_directory() {
    let place = Place::new();
    assert_eq!(place.run(&["list"]).status, 0);
    let mut command = place.command(&["serve"]);
    command.env("XDG_RUNTIME_DIR", place.home.dir.path().join("elsewhere")).stderr(Stdio::null());
    let mut explicit = command.spawn().expect("it starts");
    let deadline = Instant::now() + Duration::from_secs(20);
    while place.daemon()["pid"].as_u64() != Some(explicit.id().into()) {
        assert!(Instant::now() < deadline, "the explicit daemon does not serve");
    }
    assert_eq!(place.run(&["daemon", "stop"]).status, 0);
    assert!(explicit.wait().expect("it ends").success());
}
