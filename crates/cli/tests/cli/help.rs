//! Help is part of the interface: every verb's, as it is printed.

use crate::Home;

const VERBS: [&str; 35] = [
    "run",
    "create",
    "start",
    "stop",
    "restart",
    "pause",
    "resume",
    "suspend",
    "life",
    "destroy",
    "list",
    "status",
    "exec",
    "context",
    "repl",
    "shell",
    "cp",
    "port",
    "snapshot",
    "fork",
    "diff",
    "rollback",
    "undo",
    "try",
    "tx",
    "race",
    "logs",
    "wait",
    "image",
    "key",
    "mcp",
    "daemon",
    "serve",
    "doctor",
    "completion",
];

#[test]
fn the_help_of_the_program_is_as_reviewed() {
    let ended = Home::new().run(&["--help"]);
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
    insta::assert_snapshot!("offshoot", ended.stdout);
    for verb in VERBS {
        assert!(ended.stdout.contains(&format!("\n  {verb} ")), "`{verb}` is listed");
    }
    assert!(!ended.stdout.contains("keeper"), "what is not for people is hidden");
}

#[test]
fn the_help_of_each_verb_is_as_reviewed_and_has_an_example() {
    let home = Home::new();
    for verb in VERBS {
        let ended = home.run(&[verb, "--help"]);
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{verb}");
        assert!(ended.stdout.contains("Examples:"), "`{verb}` has an example");
        insta::assert_snapshot!(verb, ended.stdout);
    }
}

#[test]
fn the_version_is_printed() {
    let ended = Home::new().run(&["--version"]);
    assert_eq!(ended.stdout, format!("offshoot {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_come_for_every_shell_and_a_closed_pipe_does_not_matter() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = home.run(&["completion", shell]);
        assert_eq!(ended.status, 0, "{shell}");
        assert!(ended.stdout.contains("doctor"), "{shell}");
    }
    let binary = env!("CARGO_BIN_EXE_offshoot");
    let mut bash = std::process::Command::new("bash");
    bash.args(["-c", &format!("{binary} completion bash | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}")]);
    let ended = Home::end(bash);
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
}
