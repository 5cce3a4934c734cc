//! The command line as a contract: options anywhere, help for everything, one JSON document, documented statuses.

use offshoot_testkit::TestEnv;

const VERBS: [&str; 29] = [
    "run",
    "create",
    "start",
    "stop",
    "restart",
    "pause",
    "resume",
    "destroy",
    "list",
    "status",
    "exec",
    "context",
    "snapshot",
    "fork",
    "rollback",
    "undo",
    "try",
    "race",
    "tx",
    "suspend",
    "shell",
    "cp",
    "logs",
    "wait",
    "doctor",
    "completion",
    "image",
    "daemon",
    "serve",
];

#[test]
fn scenario_36_global_options_work_before_and_after_the_verb() {
    let env = TestEnv::new();
    env.run(&["create", "a"]).success();
    let before = env.run(&["--json", "list"]).success().json();
    let after = env.run(&["list", "--json"]).success().json();
    assert_eq!(before, after);
    // A flag beats the environment.
    let elsewhere = env.work_dir().join("elsewhere");
    let elsewhere = elsewhere.to_str().expect("UTF-8");
    let other = env.run(&["list", "--json", "--state-dir", elsewhere]).success().json();
    assert_eq!(other["vms"].as_array().map(Vec::len), Some(0));
    env.run(&["--state-dir", elsewhere, "daemon", "stop"]).success();
    let verbose = env.run(&["-v", "start", "a", "--timeout", "60s"]).success();
    assert!(!verbose.stderr.is_empty(), "-v tells what happens");
    env.finish();
}

#[test]
fn scenario_37_every_verb_has_help_and_completions_generate() {
    let env = TestEnv::new();
    for verb in VERBS {
        let out = env.run(&[verb, "--help"]).success();
        assert!(out.stdout.contains("Usage: offshoot"), "{out}");
    }
    for verb in VERBS.iter().filter(|v| !["image", "daemon", "serve", "completion"].contains(v)) {
        let out = env.run(&[verb, "--help"]).success();
        assert!(out.stdout.to_lowercase().contains("example"), "`{verb} --help` has an example: {out}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(env.run(&["completion", shell]).success().stdout.contains("offshoot"));
    }
    env.run(&["--version"]).success();
    env.run(&["no-such-verb"]).exits(2);
    env.run(&[]).exits(2);
    env.finish();
}

#[test]
fn scenario_38_exit_codes_are_as_documented() {
    let env = TestEnv::new();
    env.run(&["create"]).exits(2);
    env.run(&["status", "nobody"]).exits(3);
    env.run(&["create", "a"]).success();
    env.run(&["create", "a"]).exits(4);
    env.run(&["wait", "a", "--for", "running", "--timeout", "300ms"]).exits(6);
    env.run(&["create", "huge", "--memory", "1024G"]).exits(7).stderr_has("memory");
    env.run(&["create", "b", "--provider", "firecracker"]).exits(8);
    env.run(&["start", "a"]).success();
    for status in [0, 1, 7, 42, 255] {
        env.run(&["exec", "a", "--", "sh", "-c", &format!("exit {status}")]).exits(status);
    }
    env.run(&["exec", "a", "--", "sh", "-c", "kill -9 $$"]).exits(137);
    env.run(&["exec", "--timeout", "1s", "a", "--", "sleep", "30"]).exits(124);
    env.run(&["exec", "nobody", "--", "true"]).exits(125);
    env.finish();
}

#[test]
fn scenario_40_json_is_one_document_for_results_and_errors() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--json"]).success().json();
    for arguments in [
        &["list"][..],
        &["status"],
        &["status", "a"],
        &["start", "a"],
        &["exec", "a", "--", "echo", "hi"],
        &["logs", "a"],
        &["wait", "a", "--for", "running"],
        &["pause", "a"],
        &["resume", "a"],
        &["snapshot", "a", "kept"],
        &["snapshot", "list"],
        &["snapshot", "show", "a@kept"],
        &["snapshot", "verify", "a@kept"],
        &["fork", "a@kept", "--name", "b"],
        &["destroy", "b"],
        &["exec", "a", "--context", "main", "-c", "6 * 7"],
        &["context", "list", "a"],
        &["try", "a", "--", "true"],
        &["rollback", "a"],
        &["undo", "a"],
        &["tx", "list", "a"],
        &["suspend", "a"],
        &["resume", "a"],
        &["snapshot", "rm", "a@kept"],
        &["restart", "a"],
        &["stop", "a"],
        &["doctor"],
        &["image", "list"],
        &["daemon", "status"],
        &["destroy", "a"],
    ] {
        let mut with_json = vec!["--json"];
        with_json.extend_from_slice(arguments);
        let out = env.run(&with_json);
        assert!(out.json().is_object(), "{out}");
    }
    let out = env.run(&["status", "nobody", "--json"]).exits(3);
    let error = out.json();
    assert_eq!(error["code"], "not_found", "{out}");
    for field in ["message", "hint", "retryable"] {
        assert!(!error[field].is_null(), "errors carry `{field}`: {out}");
    }
    assert!(out.stderr.is_empty(), "and nothing beside it: {out}");
    env.finish();
}

#[test]
fn output_into_a_closed_pipe_is_not_an_error() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let script = format!("{} exec a -- yes | head -n 2; echo ${{PIPESTATUS[0]}}", env.binary().display());
    let mut command = std::process::Command::new("bash");
    let template = env.command(&[]);
    command.arg("-c").arg(script).env_clear();
    for (key, value) in template.get_envs() {
        if let Some(value) = value {
            command.env(key, value);
        }
    }
    let out = command.output().expect("bash runs");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.starts_with("y\ny\n"), "{text}");
    assert!(!String::from_utf8_lossy(&out.stderr).contains("panicked"));
    env.finish();
}

#[test]
fn scenario_45_offline_nothing_local_needs_a_network() {
    let env = TestEnv::new();
    // A network namespace without any interface is as offline as it gets.
    let out = std::process::Command::new("unshare").args(["--net", "true"]).status();
    assert!(out.is_ok_and(|s| s.success()), "this test needs `unshare --net` (root)");
    let mut command = std::process::Command::new("unshare");
    let template = env.command(&[]);
    command.arg("--net").arg(env.binary()).args(["run", "-c", "print(6 * 7)"]).env_clear();
    command.envs(template.get_envs().filter_map(|(k, v)| Some((k, v?)))).current_dir(env.work_dir());
    let out = command.output().expect("unshare runs");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "42\n", "{}", String::from_utf8_lossy(&out.stderr));
    env.finish();
}
