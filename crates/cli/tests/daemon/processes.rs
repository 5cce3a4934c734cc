//! `run` and `exec`: streams, statuses, interruption.

use crate::fixture::{Ended, World, interrupt};
use std::io::Read;

#[test]
fn the_status_is_the_programs_own_or_says_whose_fault_it_is() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    for status in [0, 1, 7, 255] {
        world.run(&["exec", "web", "--", "exit", &status.to_string()]).exits(status);
    }
    world.run(&["exec", "web", "--timeout", "200ms", "--", "sleep", "60"]).exits(124);
    world.run(&["exec", "nobody", "--", "true"]).exits(125);
    let missing = world.run(&["exec", "web", "--", "no-such-program"]).exits(127);
    assert!(missing.stderr.contains("no-such-program"), "{missing:#?}");
    world.run(&["run", "--", "exit", "7"]).exits(7);
    world.run(&["run", "--image", "absent", "--", "true"]).exits(125);
    let json = world.run(&["--json", "exec", "nobody", "--", "true"]).exits(125);
    assert_eq!(json.json()["code"], "not_found");
}

#[test]
fn streams_pass_through_and_input_only_if_asked_for() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    world.run(&["exec", "web", "echo", "hello", "-n"]).exits(0).prints("hello -n\n");
    let text = "0123456789abcde\n".repeat(50_000);
    world.run_with_input(&["exec", "-i", "web", "--", "cat"], text.as_bytes()).exits(0).prints(&text);
    world.run(&["exec", "web", "--", "cat"]).exits(0).prints("");
    world.run_with_input(&["run", "--", "cat"], b"into a fresh VM").exits(0).prints("into a fresh VM");
    let document = world.run(&["--json", "run", "--", "echo", "hi"]).exits(0).json();
    assert_eq!((document["stdout"].as_str(), document["status"].as_u64()), (Some("hi\n"), Some(0)));
}

#[test]
fn a_run_leaves_nothing_unless_it_is_kept() {
    let world = World::new();
    world.run(&["run", "--", "true"]).exits(0);
    assert_eq!(world.run(&["list", "--json"]).json()["vms"].as_array().map(Vec::len), Some(0));
    let kept = world.run(&["run", "--keep", "--", "true"]).exits(0);
    assert!(kept.stderr.starts_with("kept VM `run-"), "{kept:#?}");
    assert_eq!(world.run(&["list", "--json"]).json()["vms"][0]["state"], "running");
}

#[test]
fn an_interrupted_run_exits_130_and_leaves_nothing() {
    let world = World::new();
    let child = world.spawn(&["run", "--", "sleep", "1000"]);
    world.until(&["list", "--json"], |list| list["vms"][0]["state"] == "running");
    interrupt(&child);
    let ended = Ended::new(&["run"], child.wait_with_output().expect("it ends")).exits(130);
    assert_eq!(ended.stderr.lines().last(), Some("interrupted"), "{ended:#?}");
    assert_eq!(world.run(&["list", "--json"]).json()["vms"].as_array().map(Vec::len), Some(0));
}

#[test]
fn an_interrupted_follower_exits_130() {
    let world = World::new();
    world.run(&["create", "web"]).exits(0);
    let mut child = world.spawn(&["logs", "web", "--follow"]);
    let mut first = [0; 1];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("it tells what there is");
    interrupt(&child);
    Ended::new(&["logs"], child.wait_with_output().expect("it ends")).exits(130);
}

#[test]
fn a_detached_process_is_taken_up_again_by_its_id() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    let exec = world.run(&["exec", "web", "--detach", "--", "echo", "later"]).exits(0).stdout;
    world.run(&["exec", "web", "--attach", exec.trim()]).exits(0).prints("later\n");
}

#[test]
fn code_that_must_be_a_file_is_put_into_the_vm_first() {
    let world = World::new();
    std::fs::write(world.path("script.py"), "print(1)").expect("write the script");
    // The VM in memory has no interpreter; that it was asked for, with the file's place, shows the way there.
    let ended = world.run(&["run", "script.py", "--", "x"]).exits(127);
    assert!(ended.stderr.contains("python3 /tmp/offshoot-run/script.py x"), "{ended:#?}");
    let large = vec![b' '; 600 * 1024];
    std::fs::write(world.path("large.py"), large).expect("write the script");
    let refused = world.run(&["run", "large.py"]).exits(125);
    assert!(refused.stderr.contains("offshoot cp"), "{refused:#?}");
}
