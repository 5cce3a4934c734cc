//! The guest agent that becomes `/init` of the initramfs.

use crate::{BlobDigest, elf};
use std::{borrow::Cow, fmt, io, path::Path, path::PathBuf};

/// The static executable of the guest agent, and the version it was built as.
#[derive(Clone)]
pub struct AgentBinary {
    bytes: Cow<'static, [u8]>,
    version: String,
}

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the guest agent is not usable as `/init`")]
    NotElf(#[source] elf::ElfError),
    #[error(
        "the guest agent is dynamically linked (it asks for an interpreter), but the initramfs has no libraries"
    )]
    Dynamic,
    #[error("read the guest agent `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
}

impl AgentBinary {
    /// Takes the agent's bytes and refuses what could never run as PID 1 of a VM.
    pub fn new(bytes: impl Into<Cow<'static, [u8]>>, version: impl Into<String>) -> Result<Self, AgentError> {
        let bytes = bytes.into();
        let elf = elf::Elf::parse(&bytes).map_err(AgentError::NotElf)?;
        if elf.asks_for_interpreter() {
            return Err(AgentError::Dynamic);
        }
        Ok(Self { bytes, version: version.into() })
    }

    pub fn read(path: &Path, version: impl Into<String>) -> Result<Self, AgentError> {
        let bytes =
            std::fs::read(path).map_err(|source| AgentError::Read { path: path.to_owned(), source })?;
        Self::new(bytes, version)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn digest(&self) -> BlobDigest {
        BlobDigest::of(&self.bytes)
    }
}

impl fmt::Debug for AgentBinary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentBinary({} bytes, version {})", self.bytes.len(), self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::{Note, program};

    #[test]
    fn a_script_or_a_dynamic_program_is_refused() {
        assert!(matches!(AgentBinary::new(&b"#!/bin/sh\n"[..], "1"), Err(AgentError::NotElf(_))));
        assert!(matches!(AgentBinary::new(program(Note::Interpreter), "1"), Err(AgentError::Dynamic)));
        AgentBinary::new(program(Note::None), "1").unwrap();
    }
}
