//! VMs from the command line, and the documents about them.

use crate::fixture::World;
use serde_json::Value;

#[test]
fn a_vm_lives_its_life_and_its_history_outlives_it() {
    let world = World::new();
    world.run(&["create", "web"]).exits(0).prints("web\n");
    world.run(&["create", "web"]).exits(4);
    assert_eq!(world.run(&["status", "web", "--json"]).json()["state"], "stopped");
    world.run(&["start", "web"]).exits(0);
    world.run(&["wait", "web", "--for", "running"]).exits(0).prints("running\n");
    world.run(&["pause", "web"]).exits(0);
    let refused = world.run(&["exec", "web", "--", "true"]).exits(125);
    assert!(refused.stderr.contains("offshoot resume web"), "{refused:#?}");
    world.run(&["resume", "web"]).exits(0);
    world.run(&["restart", "web", "--grace", "1s"]).exits(0);
    world.run(&["stop", "web"]).exits(0);
    world.run(&["wait", "web", "--for", "running", "--timeout", "50ms"]).exits(6);
    world.run(&["destroy", "web"]).exits(0);
    world.run(&["status", "web"]).exits(3);
    world.run(&["wait", "web", "--for", "destroyed"]).exits(0);
    let log = world.run(&["logs", "web"]).exits(0);
    assert!(log.stdout.lines().count() > 10 && log.stdout.contains("stopped -> destroyed"), "{log:#?}");
    let last = world.run(&["logs", "web", "-n", "1"]).exits(0);
    assert!(last.stdout.ends_with("destroy done\n") && last.stdout.lines().count() == 1, "{last:#?}");
    let followed = world.run(&["logs", "web", "--follow"]).exits(0);
    assert_eq!(followed.stdout, log.stdout, "what is destroyed has no more to tell");
}

#[test]
fn a_name_that_is_nearly_right_brings_the_right_one() {
    let world = World::new();
    world.run(&["create", "webserver"]).exits(0);
    let missed = world.run(&["start", "webservr"]).exits(3);
    assert!(missed.stderr.contains("webserver"), "{missed:#?}");
}

#[test]
fn sizes_labels_and_images_are_passed_on_or_refused() {
    let world = World::new();
    let line =
        ["create", "big", "--memory", "384M", "--cpus", "2", "--disk", "3G", "--label", "a=b", "--json"];
    let vm = &world.run(&line).exits(0).json()["vm"];
    assert_eq!((vm["memory_mib"].as_u64(), vm["cpus"].as_u64()), (Some(384), Some(2)));
    assert_eq!((vm["disk_mib"].as_u64(), vm["labels"]["a"].as_str()), (Some(3072), Some("b")));
    let absent = world.run(&["create", "x", "--image", "absent"]).exits(3);
    assert!(absent.stderr.contains("offshoot image build absent"), "{absent:#?}");
    world.run(&["create", "x", "--isolation", "hardware-vm", "--provider", "firecracker"]).exits(8);
}

#[test]
fn verbose_tells_what_the_daemon_did() {
    let world = World::new();
    let told = world.run(&["-v", "create", "web", "--start"]).exits(0).prints("web\n");
    for words in ["create begun by", "stopped -> starting", "starting -> running"] {
        assert!(told.stderr.contains(words), "no `{words}` in {told:#?}");
    }
    assert_eq!(world.run(&["stop", "web"]).exits(0).stderr, "");
}

/// Names of the fields of an object, those of its objects in brackets: the shape programs rely on.
fn shape(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<String> = fields
                .iter()
                .map(|(name, value)| match shape(value) {
                    inner if inner.is_empty() => name.clone(),
                    inner => format!("{name}{inner}"),
                })
                .collect();
            names.sort_unstable();
            format!("{{{}}}", names.join(" "))
        }
        Value::Array(items) => match items.first().map(shape) {
            Some(inner) if !inner.is_empty() => format!("[{inner}]"),
            _ => "[]".into(),
        },
        _ => String::new(),
    }
}

#[test]
fn every_verb_answers_with_one_document_of_a_known_shape() {
    let world = World::new();
    let mut shapes = String::new();
    for line in [
        &["create", "web"][..],
        &["start", "web"],
        &["list"],
        &["status"],
        &["status", "web"],
        &["wait", "web"],
        &["exec", "web", "--", "echo", "hi"],
        &["run", "--", "echo", "hi"],
        &["pause", "web"],
        &["resume", "web"],
        &["restart", "web"],
        &["snapshot", "web", "one", "--note", "x"],
        &["snapshot", "list"],
        &["snapshot", "show", "web@one"],
        &["snapshot", "verify", "web@one"],
        &["diff", "web"],
        &["fork", "web"],
        &["destroy", "web-1", "--yes"],
        &["rollback", "web", "one"],
        &["undo", "web"],
        &["suspend", "web"],
        &["resume", "web"],
        &["exec", "web", "--context", "main", "-c", "1"],
        &["context", "list", "web"],
        &["context", "restart", "web", "main"],
        &["context", "rm", "web", "main"],
        &["try", "web", "--", "true"],
        &["race", "web", "-n", "1", "--", "true"],
        &["tx", "list", "web"],
        &["status", "web"],
        &["stop", "web"],
        &["destroy", "web"],
        &["logs", "web", "-n", "1"],
        &["image", "list"],
        &["image", "show", "base"],
        &["image", "verify", "base"],
        &["daemon", "status"],
        &["completion", "bash"],
        &["status", "web"],
    ] {
        let words: Vec<&str> = line.iter().copied().chain(["--json"]).collect();
        // Behind `--` it would be the program's.
        let words = match line.iter().position(|word| *word == "--") {
            Some(_) => std::iter::once("--json").chain(line.iter().copied()).collect(),
            None => words,
        };
        let ended = world.run(&words);
        assert_eq!(ended.stderr, "", "nothing stands beside the document of {line:?}");
        shapes += &format!("{}: {}\n", line.join(" "), shape(&ended.json()));
    }
    insta::assert_snapshot!(shapes);
}
