//! `offshoot run`: agent code in a fresh VM, and nothing left of it.

use offshoot_testkit::TestEnv;
use std::time::Duration;

fn host_kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .expect("read the host's kernel release")
        .trim()
        .to_owned()
}

#[test]
fn run_prints_the_guests_kernel_and_passes_the_status_through() {
    let env = TestEnv::new();
    let out = env.run(&["run", "-c", "import platform; print(platform.release())"]).success();
    assert!(!out.stdout.trim().is_empty() && out.stdout.trim() != host_kernel(), "{out}");
    env.run(&["run", "--", "sh", "-c", "echo to stderr >&2; exit 7"])
        .exits(7)
        .prints("")
        .stderr_has("to stderr");
    let listed = env.run(&["list", "--json"]).success().json();
    assert_eq!(listed["vms"].as_array().map(Vec::len), Some(0), "nothing is left of a run");
    env.finish();
}

#[test]
fn run_speaks_python_javascript_and_bash_from_code_files_and_argv() {
    let env = TestEnv::new();
    env.run(&["create", "dev", "--start"]).success();
    let script = env.work_dir().join("script.js");
    std::fs::write(&script, "console.log([1, 2, 3].map(x => x * 2).join())").expect("write the script");
    env.run(&["run", "script.js"]).success().prints("2,4,6\n");
    env.run(&["run", "--lang", "bash", "-c", "echo ${BASH_VERSION%%.*} \"$(id -un)\""])
        .success()
        .prints("5 root\n");
    env.run(&["run", "--lang", "python", "-c", "import sys; sys.exit(3)"]).exits(3);
    // Multibyte text and large output come through whole.
    let out = env.run(&["exec", "dev", "--", "python3", "-c", "print('é漢🙂' * 100000)"]).success();
    assert_eq!(out.stdout, format!("{}\n", "é漢🙂".repeat(100_000)));
    env.finish();
}

#[test]
fn run_keeps_the_vm_when_asked_and_json_is_one_document() {
    let env = TestEnv::new();
    let out = env.run(&["run", "--json", "--keep", "-c", "x = 41; print(x + 1)"]).success();
    let answer = out.json();
    assert_eq!(answer["stdout"], "42\n", "{out}");
    assert_eq!(answer["provider"], "qemu");
    assert!(
        ["emulated-vm", "hardware-vm"].contains(&answer["isolation"].as_str().unwrap_or_default()),
        "{out}"
    );
    let listed = env.run(&["list", "--json"]).success().json();
    assert_eq!(listed["vms"].as_array().map(Vec::len), Some(1), "--keep keeps it");
    env.finish();
}

#[test]
fn scenario_14_a_timeout_exits_124_and_kills_the_process_tree() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let out =
        env.run(&["exec", "--timeout", "2s", "a", "--", "sh", "-c", "sleep 1000 & sleep 1000"]).exits(124);
    assert!(out.took < Duration::from_secs(5), "the limit is kept: {out}");
    let left =
        env.run(&["exec", "a", "--", "sh", "-c", "ps -e -o comm= | grep -c '^sleep$' || true"]).success();
    assert_eq!(left.stdout.trim(), "0", "the whole tree is gone");
    env.run(&["run", "--timeout", "1s", "--", "sleep", "60"]).exits(124);
    env.finish();
}

#[test]
fn our_own_failures_exit_125_in_run_and_exec() {
    let env = TestEnv::new();
    env.run(&["run", "--image", "no-such-image", "-c", "1"]).exits(125).stderr_has("hint");
    env.run(&["exec", "nobody", "--", "true"]).exits(125).stderr_has("nobody");
    env.finish();
}

#[test]
fn standard_input_reaches_the_guest_and_its_end_too() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let megabyte = "0123456789abcde\n".repeat(1 << 16);
    let out = env.run_with_input(&["exec", "-i", "a", "--", "sha256sum"], megabyte.as_bytes()).success();
    let host = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), megabyte.as_bytes())?;
            child.wait_with_output()
        })
        .expect("sha256sum runs on the host");
    assert_eq!(out.stdout, String::from_utf8_lossy(&host.stdout));
    env.run(&["exec", "a", "--", "cat"]).success().prints("");
    env.finish();
}

#[test]
fn limits_on_output_users_and_environment_hold() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let out = env
        .run(&["exec", "--json", "--max-output", "1K", "a", "--", "sh", "-c", "yes | head -c 100000"])
        .json();
    assert_eq!(out["truncated"], true);
    assert_eq!(out["stdout"].as_str().map(str::len), Some(1024));
    env.run(&["exec", "--user", "user", "a", "--", "id", "-un"]).success().prints("user\n");
    env.run(&["exec", "--user", "user", "a", "--", "pwd"]).success().prints("/home/user\n");
    env.run(&["exec", "--user", "user", "a", "--", "sudo", "-n", "id", "-u"]).success().prints("0\n");
    env.run(&[
        "exec",
        "--env",
        "GREETING=hello there",
        "--cwd",
        "/workspace",
        "a",
        "--",
        "sh",
        "-c",
        "echo $GREETING; pwd",
    ])
    .success()
    .prints("hello there\n/workspace\n");
    // A program that does not exist is the guest's failure, with the status a shell would give.
    env.run(&["exec", "a", "--", "no-such-program"]).exits(127).stderr_has("no-such-program");
    // No network card is built: only loopback exists.
    let links = env.run(&["exec", "a", "--", "sh", "-c", "ls /sys/class/net"]).success();
    assert_eq!(links.stdout, "lo\n", "scenario_network_isolation: no packet can leave");
    env.finish();
}
