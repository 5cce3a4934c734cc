//! Verbs that need no daemon, and the others where none may be started.

use crate::Home;
use std::{fs, os::unix::fs::PermissionsExt};

#[test]
fn without_leave_to_start_a_daemon_a_verb_says_what_to_do() {
    let home = Home::new();
    for line in [&["--no-autostart", "list"][..], &["list", "--no-autostart"]] {
        let ended = home.run(line);
        assert_eq!((ended.status, ended.stdout.as_str()), (8, ""));
        insta::assert_snapshot!("no_autostart", home.redact(&ended.stderr));
    }
    let json = home.run(&["list", "--no-autostart", "--json"]);
    assert_eq!((json.status, json.stderr.as_str()), (8, ""));
    assert_eq!(json.json()["code"], "unavailable");
    let run = home.run(&["--no-autostart", "run", "-c", "1"]);
    assert_eq!(run.status, 125, "{}", run.stderr);
}

#[test]
fn asking_for_the_daemon_starts_none() {
    let home = Home::new();
    let status = home.run(&["daemon", "status", "--json"]);
    assert_eq!((status.status, status.json()["running"].as_bool()), (0, Some(false)));
    let stop = home.run(&["daemon", "stop", "--json"]);
    assert_eq!((stop.status, stop.json()["stopped"].as_bool()), (0, Some(false)));
    assert!(!home.state_dir().exists());
}

#[test]
fn an_empty_variable_for_the_state_directory_is_none() {
    let home = Home::new();
    let mut command = home.command(&["daemon", "status"]);
    command.env("OFFSHOOT_HOME", "");
    let ended = Home::end(command);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains(".local/share/offshoot"), "{}", ended.stdout);
}

#[test]
fn a_daemon_that_cannot_start_passes_its_reason_on() {
    let home = Home::new();
    let script = home.dir.path().join("agent");
    fs::write(&script, "#!/bin/sh\n").expect("write what is no agent");
    let mut command = home.command(&["list", "--json"]);
    command.env("OFFSHOOT_GUEST_BIN", &script);
    let ended = Home::end(command);
    assert_eq!((ended.status, ended.stderr.as_str()), (8, ""), "{}", ended.stdout);
    let error = ended.json();
    assert_eq!(error["code"], "unavailable");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("OFFSHOOT_GUEST_BIN")), "{error}");
    let mode = |name: &str| {
        fs::metadata(home.state_dir().join(name)).expect("it was made").permissions().mode() & 0o777
    };
    assert_eq!((mode(""), mode("daemon.log")), (0o700, 0o600));
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() {
    let home = Home::new();
    fs::write(home.dir.path().join("file"), "").expect("write a file");
    let ended = home.run(&["list", "--state-dir", "file/state"]);
    assert_ne!(ended.status, 0);
    assert!(ended.stderr.contains("file/state") && ended.stderr.contains("--state-dir"), "{}", ended.stderr);
}

#[test]
fn doctor_reports_strangers_and_touches_nothing() {
    let home = Home::new();
    fs::create_dir_all(home.state_dir().join("vms")).expect("make a state directory");
    fs::write(home.state_dir().join("vms/notes.txt"), "mine").expect("write a stranger");
    let ended = home.run(&["doctor", "--json"]);
    let report = ended.json();
    let failed = |check: &serde_json::Value| check["verdict"] == "fail";
    let checks = report["checks"].as_array().expect("a list");
    assert_eq!(report["ok"].as_bool(), Some(!checks.iter().any(failed)));
    assert_eq!(ended.status, i32::from(checks.iter().any(failed)));
    let stray = checks.iter().find(|check| check["name"] == "stray files").expect("a check for strays");
    assert_eq!(stray["verdict"], "warn");
    assert!(stray["detail"].as_str().is_some_and(|text| text.contains("vms/notes.txt")), "{stray}");
    for check in checks.iter().filter(|check| check["verdict"] != "ok") {
        assert!(!check["remedy"].is_null() || check["verdict"] == "warn", "a failure has a remedy: {check}");
    }
    assert_eq!(fs::read_to_string(home.state_dir().join("vms/notes.txt")).expect("still there"), "mine");
}

#[test]
fn an_empty_image_store_says_how_to_fill_it() {
    let home = Home::new();
    let list = home.run(&["image", "list"]);
    assert_eq!((list.status, list.stdout.as_str()), (0, ""));
    assert!(list.stderr.contains("offshoot image build base"), "{}", list.stderr);
    let json = home.run(&["image", "list", "--json"]);
    assert_eq!(json.json()["images"].as_array().map(Vec::len), Some(0));
    let show = home.run(&["image", "show", "base"]);
    assert_eq!((show.status, show.stdout.as_str()), (3, ""));
    insta::assert_snapshot!("no_such_image", show.stderr);
    assert_eq!(home.run(&["image", "verify", "base"]).status, 3);
    assert_eq!(home.run(&["image", "rm", "base"]).status, 3);
}

#[test]
fn a_recipe_that_cannot_be_used_is_refused_with_its_place() {
    let home = Home::new();
    let unknown = home.run(&["image", "build", "bse"]);
    assert_eq!(unknown.status, 3);
    insta::assert_snapshot!("unknown_recipe", unknown.stderr);
    fs::write(home.dir.path().join("r.toml"), "name = 'x'\npackages = 7\n").expect("write a recipe");
    let broken = home.run(&["image", "build", "./r.toml"]);
    assert_eq!(broken.status, 2);
    assert!(broken.stderr.contains("line 2"), "{}", broken.stderr);
}
