//! The same Python job on what else is installed here, on the same root file system, in the same run.

use crate::{
    Plan, gvisor,
    sample::{Row, Unit, as_ms, ms},
};
use anyhow::{Context, Result};
use offshoot_testkit::TestEnv;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

const JOB: [&str; 3] = ["/usr/bin/python3", "-c", "print(1)"];

pub fn measure(plan: &Plan, rows: &mut Vec<Row>, notes: &mut Vec<String>) -> Result<()> {
    let env = TestEnv::new();
    let dir = tempfile::tempdir().context("make a directory for the peers' root")?;
    let root = dir.path().join("rootfs");
    unpack(&env, &root)?;
    let n = plan.samples(15);

    let mut ours = Vec::new();
    let mut failed = 0;
    for _ in 0..n.min(7) {
        let out = env.run(&["run", "--", JOB[0], JOB[1], JOB[2]]);
        if out.code == Some(0) { ours.push(as_ms(out.took)) } else { failed += 1 }
    }
    let ours = Row::new("peers: offshoot run, cold (own kernel)", Unit::Ms, ours, failed);
    let base = ours.p50;
    rows.push(ours);
    for (name, program, command) in peers(&root, dir.path())? {
        if !installed(program) {
            notes.push(format!("{name}: `{program}` is not installed; not measured"));
            continue;
        }
        let (mut values, mut failed) = (Vec::new(), 0);
        for _ in 0..n {
            let began = Instant::now();
            let out = command(began).stdin(Stdio::null()).output();
            match out {
                Ok(out) if out.status.success() && out.stdout == b"1\n" => values.push(ms(began)),
                Ok(out) => {
                    failed += 1;
                    notes.push(format!(
                        "{name}: {}",
                        String::from_utf8_lossy(&out.stderr).trim().chars().take(200).collect::<String>()
                    ));
                }
                Err(error) => {
                    failed += 1;
                    notes.push(format!("{name}: {error}"));
                }
            }
        }
        let row = Row::new(format!("peers: {name}, cold"), Unit::Ms, values, failed);
        rows.push(Row::single(format!("peers: offshoot / {name}"), Unit::Ratio, base / row.p50));
        rows.push(row);
    }
    if !installed("runsc") {
        notes.push("gVisor, live state: `runsc` is not installed; not measured".to_owned());
    } else if let Err(error) = gvisor::measure(plan, &root, rows) {
        notes.push(format!("gVisor, live state: {error:#}"));
    }
    notes.dedup();
    env.finish();
    Ok(())
}

type Peer<'a> = (&'static str, &'static str, Box<dyn Fn(Instant) -> Command + 'a>);

fn peers<'a>(root: &'a Path, scratch: &'a Path) -> Result<Vec<Peer<'a>>> {
    let bundle = scratch.join("bundle");
    fs::create_dir(&bundle).context("make the OCI bundle")?;
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": { "path": root, "readonly": true },
        "hostname": "box",
        "process": { "terminal": false, "user": { "uid": 0, "gid": 0 }, "cwd": "/", "noNewPrivileges": true,
                     "args": JOB, "env": ["PATH=/usr/bin:/bin"] },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" },
                   { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" }],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }] }
    });
    fs::write(bundle.join("config.json"), config.to_string()).context("write the OCI bundle")?;
    let host = move |_| {
        let mut command = Command::new(JOB[0]);
        command.args(&JOB[1..]);
        command
    };
    let bwrap = move |_| {
        let mut command = Command::new("bwrap");
        command.arg("--ro-bind").arg(root).arg("/");
        command.args([
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--tmpfs",
            "/tmp",
            "--unshare-all",
            "--die-with-parent",
            "--new-session",
        ]);
        command.args(JOB);
        command
    };
    let runsc = move |began: Instant| {
        let mut command = Command::new("runsc");
        command.arg("--root").arg(scratch.join("runsc"));
        command.args(["--network=none", "--ignore-cgroups", "--platform=systrap", "run", "-bundle"]);
        command
            .arg(&bundle)
            .arg(format!("bench{}", began.elapsed().as_nanos() ^ u128::from(std::process::id()) ^ unique()));
        command
    };
    let podman = move |_| {
        let mut command = Command::new("podman");
        command.args([
            "--cgroup-manager",
            "cgroupfs",
            "run",
            "--rm",
            "--network",
            "none",
            "--read-only",
            "--rootfs",
        ]);
        command.arg(root).args(JOB);
        command
    };
    Ok(vec![
        ("host python, no sandbox", "python3", Box::new(host)),
        ("bubblewrap (shares the kernel)", "bwrap", Box::new(bwrap)),
        ("gVisor systrap (kernel in user space)", "runsc", Box::new(runsc)),
        ("podman (shares the kernel)", "podman", Box::new(podman)),
    ])
}

fn unique() -> u128 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    u128::from(NEXT.fetch_add(1, Ordering::Relaxed)) << 40
}

/// The image's own root, so that every peer runs the same Python.
fn unpack(env: &TestEnv, root: &Path) -> Result<()> {
    let shown = env.run(&["image", "show", "base", "--json"]).success().json();
    let digest = find_root_digest(&shown).context("`image show --json` names no root part")?;
    let blob = env.images().join("blobs/sha256").join(digest);
    let out = Command::new("fsck.erofs")
        .arg(format!("--extract={}", root.display()))
        .arg(&blob)
        .output()
        .context("start fsck.erofs (package erofs-utils)")?;
    anyhow::ensure!(out.status.success(), "fsck.erofs: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

fn find_root_digest(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::Object(map) => map.iter().find_map(|(key, inner)| match key.as_str() {
            "root" => inner["digest"].as_str().map(|d| d.trim_start_matches("sha256:").to_owned()),
            _ => find_root_digest(inner),
        }),
        serde_json::Value::Array(items) => items.iter().find_map(find_root_digest),
        _ => None,
    }
}

fn installed(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|dir| dir.join(program).is_file())
}
