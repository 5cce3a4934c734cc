//! Small rules that would otherwise live in reviewers' heads. Each failure says what to do.

use crate::process::{output, root};
use anyhow::{Result, bail};
use std::{fs, process::Command};

/// What a newcomer meets first; anything else belongs in a folder.
const ROOT: &[&str] = &[
    ".cargo",
    ".ci",
    ".config",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "clippy.toml",
    "crates",
    "deny.toml",
    "docs",
    "fuzz",
    "images",
    "openapi",
    "rustfmt.toml",
    "sdk",
    "xtask",
];

const MAX_LINES: usize = 900;

pub fn run() -> Result<()> {
    let listed = output(Command::new("git").args(["ls-files"]).current_dir(root()))?;
    let files: Vec<&str> = listed.lines().filter(|path| root().join(path).exists()).collect();
    let mut problems = Vec::new();
    for file in &files {
        let top = file.split('/').next().unwrap_or(file);
        if !ROOT.contains(&top) {
            problems
                .push(format!("{file}: the root holds only what a newcomer needs; move it into a folder"));
        }
        if file.ends_with(".rs") {
            rust_file(file, &mut problems);
        }
    }
    error_pages(&mut problems);
    problems.sort();
    problems.dedup();
    if problems.is_empty() {
        eprintln!("tidy: {} files", files.len());
        return Ok(());
    }
    bail!("repository rules:\n  {}", problems.join("\n  "))
}

fn rust_file(file: &str, problems: &mut Vec<String>) {
    let Ok(text) = fs::read_to_string(root().join(file)) else { return };
    let lines = text.lines().count();
    if lines > MAX_LINES {
        problems.push(format!("{file}: {lines} lines; split it by concept"));
    }
    let module = file.contains("/src/") && !file.contains("/compile_fail/");
    // A verb's doc comment is its help, and says what a module comment would.
    let explained = file.contains("/cli/src/commands/") || file.ends_with("tests.rs");
    if module && lines > 40 && !explained && !text.trim_start().starts_with("//!") {
        problems.push(format!("{file}: no module comment; say what it is for with `//!`"));
    }
    if text.lines().any(|line| line.trim() == "mod test {") {
        problems.push(format!("{file}: name the test module `tests`"));
    }
    let stem = file.rsplit('/').next().unwrap_or(file);
    if matches!(stem, "utils.rs" | "util.rs" | "helpers.rs" | "common.rs" | "misc.rs") && module {
        problems.push(format!("{file}: name the module by its concept"));
    }
}

/// Every stable error code has a page.
fn error_pages(problems: &mut Vec<String>) {
    let codes = root().join("crates/types/src/error_code.rs");
    let Ok(text) = fs::read_to_string(&codes) else {
        problems.push("crates/types/src/error_code.rs: cannot be read".into());
        return;
    };
    let names = text.lines().filter_map(|line| {
        let (_, rest) = line.trim().split_once(" = \"")?;
        let (code, tail) = rest.split_once("\", ")?;
        tail.starts_with(|c: char| c.is_ascii_digit()).then_some(code)
    });
    let mut seen = 0;
    for code in names {
        seen += 1;
        if !root().join(format!("docs/errors/{code}.md")).is_file() {
            problems.push(format!("docs/errors/{code}.md: missing; every error code has a page"));
        }
    }
    if seen == 0 {
        problems
            .push("crates/types/src/error_code.rs: no codes found; has the table changed its shape?".into());
    }
}
