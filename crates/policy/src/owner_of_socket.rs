//! "The owner of the socket may all, anyone else nothing."
//!
//! Root is no exception. It could read the files anyway, but a command from another uid than the daemon's is
//! far more often a forgotten `sudo` than an intention, and it would act on somebody else's VMs.

use crate::{RuleId, judge::Verdict};
use offshoot_types::Action;

const OWNER: RuleId = RuleId::fixed("owner-of-socket/owner");
const DAEMON: RuleId = RuleId::fixed("owner-of-socket/daemon");
const STRANGER: RuleId = RuleId::fixed("owner-of-socket/stranger");

#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnerOfSocket {
    pub uid: u32,
}

impl OwnerOfSocket {
    pub fn daemon(self) -> Verdict {
        Verdict::Permit { rules: vec![DAEMON] }
    }

    pub fn judge(self, uid: u32, action: Action) -> Verdict {
        if uid == self.uid {
            return Verdict::Permit { rules: vec![OWNER] };
        }
        Verdict::Deny {
            rules: vec![STRANGER],
            sentence: format!(
                "user {uid} may not {action} here: this daemon serves only user {}, who owns its socket",
                self.uid
            ),
            hint: Some(format!(
                "run the command as user {}, or start your own daemon with another --state-dir",
                self.uid
            )),
        }
    }
}
