//! The project's commands: everything CI does, anyone can do with one `cargo xtask` verb.

#![expect(
    clippy::disallowed_macros,
    reason = "a command-line program prints; only the product has a printer"
)]

mod artifacts;
mod bench;
mod check;
mod demo;
mod gvisor;
mod openapi;
mod packages;
mod picture;
mod process;
mod sdk;
mod soak;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, show, test and measure Offshoot")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Do all set-up, then run Python, JavaScript and bash in fresh micro-VMs.
    Demo(demo::Args),
    /// Build a complete `target/release/offshoot` (guest agent included).
    Build,
    /// Do all set-up, then run every test, real VMs included.
    Test(test::Args),
    /// Formatting, lints, repository rules, OpenAPI document: what CI checks besides the tests.
    Check,
    /// Measure, print a table and write JSON.
    Bench(bench::Args),
    /// Run random operations and kills against real VMs for a long time, checking invariants.
    Soak(soak::Args),
    /// Do all set-up, then check the SDKs and run their tests against a real daemon.
    Sdk(sdk::Args),
    /// Install gVisor's `runsc` (on Debian 12 from backports, which this enables), or undo that.
    Gvisor(gvisor::Args),
    /// Build a guest image (`base` unless named).
    Image { name: Option<String> },
    /// Write `openapi/v1.json` from the code.
    Openapi,
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain, without a backtrace: what failed is a program we ran, not this one.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Demo(args) => demo::run(&args),
        Verb::Build => {
            packages::ensure_build()?;
            let built = artifacts::build()?;
            println!("{}", built.offshoot.display());
            Ok(())
        }
        Verb::Test(args) => test::run(&args),
        Verb::Check => check::run(),
        Verb::Bench(args) => bench::run(&args),
        Verb::Soak(args) => soak::run(&args),
        Verb::Sdk(args) => sdk::run(&args),
        Verb::Gvisor(args) => gvisor::run(&args),
        Verb::Image { name } => {
            packages::ensure()?;
            let built = artifacts::build()?;
            artifacts::image(&built, name.as_deref().unwrap_or("base"))
        }
        Verb::Openapi => openapi::write(),
    }
}
