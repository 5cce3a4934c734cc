//! Writes the checked-in OpenAPI document from the code.

use crate::process::{cargo, checked};
use anyhow::Result;

pub fn write() -> Result<()> {
    // The document is made by the crate that serves it, so the two cannot differ; the test that compares them
    // writes instead when told to.
    checked(
        cargo()
            .args(["test", "--quiet", "--package", "offshoot-server", "--test", "openapi"])
            .env("OFFSHOOT_WRITE_OPENAPI", "1"),
    )
}
