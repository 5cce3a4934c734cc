//! `cp` in both directions.

use offshoot_testkit::TestEnv;
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

/// Name, mode and content (or link target) of everything below, sorted.
fn tree(root: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).expect("list a directory").map(|e| e.expect("an entry")) {
            let path = entry.path();
            let meta = fs::symlink_metadata(&path).expect("metadata");
            let name = path.strip_prefix(root).expect("below the root").display().to_string();
            if meta.is_dir() {
                found.push((name, meta.permissions().mode() & 0o777, Vec::new()));
                pending.push(path);
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).expect("a link").display().to_string();
                found.push((name, 0, target.into_bytes()));
            } else {
                found.push((name, meta.permissions().mode() & 0o777, fs::read(&path).expect("read a file")));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn cp_brings_directories_in_and_out_unchanged() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let src = env.work_dir().join("src");
    fs::create_dir_all(src.join("deep/er")).expect("make directories");
    fs::write(src.join("deep/er/large"), vec![0xA5; 9 * 1024 * 1024 + 17]).expect("write a large file");
    fs::write(src.join("empty"), "").expect("write an empty file");
    fs::write(src.join("naïve – name 漢"), "text").expect("write a file with a name in Unicode");
    fs::set_permissions(src.join("empty"), fs::Permissions::from_mode(0o751)).expect("set a mode");
    std::os::unix::fs::symlink("deep/er/large", src.join("link")).expect("make a link");
    env.run(&["cp", "src", "a:/workspace/copy"]).success();
    env.run(&["cp", "a:/workspace/copy", "back"]).success();
    assert_eq!(tree(&src), tree(&env.work_dir().join("back")));
    env.run(&["cp", "a:/etc/hostname", "."]).success();
    assert_eq!(
        fs::read_to_string(env.work_dir().join("hostname")).expect("copied into the directory").trim(),
        "a"
    );
    env.run(&["cp", "a:/no/such/file", "x"]).exits(3).stderr_has("/no/such/file");
    assert!(!env.work_dir().join("x").exists());
    env.finish();
}

#[test]
fn a_guest_cannot_make_cp_write_outside_the_target() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let victim = env.work_dir().join("victim");
    fs::create_dir(&victim).expect("make a directory");
    let script = format!(
        "mkdir -p /workspace/evil && ln -s {} /workspace/evil/link && ln -s /etc/passwd /workspace/evil/passwd",
        victim.display()
    );
    env.run(&["exec", "a", "--", "sh", "-c", &script]).success();
    env.run(&["cp", "a:/workspace/evil", "out"]).success();
    // Links arrive as links; a second copy must not follow the first one's link out of the target.
    env.run(&[
        "exec",
        "a",
        "--",
        "sh",
        "-c",
        "rm /workspace/evil/link && mkdir /workspace/evil/link && echo x >/workspace/evil/link/planted",
    ])
    .success();
    let _ = env.run(&["cp", "a:/workspace/evil", "out"]);
    assert!(fs::read_dir(&victim).expect("list").next().is_none(), "nothing was written through the link");
    env.finish();
}
