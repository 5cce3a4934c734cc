//! `snapshot`, `fork`, `rollback`, `undo`, `suspend`, and what `destroy` leaves of them.

use crate::fixture::World;

fn booted() -> World {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    world
}

fn write(world: &World, vm: &str, text: &str) {
    world.run(&["exec", vm, "--", "sh", "-c", &format!("echo {text} > /data")]).exits(0);
}

#[track_caller]
fn reads(world: &World, vm: &str, text: &str) {
    world.run(&["exec", vm, "--", "cat", "/data"]).exits(0).prints(&format!("{text}\n"));
}

#[test]
fn a_snapshot_is_named_on_stdout_as_it_is_referred_to_and_gone_back_to() {
    let world = booted();
    write(&world, "web", "one");
    world.run(&["snapshot", "web", "one", "--note", "the first"]).exits(0).prints("web@one\n");
    write(&world, "web", "two");
    let unnamed = world.run(&["snapshot", "web"]).exits(0).stdout;
    world.run(&["snapshot", "web", "one"]).exits(4);
    let shown = world.run(&["snapshot", "show", unnamed.trim(), "--json"]).exits(0).json();
    assert_eq!(shown["id"], unnamed.trim());
    let tree = world.run(&["snapshot", "list", "web", "--tree"]).exits(0).stdout;
    assert!(tree.contains("web@one") && tree.contains(&format!("└ {}", unnamed.trim())), "{tree}");
    let verified = world.run(&["snapshot", "verify", "web@one"]).exits(0);
    assert!(verified.stdout.contains("every byte as it was written"), "{verified:#?}");
    world.run(&["snapshot", "rm", unnamed.trim()]).exits(0).prints(&unnamed);
    world.run(&["snapshot", "rm", unnamed.trim()]).exits(3);

    let back = world.run(&["rollback", "web", "one"]).exits(0).prints("web\n");
    assert!(back.stderr.contains("offshoot undo web"), "{back:#?}");
    reads(&world, "web", "one");
    world.run(&["undo", "web"]).exits(0).prints("web\n");
    reads(&world, "web", "two");
    world.run(&["rollback", "web", "ghost"]).exits(3);
    let status = world.run(&["status", "web"]).exits(0).stdout;
    assert!(status.contains("snapshots"), "{status}");
}

#[test]
fn a_vm_whose_policy_says_so_is_kept_before_each_command_and_taken_back_when_one_fails() {
    let world = World::new();
    world.run(&["create", "web", "--start", "--snapshot-policy", "before-exec"]).exits(0);
    write(&world, "web", "one");
    let auto = |world: &World| {
        let listed = world.run(&["snapshot", "list", "web", "--json"]).exits(0).json();
        let origins: Vec<_> =
            listed["snapshots"].as_array().unwrap().iter().map(|s| s["origin"].clone()).collect();
        origins.iter().filter(|origin| **origin == "auto").count()
    };
    assert_eq!(auto(&world), 1);
    let shown = world.run(&["snapshot", "policy", "web"]).exits(0);
    shown.prints("snapshots      before-exec\nauto-rollback  off\n");

    let set = world.run(&["snapshot", "policy", "web", "never", "--auto-rollback", "on", "--json"]).exits(0);
    assert_eq!((&set.json()["mode"], &set.json()["auto_rollback"]), (&"never".into(), &true.into()));
    world.run(&["exec", "web", "--", "sh", "-c", "echo two > /data; exit 7"]).exits(7);
    reads(&world, "web", "one");
    let status = world.run(&["status", "web"]).exits(0).stdout;
    assert!(status.contains("back to it when one fails"), "{status}");
    // A fork behaves as what it was made of.
    world.run(&["fork", "web", "--name", "twin"]).exits(0);
    let twin = world.run(&["status", "twin", "--json"]).exits(0).json();
    assert_eq!(twin["snapshot_policy"]["auto_rollback"], true);

    world.run(&["snapshot", "policy", "web", "--auto-rollback", "off"]).exits(0);
    let before = auto(&world);
    world.run(&["exec", "web", "--", "sh", "-c", "echo two > /data; exit 7"]).exits(7);
    reads(&world, "web", "two");
    assert_eq!(auto(&world), before, "never means never");
    world.run(&["snapshot", "policy", "web", "sometimes"]).exits(2);
    world.run(&["snapshot", "policy", "ghost", "never"]).exits(3);
}

