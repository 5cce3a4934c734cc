//! Words and statuses of what is refused before anybody is asked.

use crate::Home;

/// Status, standard output and standard error of a command line that is refused.
fn refused(line: &[&str]) -> String {
    let home = Home::new();
    let ended = home.run(line);
    assert!(!home.state_dir().exists(), "a refusal leaves nothing behind: {line:?}");
    let parts = [("stdout", &ended.stdout), ("stderr", &ended.stderr)];
    let shown = parts.iter().filter(|(_, text)| !text.is_empty());
    let text: String = shown.map(|(name, text)| format!("--- {name}\n{text}")).collect();
    home.redact(&format!("status {}\n{text}", ended.status))
}

#[test]
fn a_name_that_cannot_be_is_explained() {
    insta::assert_snapshot!(refused(&["start", "Web!"]));
}

#[test]
fn sizes_that_cannot_be_are_explained() {
    insta::assert_snapshot!(refused(&["create", "web", "--memory", "0"]));
    insta::assert_snapshot!(refused(&["create", "web", "--memory", "lots"]));
    insta::assert_snapshot!(refused(&["create", "web", "--cpus", "1000"]));
}

#[test]
fn a_duration_without_a_unit_is_explained() {
    insta::assert_snapshot!(refused(&["wait", "web", "--timeout", "30"]));
}

#[test]
fn unknown_verbs_options_and_values_are_usage_errors() {
    for line in [
        &["frobnicate"][..],
        &["list", "--frobnicate"],
        &["create"],
        &["wait", "web", "--for", "sleepy"],
        &["create", "web", "--provider", "docker"],
        &["create", "web", "--isolation", "strong"],
        &["create", "web", "--label", "novalue"],
        &["cp", "a:relative", "."],
        &["image"],
        &["completion", "nosuchshell"],
        &["snapshot"],
        &["snapshot", "web", "list"],
        &["snapshot", "show", "web"],
        &["snapshot", "--disk-only", "list"],
        &["diff"],
        &["diff", "a", "b", "--limit", "0"],
        &["fork"],
        &["fork", "web", "--name", "Not A Name"],
        &["rollback", "web", "before", "--last-good"],
        &["context"],
        &["context", "rm", "web"],
        &["tx"],
        &["tx", "commit", "web"],
        &["race", "web"],
        &["list", "--transaction", "web"],
        &[],
    ] {
        let ended = Home::new().run(line);
        assert_eq!(ended.status, 2, "{line:?}: {}", ended.stderr);
        assert!(ended.stdout.is_empty(), "{line:?}");
    }
}

#[test]
fn where_the_status_is_the_programs_a_usage_error_is_125() {
    for line in [
        &["run"][..],
        &["exec", "web"],
        &["run", "--memory", "0", "-c", "1"],
        &["exec", "Web", "--", "ls"],
        &["exec", "web", "--context", "main"],
        &["exec", "web", "-c", "1"],
        &["exec", "web", "--context", "main", "-c", "1", "--", "ls"],
        &["exec", "web", "--context", "main", "-c", "1", "--lang", "cobol"],
        &["exec", "web", "--context", "main", "-c", "1", "--env", "A=b"],
        &["try", "web"],
        &["try", "web", "--check"],
    ] {
        assert_eq!(Home::new().run(line).status, 125, "{line:?}");
    }
}

#[test]
fn with_json_a_usage_error_is_a_document_too() {
    let home = Home::new();
    for line in [&["--json", "start", "Web!"][..], &["wait", "web", "--for", "sleepy", "--json"]] {
        let ended = home.run(line);
        assert_eq!((ended.status, ended.stderr.as_str()), (2, ""), "{line:?}");
        let error = ended.json();
        assert_eq!(error["code"], "invalid_argument");
        for field in ["message", "hint", "retryable"] {
            assert!(!error[field].is_null(), "{field} of {error}");
        }
    }
}

#[test]
fn a_tcp_address_that_others_reach_is_refused_without_tls() {
    let ended = Home::new().run(&["serve", "--listen", "0.0.0.0:0"]);
    assert_eq!(ended.status, 8);
    assert!(ended.stderr.contains("would be encrypted"), "{}", ended.stderr);
    assert!(ended.stderr.contains("--allow-plaintext"), "{}", ended.stderr);
}

#[test]
fn two_local_places_are_no_copy() {
    let home = Home::new();
    let ended = home.run(&["--no-autostart", "cp", "a", "b"]);
    assert_eq!(ended.status, 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("NAME:/PATH"), "{}", ended.stderr);
}

#[test]
fn a_file_whose_language_nobody_knows_needs_it_named() {
    let home = Home::new();
    std::fs::write(home.dir.path().join("script"), "true").expect("write the script");
    let ended = home.run(&["run", "script"]);
    assert_eq!(ended.status, 125);
    assert!(ended.stderr.contains("hint: name it with `--lang`"), "{}", ended.stderr);
}

#[test]
fn a_vm_called_like_a_command_of_snapshot_is_reached_by_the_long_form() {
    insta::assert_snapshot!(refused(&["snapshot", "web", "list"]));
}

#[test]
fn an_end_of_no_transaction_is_explained_and_an_empty_variable_names_none() {
    insta::assert_snapshot!(refused(&["tx", "commit", "web"]));
    let home = Home::new();
    let mut command = home.command(&["tx", "commit", "web"]);
    command.env("OFFSHOOT_TRANSACTION", "");
    assert_eq!(Home::end(command).status, 2);
}
