//! Snapshots over time: taken elsewhere as a file, removed from the middle of their tree.

use crate::{
    branch::{python, shell, start},
    vm,
};
use offshoot_testkit::{TestEnv, wait_for};
use std::{path::Path, time::Duration};

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_snapshot_goes_to_another_state_directory_as_a_file() {
    let env = TestEnv::new();
    start(&env, "a");
    python(&env, "a", "x=41");
    env.run(&["snapshot", "a", "one"]).success();
    // From here on its memory differs from that of `one`, and its disk lies over that of `one`.
    env.run(&["rollback", "a", "a@one"]).success();
    python(&env, "a", "y=1");
    shell(&env, "a", "echo kept >/workspace/file && sync");
    env.run(&["snapshot", "a", "two", "--note", "to be sent"]).success();

    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("two.snap");
    let hash = env.run(&["snapshot", "export", "a@two", path(&file)]).success().stdout;
    let hash = hash.trim_end();
    assert_eq!(hash.len(), 64, "{hash}");
    let again = env.run(&["snapshot", "export", "a@two", path(&file)]);
    assert!(again.code != Some(0) && again.stderr.contains("exists"), "nothing is replaced: {again}");
    env.run(&["destroy", "a", "--snapshots", "--yes"]).success();
    env.finish();

    let env = TestEnv::new();
    let refused = env.run(&["snapshot", "import", path(&file), "--expect", &"0".repeat(64)]).exits(2);
    assert!(refused.stderr.contains(hash), "{refused}");
    let imported = env.run(&["snapshot", "import", path(&file), "--name", "b", "--expect", hash]).success();
    assert_eq!(imported.stdout, "b\n");
    assert_eq!(vm(&env, "b")["state"], "suspended");
    env.run(&["fork", "b@two", "--name", "c"]).success();
    for name in ["c", "b"] {
        if name == "b" {
            env.run(&["start", "b"]).success();
        }
        assert_eq!(python(&env, name, "print(x + y)").stdout, "42\n", "{name}");
        assert_eq!(shell(&env, name, "cat /workspace/file"), "kept", "{name}");
    }
    env.run(&["snapshot", "import", path(&file), "--name", "d", "--disk-only"]).success();
    env.run(&["start", "d"]).success();
    assert_eq!(shell(&env, "d", "cat /workspace/file"), "kept", "the disk alone");
    for name in ["b", "c", "d"] {
        env.run(&["destroy", name, "--snapshots", "--yes"]).success();
    }
    env.finish();
}

#[test]
fn a_snapshot_in_the_middle_is_pruned_and_those_after_it_go_on_as_they_were() {
    let env = TestEnv::new();
    start(&env, "a");
    python(&env, "a", "x=1");
    env.run(&["snapshot", "a", "one"]).success();
    // Several forks share its complete memory, and what is kept of them differs from that.
    env.run(&["fork", "a@one", "--name", "b", "--count", "2"]).success();
    python(&env, "b-1", "x+=1");
    shell(&env, "b-1", "echo two >/workspace/file && sync");
    env.run(&["snapshot", "b-1", "two"]).success();
    let refused = env.run(&["snapshot", "rm", "a@one"]).exits(4);
    assert!(refused.stderr.contains("--prune"), "{refused}");
    let mapped = env.run(&["snapshot", "rm", "a@one", "--prune"]).exits(4);
    assert!(mapped.stderr.contains("the running VM b-1"), "{mapped}");
    for name in ["b-1", "b-2"] {
        env.run(&["destroy", name, "--yes"]).success();
    }
    env.run(&["snapshot", "rm", "a@one", "--prune"]).success();
    env.run(&["snapshot", "verify", "b-1@two"]).success();
    env.run(&["fork", "b-1@two", "--name", "c"]).success();
    assert_eq!(python(&env, "c", "print(x)").stdout, "2\n");
    assert_eq!(shell(&env, "c", "cat /workspace/file"), "two");
    for name in ["a", "c"] {
        env.run(&["destroy", name, "--yes"]).success();
    }
    env.run(&["snapshot", "rm", "b-1@two"]).success();
    env.finish();
}

/// A VM that is kept before every command: its disk stays shallow, for the process that has it open as well.
#[test]
fn forty_snapshots_before_commands_leave_a_shallow_disk() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start", "--snapshot-policy", "before-exec"]).success();
    // Over the same places again and again, and one that grows: each layer holds some of both.
    for number in 0..40 {
        let write =
            format!("yes {number} | head -c 300000 >/workspace/same; echo {number} >>/workspace/log; sync");
        shell(&env, "a", &write);
    }
    let layers = || std::fs::read_dir(env.state_dir().join("disks")).expect("`disks`").count();
    wait_for("what nobody names is merged", Duration::from_secs(20), || layers() <= 36);
    let opened = |env: &TestEnv| {
        let mut processes = env.processes().into_iter();
        let vmm = processes.find(|process| process.command_line.contains("qemu-system")).expect("a VMM");
        let files = std::fs::read_dir(format!("/proc/{}/fd", vmm.pid)).expect("its files");
        let disks = files.filter_map(Result::ok).filter_map(|file| std::fs::read_link(file.path()).ok());
        disks.filter(|path| path.to_string_lossy().contains(".qcow2")).count()
    };
    // The process was told before its latest snapshot.
    shell(&env, "a", "true");
    assert!(opened(&env) <= 36, "{} layers are open", opened(&env));
    let expected: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let whole = "cat /workspace/log; yes 39 | head -c 300000 | cmp - /workspace/same && echo same";
    let whole = |env: &TestEnv| assert_eq!(shell(env, "a", whole), format!("{}\nsame", expected.join("\n")));
    whole(&env);
    // Not from what the guest remembers.
    env.run(&["snapshot", "policy", "a", "never"]).success();
    env.run(&["restart", "a"]).success();
    whole(&env);
    // The oldest that is kept lies over what was merged.
    let listed = env.run(&["snapshot", "list", "a", "--json"]).success().json();
    let oldest = listed["snapshots"][0]["id"].as_str().expect("an id").to_owned();
    env.run(&["snapshot", "verify", &oldest]).success();
    env.run(&["destroy", "a", "--snapshots", "--yes"]).success();
    env.finish();
}