#[test]
fn an_idle_vm_rests_and_a_command_wakes_it_unless_that_is_refused() {
    let world = World::new();
    world.run(&["create", "web", "--start", "--idle-suspend", "1s"]).exits(0);
    write(&world, "web", "one");
    world.run(&["wait", "web", "--for", "suspended", "--timeout", "30s"]).exits(0);
    let refused = world.run(&["--no-wake", "exec", "web", "--", "cat", "/data"]).exits(125);
    assert!(refused.stderr.contains("offshoot resume web"), "{refused:#?}");
    assert_eq!(world.run(&["status", "web", "--json"]).exits(0).json()["state"], "suspended");
    reads(&world, "web", "one");
    world.run(&["life", "web", "--idle-suspend", "never"]).exits(0);
    let shown = "idle-suspend  never\nwake          auto\nlifetime      never ends\n";
    world.run(&["life", "web"]).exits(0).prints(shown);
    let set =
        world.run(&["life", "web", "--lifetime", "2h", "--on-timeout", "stop", "--json"]).exits(0).json();
    assert_eq!((&set["timeout_ms"], &set["on_timeout"]), (&7_200_000.into(), &"stop".into()));
    assert!(set["deadline"].is_string(), "it runs");
    let status = world.run(&["status", "web"]).exits(0).stdout;
    assert!(status.contains("120m, then stop, in"), "{status}");
    world.run(&["life", "web", "--lifetime", "1ms"]).exits(2);
    world.run(&["life", "ghost"]).exits(3);
}

#[test]
fn forks_are_named_one_a_line_and_what_they_attest_is_told_when_asked() {
    let world = booted();
    write(&world, "web", "shared");
    let forked = world.run(&["-v", "fork", "web", "--count", "2"]).exits(0).prints("web-1\nweb-2\n");
    assert!(forked.stderr.contains("`web-1` renewed: random reseeded"), "{forked:#?}");
    reads(&world, "web-2", "shared");
    let document = world.run(&["fork", "web", "--name", "trial", "--json"]).exits(0).json();
    assert_eq!(document["forks"][0]["name"], "trial");
    assert_eq!(document["forks"][0]["attestations"]["hostname"], "trial");
    world.run(&["fork", "ghost"]).exits(3);
    world.run(&["fork", "web", "--name", "trial"]).exits(4);
    world.run(&["fork", "web", "--count", "0"]).exits(2);
}

#[test]
fn what_differs_is_a_line_each_and_an_exit_status_only_when_asked_for() {
    let world = booted();
    world.run(&["diff", "web"]).exits(3);
    write(&world, "web", "one");
    world.run(&["snapshot", "web", "one"]).exits(0);
    let same = world.run(&["diff", "web", "--exit-code"]).exits(0).prints("");
    assert!(same.stderr.contains("nothing differs") || same.stderr.contains("not compared"), "{same:#?}");
    write(&world, "web", "another");
    world.run(&["exec", "web", "--", "mkdir", "/new"]).exits(0);
    let lines = "M /data  (4 B -> 8 B)\nA /new/\n";
    world.run(&["diff", "web@one", "web", "--files"]).exits(0).prints(lines);
    world.run(&["diff", "web", "--files", "--exit-code"]).exits(1).prints(lines);
    let back = world.run(&["diff", "web", "web@one", "--files", "--limit", "1"]).exits(0);
    assert!(back.stdout.starts_with("M /data") && back.stderr.contains("1 more"), "{back:#?}");
    let stat = world.run(&["diff", "web", "--stat", "--files"]).exits(0);
    stat.prints("files      1 added, 1 modified, 0 removed\n");
    let document = world.run(&["diff", "web", "--json"]).exits(0).json();
    assert_eq!(document["files"]["changes"][1]["path"], "/new");
    assert_eq!(document["files"]["changes"][1]["to"]["kind"], "directory");
    assert_eq!(document["differs"], true);
    let listed = world.run(&["list", "--json"]).exits(0).json();
    assert_eq!(listed["vms"].as_array().map(Vec::len), Some(1), "no copy is left");
    world.run(&["diff", "web", "ghost"]).exits(3);
    world.run(&["diff", "web@ghost", "web"]).exits(3);
}

#[test]
fn a_suspended_vm_is_shown_as_such_and_runs_on() {
    let world = booted();
    write(&world, "web", "kept");
    world.run(&["suspend", "web"]).exits(0).prints("web\n");
    let list = world.run(&["list"]).exits(0).stdout;
    assert!(list.contains("suspended"), "{list}");
    world.run(&["exec", "web", "--", "true"]).exits(125);
    world.run(&["resume", "web"]).exits(0);
    reads(&world, "web", "kept");
}

#[test]
fn destroy_keeps_what_was_asked_for_unless_told_otherwise() {
    let world = booted();
    world.run(&["snapshot", "web", "one"]).exits(0);
    let destroyed = world.run(&["destroy", "web"]).exits(0).prints("web\n");
    assert!(destroyed.stderr.contains("1 snapshot of it stays"), "{destroyed:#?}");
    let left = world.run(&["snapshot", "list", "--json"]).exits(0).json();
    assert_eq!(left["snapshots"].as_array().map(Vec::len), Some(1), "{left}");

    world.run(&["create", "other", "--start"]).exits(0);
    world.run(&["snapshot", "other", "one"]).exits(0);
    world.run(&["snapshot", "other", "two"]).exits(0);
    let gone = world.run(&["destroy", "other", "--snapshots", "--json"]).exits(0).json();
    assert_eq!(gone["snapshots_kept"].as_array().map(Vec::len), Some(0), "{gone}");
    let left = world.run(&["snapshot", "list", "--json"]).exits(0).json();
    assert_eq!(left["snapshots"].as_array().map(Vec::len), Some(1), "only that of the first: {left}");
}
