//! `try`, `tx`, `race` and live contexts.

use crate::fixture::{Ended, World, interrupt};
use std::io::{BufRead, BufReader, Read};

fn booted() -> World {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    world.run(&["exec", "web", "--", "sh", "-c", "echo before > /file"]).exits(0);
    world
}

#[track_caller]
fn reads(world: &World, text: &str) {
    world.run(&["exec", "web", "--", "cat", "/file"]).exits(0).prints(&format!("{text}\n"));
}

#[test]
fn a_command_that_fails_is_undone_and_its_status_says_how() {
    let world = booted();
    let failed = world.run(&["try", "web", "--", "sh", "-c", "rm -rf /file; exit 7"]).exits(7);
    assert!(
        failed.stderr.contains("rolled back") && failed.stderr.contains("as it was before"),
        "{failed:#?}"
    );
    reads(&world, "before");
    let unchecked = world.run(&["try", "web", "--check", "exit 3", "--", "rm", "-rf", "/file"]).exits(1);
    assert!(unchecked.stderr.contains("the check exited with 3"), "{unchecked:#?}");
    reads(&world, "before");
    let slow = "rm -rf /file; sleep 1000";
    world.run(&["try", "web", "--timeout", "200ms", "--", "sh", "-c", slow]).exits(124);
    reads(&world, "before");
    let missing = world.run(&["try", "web", "--", "no-such-program"]).exits(127);
    assert!(missing.stderr.contains("no-such-program"), "{missing:#?}");
    world.run(&["try", "nobody", "--", "true"]).exits(125);

    let kept =
        world.run(&["try", "web", "--check", "cat /file", "--", "sh", "-c", "echo after > /file; echo out"]);
    let kept = kept.exits(0).prints("out\n");
    assert_eq!(kept.stderr, "after\n", "what the check prints is not the command's output");
    reads(&world, "after");
    let document = world.run(&["--json", "try", "web", "--", "exit", "4"]).exits(4).json();
    assert_eq!((document["committed"].as_bool(), document["cause"].as_str()), (Some(false), Some("failed")));
}

#[test]
fn an_interrupted_try_is_rolled_back_before_it_exits_130() {
    let world = booted();
    let mut child = world.spawn(&["try", "web", "--", "sh", "-c", "rm -rf /file; echo harm; sleep 1000"]);
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    stdout.read_line(&mut line).expect("it speaks");
    assert_eq!(line, "harm\n");
    interrupt(&child);
    let mut stderr = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("it says why");
    assert_eq!(child.wait().expect("it ends").code(), Some(130), "{stderr}");
    assert!(stderr.contains("rolled back") && stderr.ends_with("interrupted\n"), "{stderr}");
    reads(&world, "before");
}

#[test]
fn a_transaction_is_begun_named_by_a_variable_and_ended() {
    let world = booted();
    let id = world.run(&["tx", "begin", "web", "--deadline", "5m"]).exits(0).stdout;
    let id = id.trim();
    let refused = world.run(&["exec", "web", "--", "true"]).exits(125);
    assert!(refused.stderr.contains("transaction"), "{refused:#?}");
    let list = world.run(&["list"]).exits(0).stdout;
    assert!(list.contains("in transaction"), "{list}");
    let change = ["exec", "web", "--", "sh", "-c", "echo within > /file"];
    let mut within = world.command(&change);
    let output = within.env("OFFSHOOT_TRANSACTION", id).output().expect("the binary starts");
    Ended::new(&change, output).exits(0);
    assert!(world.run(&["tx", "list", "web"]).exits(0).stdout.contains(id));
    let back = world.run(&["tx", "rollback", "web", id]).exits(0);
    assert!(back.stderr.contains("rolled back"), "{back:#?}");
    reads(&world, "before");
    let id = world.run(&["tx", "begin", "web"]).exits(0).stdout;
    let savepoint = world.run(&["--transaction", id.trim(), "tx", "begin", "web"]).exits(0).stdout;
    world.run(&["--transaction", savepoint.trim(), "tx", "commit", "web"]).exits(0);
    world.run(&["tx", "commit", "web", id.trim()]).exits(0);
    world.run(&["tx", "commit", "web", id.trim()]).exits(4);
}

#[test]
fn a_race_labels_its_lines_and_names_the_winner() {
    let world = booted();
    let command = ["shuf -i 1-99 -n 1 > /file; echo ready"];
    let line = ["race", "web", "-n", "3", "--score", "cat /file", "--", "sh", "-c", command[0]];
    let won = world.run(&line).exits(0);
    for racer in 1..=3 {
        assert!(won.stdout.contains(&format!("[{racer}] ready\n")), "{won:#?}");
    }
    assert!(won.stderr.contains("won with") && won.stderr.contains("offshoot undo web"), "{won:#?}");
    let lost = world.run(&["race", "web", "-n", "2", "--", "false"]).exits(1);
    assert!(lost.stderr.contains("nobody won"), "{lost:#?}");
    world.run(&["undo", "web"]).exits(0);
    reads(&world, "before");
    world.run(&["race", "web", "-n", "0", "--", "true"]).exits(2);
}

#[test]
fn code_in_a_context_prints_values_errors_and_keeps_its_variables() {
    let world = booted();
    let exec = |code: &str| world.run(&["exec", "web", "--context", "main", "-c", code]);
    exec("x = 41").exits(0).prints("");
    exec("x += 1; print(x); x").exits(0).prints("42\n42\n");
    let failed = exec("fail on purpose").exits(1);
    assert!(failed.stderr.contains("on purpose"), "{failed:#?}");
    let limited = ["exec", "web", "--context", "main", "--timeout", "100ms", "-c", "sleep 1000"];
    world.run(&limited).exits(124);
    world
        .run_with_input(&["exec", "web", "--context", "main", "-c", "-"], b"print(x)")
        .exits(0)
        .prints("42\n");
    let document = world.run(&["--json", "exec", "web", "--context", "main", "-c", "x"]).exits(0).json();
    assert_eq!(document["value"]["text/plain"], "42");
    world.run(&["fork", "web", "--name", "twin"]).exits(0);
    world.run(&["exec", "twin", "--context", "main", "-c", "x"]).exits(0).prints("42\n");
    let listed = world.run(&["context", "list", "web"]).exits(0).stdout;
    assert!(listed.contains("main") && listed.contains("python"), "{listed}");
    world.run(&["context", "restart", "web", "main"]).exits(0);
    exec("x").exits(1);
    world.run(&["context", "rm", "web", "main"]).exits(0);
    world.run(&["context", "rm", "web", "main"]).exits(3);
    world.run(&["exec", "nobody", "--context", "main", "-c", "1"]).exits(125);
}
