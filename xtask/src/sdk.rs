//! `cargo xtask sdk`: the SDKs of this project, those of E2B and of the Model Context Protocol, and a client made of the
//! OpenAPI document, checked and run against a real daemon and real VMs.
//!
//! What they need is installed from PyPI and npm: into a virtual environment below `target/`, and into `node_modules`
//! beside each `package.json`. Nothing of the host's own Python or Node is changed.

use crate::{
    artifacts::{self, Built},
    packages,
    process::{checked, on_path, root, target_dir},
};
use anyhow::{Context as _, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

#[derive(clap::Args)]
pub struct Args {
    /// Only these; all if none is named.
    #[arg(value_enum)]
    suites: Vec<Suite>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// `sdk/python`.
    Python,
    /// `sdk/typescript`.
    Typescript,
    /// `sdk/e2b`: E2B's own SDKs, unmodified.
    E2b,
    /// `sdk/mcp`: the Python SDK of the Model Context Protocol, unmodified.
    Mcp,
    /// `openapi/conformance`: requests made from the OpenAPI document, and answers held to it.
    Openapi,
}

const ALL: &[Suite] = &[Suite::Python, Suite::Typescript, Suite::E2b, Suite::Mcp, Suite::Openapi];

pub fn run(args: &Args) -> Result<()> {
    packages::ensure()?;
    let built = artifacts::build()?;
    artifacts::image(&built, "base")?;
    let suites = if args.suites.is_empty() { ALL } else { &args.suites };
    let failed = test(&built, suites);
    if failed > 0 {
        bail!("{failed} of {} suites failed", suites.len());
    }
    Ok(())
}

/// Runs every suite and says how many passed and failed.
pub fn test_all(built: &Built) -> (u64, u64) {
    let failed = test(built, ALL);
    (ALL.len() as u64 - failed, failed)
}

fn test(built: &Built, suites: &[Suite]) -> u64 {
    let mut failed = 0;
    for suite in suites {
        let outcome = match suite {
            Suite::Python => python(built),
            Suite::Typescript => typescript(built),
            Suite::E2b => e2b(built),
            Suite::Mcp => mcp(built),
            Suite::Openapi => openapi(built),
        };
        if let Err(error) = outcome {
            eprintln!("error: {error:#}");
            failed += 1;
        }
    }
    failed
}

fn python(built: &Built) -> Result<()> {
    let dir = root().join("sdk/python");
    let venv = virtual_environment("python", &["-r", "requirements-dev.txt", "-e", "."], &dir)?;
    let tool = |name: &str| {
        let mut command = Command::new(venv.join("bin").join(name));
        command.current_dir(&dir).env("OFFSHOOT_BIN", &built.offshoot);
        command
    };
    checked(tool("python").args(["scripts/generate.py", "--check"]))?;
    checked(tool("ruff").args(["check", "--quiet"]))?;
    checked(tool("ruff").args(["format", "--check", "--quiet"]))?;
    checked(&mut tool("mypy"))?;
    checked(tool("pytest").arg("-q"))
}

fn typescript(built: &Built) -> Result<()> {
    let npm = |words: &[&str]| {
        let mut command = Command::new("npm");
        command.args(words).current_dir(root().join("sdk/typescript"));
        command.env("OFFSHOOT_BIN", &built.offshoot);
        checked(&mut command)
    };
    npm(&["ci", "--no-audit", "--no-fund"])?;
    npm(&["run", "check"])?;
    npm(&["test"])
}

fn e2b(built: &Built) -> Result<()> {
    let dir = root().join("sdk/e2b");
    // What its default template is here; charts need it.
    artifacts::image(built, "interpreter")?;
    let venv = virtual_environment("e2b", &["-r", "requirements.txt"], &dir)?;
    checked(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&dir))?;
    let mut providers = vec![""];
    if on_path("runsc") {
        providers.push("gvisor");
    }
    for provider in providers {
        let mut pytest = Command::new(venv.join("bin/pytest"));
        // Empty: the default one.
        pytest.arg("-q").current_dir(&dir).env("OFFSHOOT_E2B_PROVIDER", provider);
        checked(pytest.env("OFFSHOOT_BIN", &built.offshoot))?;
    }
    Ok(())
}

fn mcp(built: &Built) -> Result<()> {
    let dir = root().join("sdk/mcp");
    let venv = virtual_environment("mcp", &["-r", "requirements.txt"], &dir)?;
    let mut pytest = Command::new(venv.join("bin/pytest"));
    checked(pytest.arg("-q").current_dir(&dir).env("OFFSHOOT_BIN", &built.offshoot))
}

fn openapi(built: &Built) -> Result<()> {
    let dir = root().join("openapi/conformance");
    let venv = virtual_environment("openapi", &["-r", "requirements.txt"], &dir)?;
    let mut pytest = Command::new(venv.join("bin/pytest"));
    // What it found is in its output, which pytest would keep to itself.
    checked(pytest.args(["-q", "--capture=no"]).current_dir(&dir).env("OFFSHOOT_BIN", &built.offshoot))
}

/// A Python of our own with `packages`, which pip is asked for in `dir`.
fn virtual_environment(name: &str, packages: &[&str], dir: &Path) -> Result<PathBuf> {
    let venv = target_dir().join("sdk").join(name);
    // Written last: one that was left half made is made anew.
    let whole = venv.join("whole");
    if !whole.exists() {
        checked(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        std::fs::write(&whole, "").with_context(|| format!("write {}", whole.display()))?;
    }
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(packages);
    checked(pip.current_dir(dir))?;
    Ok(venv)
}
