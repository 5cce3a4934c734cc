//! `cargo xtask soak`: the heavy tests, for as long as asked.

use crate::{artifacts, packages, process};
use anyhow::Result;

#[derive(clap::Args)]
pub struct Args {
    /// How long each soak runs, in minutes.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
}

pub fn run(args: &Args) -> Result<()> {
    packages::ensure()?;
    let built = artifacts::build()?;
    artifacts::image(&built, "base")?;
    process::checked(
        process::cargo()
            .args([
                "nextest",
                "run",
                "--profile",
                "soak",
                "--package",
                "offshoot-testkit",
                // Thousands of seeded schedules of engine, record and fake host.
                "--package",
                "offshoot-engine",
                "--locked",
                "-E",
                "test(heavy_soak)",
            ])
            .env("OFFSHOOT_BIN", &built.offshoot)
            .env("OFFSHOOT_GUEST_BIN", &built.guest)
            .env("OFFSHOOT_SOAK_SECONDS", (args.minutes * 60).to_string()),
    )
}
