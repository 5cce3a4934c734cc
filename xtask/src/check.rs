//! `cargo xtask check`: what CI checks besides the tests.

mod tidy;

use crate::process::{cargo, checked};
use anyhow::Result;

pub fn run() -> Result<()> {
    tidy::run()?;
    checked(cargo().args(["fmt", "--all", "--check"]))?;
    checked(cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    checked(
        cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
