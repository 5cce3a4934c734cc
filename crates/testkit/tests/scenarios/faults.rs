//! Things people and machines get wrong.

use crate::{
    branch::{shell, start},
    vm,
};
use offshoot_testkit::TestEnv;
use std::{fs, os::unix::fs::PermissionsExt, process::Command};

#[test]
fn scenario_41_a_damaged_database_is_refused_by_name_and_never_emptied() {
    let env = TestEnv::new();
    env.run(&["create", "a"]).success();
    env.run(&["daemon", "stop"]).success();
    let database = env.state_dir().join("offshoot.db");
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(env.state_dir().join(format!("offshoot.db{suffix}")));
    }
    let intact = fs::read(&database).expect("read the database");
    let mut damaged = intact.clone();
    damaged[..4096.min(intact.len())].fill(0x5A);
    fs::write(&database, &damaged).expect("damage it");
    let out = env.run(&["list"]).exits(8);
    assert!(out.stderr.contains("offshoot.db"), "the file is named: {out}");
    assert_eq!(fs::read(&database).expect("read again"), damaged, "nothing is silently emptied");
    fs::write(&database, &intact).expect("put it back");
    assert_eq!(vm(&env, "a")["state"], "stopped");
    env.finish();
}

#[test]
fn scenario_43_a_full_disk_is_exit_7_and_needs_no_repair() {
    let env = TestEnv::with_small_disk("24m");
    env.run(&["create", "a", "--start"]).success();
    let filler = env.state_dir().join("filler");
    let mut file = fs::File::create(&filler).expect("make the filler");
    // Until nothing more fits.
    while std::io::Write::write_all(&mut file, &[0xFF; 4096]).is_ok() {}
    drop(file);
    let out = env.run(&["create", "b"]);
    assert_eq!(out.code, Some(7), "{out}");
    assert!(out.stderr.contains("hint"), "{out}");
    fs::remove_file(&filler).expect("free the space");
    assert_eq!(vm(&env, "a")["state"], "running", "the VM runs on");
    env.run(&["exec", "a", "--", "true"]).success();
    env.run(&["create", "b"]).success();
    env.finish();
}

/// As long as the filler is there, so much is free.
fn fill(env: &TestEnv, free: u64) -> std::path::PathBuf {
    let filler = env.state_dir().join("filler");
    let mut file = fs::File::create(&filler).expect("make the filler");
    while std::io::Write::write_all(&mut file, &[0xFF; 4096]).is_ok() {}
    let length = file.metadata().expect("look at the filler").len();
    file.set_len(length.saturating_sub(free)).expect("leave some room");
    filler
}

#[test]
fn a_disk_that_fills_up_in_a_prune_or_an_import_loses_nothing() {
    let env = TestEnv::with_small_disk("600m");
    start(&env, "a");
    env.run(&["snapshot", "a", "one"]).success();
    // Several forks share its complete memory, and what is kept of them differs from that.
    env.run(&["fork", "a@one", "--name", "b", "--count", "2"]).success();
    shell(&env, "b-1", "echo two >/workspace/file && sync");
    env.run(&["snapshot", "b-1", "two"]).success();
    for name in ["b-1", "b-2"] {
        env.run(&["destroy", name, "--yes"]).success();
    }
    let whole = |names: &[&str]| {
        for name in names {
            env.run(&["snapshot", "verify", name]).success();
        }
    };
    // Nothing fits, the record of it does, part of the merged memory does.
    for free in [0, 1 << 20, 16 << 20] {
        let filler = fill(&env, free);
        let out = env.run(&["snapshot", "rm", "a@one", "--prune"]).exits(7);
        assert!(out.stderr.contains("hint"), "{free}: {out}");
        fs::remove_file(&filler).expect("free the space");
        whole(&["a@one", "b-1@two"]);
    }
    env.run(&["snapshot", "rm", "a@one", "--prune"]).success();
    whole(&["b-1@two"]);

    let file = env.work_dir().join("exported");
    let file = file.to_str().expect("UTF-8");
    env.run(&["snapshot", "export", "b-1@two", file]).success();
    let listed = || env.run(&["list", "--json"]).success().json();
    let before = listed();
    for free in [0, 1 << 20, 16 << 20] {
        let filler = fill(&env, free);
        let out = env.run(&["snapshot", "import", file, "--name", "c"]).exits(7);
        assert!(out.stderr.contains("hint"), "{free}: {out}");
        fs::remove_file(&filler).expect("free the space");
        assert_eq!(listed(), before, "{free}: no VM is left of it");
        let left = || fs::read_dir(env.state_dir().join("snapshots")).expect("`snapshots`").count();
        assert_eq!(left(), 1, "{free}: nor its files");
    }
    env.run(&["snapshot", "import", file, "--name", "c"]).success();
    env.run(&["start", "c"]).success();
    assert_eq!(shell(&env, "c", "cat /workspace/file"), "two");
    for name in ["a", "c"] {
        env.run(&["destroy", name, "--snapshots", "--yes"]).success();
    }
    env.run(&["snapshot", "rm", "b-1@two"]).success();
    env.finish();
}

