//! The keeper.
use std::{path::Path, process::ExitCode};

/// `offshoot keeper --spec FILE`.
pub fn main(spec: &Path) -> ExitCode {
    let _ = spec;
    ExitCode::FAILURE
}
