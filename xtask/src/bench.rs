//! `cargo xtask bench`: measures on this machine, prints a table, writes JSON.

use crate::{artifacts, packages, process};
use anyhow::Result;

#[derive(clap::Args)]
pub struct Args {
    /// Only measurements whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Fewer samples, for a quick look; the record says so.
    #[arg(long)]
    quick: bool,
}

pub fn run(args: &Args) -> Result<()> {
    packages::ensure()?;
    let built = artifacts::build()?;
    artifacts::image(&built, "base")?;
    if args.only.as_deref().is_some_and(|only| "figure".contains(only)) {
        artifacts::image(&built, "interpreter")?;
    }
    process::checked(process::cargo().args([
        "build",
        "--release",
        "--locked",
        "--package",
        "offshoot-testkit",
        "--bin",
        "bench",
    ]))?;
    let mut bench = std::process::Command::new(process::target_dir().join("release/bench"));
    bench
        .env("OFFSHOOT_BIN", &built.offshoot)
        .args(["--guest", &built.guest.display().to_string()])
        .args(["--revision", &artifacts::revision()?])
        .args(["--out", &process::root().join("bench-results").display().to_string()]);
    if let Some(only) = &args.only {
        bench.args(["--only", only]);
    }
    if args.quick {
        bench.arg("--quick");
    }
    process::checked(&mut bench)
}
