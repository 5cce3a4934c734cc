//! "The owner of the socket may all, anyone else nothing."
//!
//! Root is no exception. It could read the files anyway, but a command from another uid than the daemon's is
//! far more often a forgotten `sudo` than an intention, and it would act on somebody else's VMs.

use crate::{
    PolicyRevision, RuleId,
    judge::{Judge, JudgeFailure, Question, Verdict},
};
use offshoot_types::Actor;

const OWNER: RuleId = RuleId::fixed("owner-of-socket/owner");
const DAEMON: RuleId = RuleId::fixed("owner-of-socket/daemon");
const STRANGER: RuleId = RuleId::fixed("owner-of-socket/stranger");

#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnerOfSocket {
    pub uid: u32,
}

impl Judge for OwnerOfSocket {
    fn revision(&self) -> PolicyRevision {
        PolicyRevision::fixed("owner-of-socket/1")
    }

    fn judge(&self, question: Question<'_>) -> Result<Verdict, JudgeFailure> {
        Ok(match question.actor {
            Actor::Daemon => Verdict::Permit { rules: vec![DAEMON] },
            Actor::LocalUser { uid, .. } if *uid == self.uid => Verdict::Permit { rules: vec![OWNER] },
            Actor::LocalUser { uid, .. } => Verdict::Deny {
                rules: vec![STRANGER],
                sentence: format!(
                    "user {uid} may not {} here: this daemon serves only user {}, who owns its socket",
                    question.action, self.uid
                ),
                hint: Some(format!(
                    "run the command as user {}, or start your own daemon with another --state-dir",
                    self.uid
                )),
            },
        })
    }
}
