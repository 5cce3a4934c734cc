//! Access tokens: what opens one VM. Nothing of them is stored: they follow from the VM's id and a key of this host, so a
//! fork has its own, and a rollback changes nothing.

use offshoot_engine::HostKey;
use offshoot_policy::Authorized;
use offshoot_provider::parts::Hash;
use offshoot_types::{Command, ErrorCode, Failure, VmId};
use std::path::Path;

/// In the directory of keys.
const FILE: &str = "access-tokens.key";

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To work in the VM.
    Access,
    /// To talk to the ports of programs in it.
    Traffic,
}

impl Purpose {
    fn bytes(self, vm: VmId) -> Vec<u8> {
        let word: &[u8] = match self {
            Self::Access => b"access:",
            Self::Traffic => b"traffic:",
        };
        [word, vm.as_uuid().as_bytes()].concat()
    }
}

/// Makes and checks tokens.
#[derive(Debug)]
pub struct Tokens(HostKey);

impl Tokens {
    /// Blocks for the time of a small file.
    pub fn load(state_dir: &Path) -> Result<Self, Failure> {
        HostKey::load(&state_dir.join("keys"), FILE).map(Self)
    }

    /// The VM's token, for somebody who may have it.
    pub fn give(&self, permit: Authorized<Command>, purpose: Purpose) -> Result<String, Failure> {
        match (permit.get(), permit.grant().vm()) {
            (Command::Admit { .. }, Some(vm)) => Ok(self.of(vm, purpose)),
            (Command::Admit { vm }, None) => {
                Err(Failure::new(ErrorCode::NotFound, format!("there is no VM `{vm}`")))
            }
            (other, _) => {
                let message = format!("a permit to {} gives no access token", other.action());
                Err(Failure::new(ErrorCode::Internal, message))
            }
        }
    }

    /// To compute with, never to be answered.
    pub(crate) fn of(&self, vm: VmId, purpose: Purpose) -> String {
        self.0.authenticate(&purpose.bytes(vm)).to_string()
    }

    /// Authenticates something else that opens a VM. Not what [`Purpose`] says.
    pub(crate) fn tag(&self, bytes: &[u8]) -> Hash {
        self.0.authenticate(bytes)
    }

    /// Whether [`Tokens::tag`] has made this. Takes the same time whatever differs.
    pub(crate) fn is_ours(&self, bytes: &[u8], tag: &Hash) -> bool {
        self.0.is_ours(bytes, tag)
    }

    /// Whether this is the VM's token. Takes the same time whatever differs.
    pub fn open(&self, vm: VmId, purpose: Purpose, presented: &[u8]) -> bool {
        let hash = std::str::from_utf8(presented).ok().and_then(|text| text.parse().ok());
        hash.is_some_and(|hash| self.0.is_ours(&purpose.bytes(vm), &hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_one_vm_for_one_purpose_also_after_a_restart_and_on_no_other_host() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::load(dir.path()).unwrap();
        let (vm, other) = (VmId::new(), VmId::new());
        let token = tokens.of(vm, Purpose::Access);
        let again = Tokens::load(dir.path()).unwrap();
        assert!(again.open(vm, Purpose::Access, token.as_bytes()));
        assert!(!again.open(other, Purpose::Access, token.as_bytes()));
        assert!(!again.open(vm, Purpose::Traffic, token.as_bytes()));
        for wrong in ["", "x", &token[1..], &token.to_uppercase()] {
            assert!(!again.open(vm, Purpose::Access, wrong.as_bytes()), "{wrong}");
        }
        let elsewhere = tempfile::tempdir().unwrap();
        let elsewhere = Tokens::load(elsewhere.path()).unwrap();
        assert!(!elsewhere.open(vm, Purpose::Access, token.as_bytes()));
    }
}
