//! The guest agent that goes into every VM.
//!
//! It is inside this binary (`build.rs`); `OFFSHOOT_GUEST_BIN` names another at run time. A binary that was built
//! without one says so when it is first needed.

use crate::failure::Result;
use offshoot_image::{AgentBinary, AgentError};
use offshoot_types::{ErrorCode, Failure};
use std::{error::Error, path::PathBuf};

static EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest-agent"));
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The agent from `OFFSHOOT_GUEST_BIN`, else the one inside this binary.
pub fn binary() -> Result<AgentBinary> {
    let named = std::env::var_os("OFFSHOOT_GUEST_BIN").filter(|path| !path.is_empty()).map(PathBuf::from);
    choose(named, EMBEDDED).map_err(Into::into)
}

fn choose(named: Option<PathBuf>, embedded: &'static [u8]) -> Result<AgentBinary, Failure> {
    match named {
        Some(path) => AgentBinary::read(&path, VERSION).map_err(|error| {
            unusable(&error).hint("OFFSHOOT_GUEST_BIN must name the static guest agent, or be unset")
        }),
        None if embedded.is_empty() => {
            Err(Failure::new(ErrorCode::Unavailable, "this binary was built without a guest agent")
                .hint("build it with `cargo xtask build`, or name an agent with OFFSHOOT_GUEST_BIN"))
        }
        None => AgentBinary::new(embedded, VERSION).map_err(|error| {
            unusable(&error).hint("build the binary with `cargo xtask build`, which makes a static agent")
        }),
    }
}

fn unusable(error: &AgentError) -> Failure {
    let failure = Failure::new(ErrorCode::Unavailable, error.to_string());
    match error.source() {
        Some(source) => failure.caused_by(source),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_without_an_agent_says_how_to_get_one() {
        let failure = choose(None, b"").unwrap_err();
        assert_eq!(failure.code, ErrorCode::Unavailable);
        assert!(failure.hint.unwrap().contains("cargo xtask build"));
    }

    #[test]
    fn what_could_never_be_an_init_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("agent");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(choose(Some(script), b"").unwrap_err().hint.unwrap().contains("OFFSHOOT_GUEST_BIN"));
        let absent = choose(Some("/nonexistent/agent".into()), b"").unwrap_err();
        assert!(absent.message.contains("/nonexistent/agent"), "{absent}");
    }
}