#[test]
fn scenario_44_missing_programs_and_permissions_are_named_with_their_remedy() {
    let env = TestEnv::new();
    // A path without QEMU.
    let bin = env.work_dir().join("bin");
    fs::create_dir(&bin).expect("make a directory");
    let without = |command: &mut Command| {
        command.env("PATH", &bin);
    };
    let out = env.run_adjusted(&["run", "-c", "1"], without).exits(125);
    assert!(out.stderr.contains("qemu-system-x86"), "the package is named: {out}");
    let doctor = env.run_adjusted(&["doctor"], without);
    assert_ne!(doctor.code, Some(0));
    assert!(format!("{doctor}").contains("qemu-system-x86"), "doctor predicts it: {doctor}");
    env.run(&["daemon", "stop"]).success();
    // A state directory that is a file.
    let file = env.work_dir().join("file");
    fs::write(&file, "").expect("write a file");
    let out = env.run(&["list", "--state-dir", file.to_str().expect("UTF-8")]);
    assert!([2, 8].contains(&out.code.expect("no signal")), "{out}");
    assert!(out.stderr.contains("file"), "{out}");
    env.finish();
}

#[test]
fn an_image_that_changed_on_disk_is_not_booted() {
    let env = TestEnv::new();
    // A store of our own that shares the blobs by hard link, then one blob replaced.
    let copy = env.work_dir().join("images");
    fs::create_dir(&copy).expect("make the copy's directory");
    for part in ["blobs", "images", "tags"] {
        let ok = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(env.images().join(part))
            .arg(&copy)
            .status();
        assert!(ok.is_ok_and(|s| s.success()), "copy the image store's {part}");
    }
    let with = |command: &mut Command| {
        command.env("OFFSHOOT_IMAGES", &copy);
    };
    let shown = env.run_adjusted(&["image", "show", "base", "--json"], with).success();
    let text = shown.json().to_string();
    env.run_adjusted(&["image", "verify", "base"], with).success();
    let blobs = copy.join("blobs/sha256");
    let root = fs::read_dir(&blobs)
        .expect("list the blobs")
        .filter_map(Result::ok)
        .filter(|e| text.contains(&e.file_name().to_string_lossy().into_owned()))
        .max_by_key(|e| e.metadata().map(|m| m.len()).unwrap_or(0))
        .expect("a blob")
        .path();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o644)).expect("make it writable");
    let mut file = fs::File::options().write(true).open(&root).expect("open the blob");
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(8192)).expect("seek");
    std::io::Write::write_all(&mut file, b"flipped").expect("damage it");
    drop(file);
    env.run_adjusted(&["image", "verify", "base"], with).exits(8);
    let out = env.run_adjusted(&["run", "-c", "1"], with).exits(125);
    assert!(out.stderr.contains("digest") || out.stderr.contains("sha256"), "{out}");
    env.finish();
}

#[test]
fn a_guest_that_floods_or_fills_its_disk_hurts_only_itself() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start", "--disk", "96M"]).success();
    // The console is rotated, so a flood of it cannot fill the host's disk.
    env.run(&[
        "exec",
        "--timeout",
        "60s",
        "a",
        "--",
        "sh",
        "-c",
        "yes flood | head -c 1500000 >/dev/console",
    ])
    .success();
    let id = vm(&env, "a")["id"].as_str().expect("an id").to_owned();
    let size = disk_usage(&env.state_dir().join("vms").join(&id))
        + disk_usage(&env.state_dir().join("vms").join(id.replace('-', "")));
    assert!(size < 130 << 20, "{size} bytes of console and disk");
    let out = env.run(&[
        "exec",
        "a",
        "--",
        "sh",
        "-c",
        "head -c 200000000 /dev/zero >/workspace/full; echo status $?",
    ]);
    assert!(out.stdout.contains("status 1"), "the guest's disk is bounded: {out}");
    env.run(&["exec", "a", "--", "sh", "-c", "rm /workspace/full; echo fine"]).success().prints("fine\n");
    env.finish();
}

fn disk_usage(root: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut total = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok) {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => pending.push(entry.path()),
                Ok(meta) => total += meta.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    total
}
