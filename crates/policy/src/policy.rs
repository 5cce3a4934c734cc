//! Asks the judge and turns its verdict into a decision. Everything unexpected is a deny.

use crate::{
    Authorized, Decision, Denial, DenialKind, Facts, Grant, Required, RuleId,
    judge::{Judge, Question, Verdict},
    owner_of_socket::OwnerOfSocket,
};
use offshoot_types::{Actor, Command};
use std::{borrow::Cow, fmt, sync::Arc};

/// Names the exact rules that judged: their kind and version, or later a digest of their text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PolicyRevision(Cow<'static, str>);

impl PolicyRevision {
    pub(crate) const fn fixed(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for PolicyRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

const JUDGE_FAILED: RuleId = RuleId::fixed("policy/engine-failure");
const FACTS_MISMATCH: RuleId = RuleId::fixed("policy/facts-mismatch");
const MALFORMED_VERDICT: RuleId = RuleId::fixed("policy/malformed-verdict");

/// The one decision point. Cheap to clone; shared by every transport.
#[derive(Debug, Clone)]
pub struct Policy {
    judge: Arc<dyn Judge>,
}

impl Policy {
    /// The user `uid`, who owns the daemon's socket, and the daemon itself may all; anyone else nothing.
    pub fn owner_of_socket(uid: u32) -> Self {
        Self { judge: Arc::new(OwnerOfSocket { uid }) }
    }

    pub fn revision(&self) -> PolicyRevision {
        self.judge.revision()
    }

    /// Judges one command. `facts` describe the state it would act on, read just before.
    pub fn decide(&self, actor: &Actor, command: Command, facts: &Facts) -> Decision {
        let action = command.action();
        let revision = self.judge.revision();
        let deny = |kind, rule_ids, sentence, hint| {
            let (actor, revision) = (actor.clone(), revision.clone());
            Decision::Deny(Denial { kind, actor, action, revision, rule_ids, sentence, hint })
        };
        let failed = |rule, sentence| {
            let hint = "nothing was done; whoever runs the daemon must look at its policy".to_owned();
            deny(DenialKind::EngineFailure, vec![rule], sentence, Some(hint))
        };

        if !facts.are_about(&command) {
            let sentence = format!("`{action}` was not decided: the facts given are about another VM");
            return failed(FACTS_MISMATCH, sentence);
        }
        match self.judge.judge(Question { actor, action, command: &command, facts }) {
            Err(failure) => failed(JUDGE_FAILED, format!("`{action}` was not decided: {failure}")),
            Ok(Verdict::Permit { rules }) if !rules.is_empty() => {
                let judged = facts.vm.as_ref().map(|vm| (vm.id, vm.generation));
                let grant = Grant::new(actor.clone(), action, revision, rules, judged);
                Decision::Permit(Authorized::mint(command, grant))
            }
            Ok(Verdict::Deny { rules, sentence, hint }) if !rules.is_empty() => {
                deny(DenialKind::Rule, rules, sentence, hint)
            }
            Ok(Verdict::Require { rules, obligations }) if !rules.is_empty() && !obligations.is_empty() => {
                Decision::Require(Required { command, rule_ids: rules, obligations })
            }
            Ok(Verdict::Permit { .. } | Verdict::Deny { .. } | Verdict::Require { .. }) => failed(
                MALFORMED_VERDICT,
                format!("`{action}` was not decided: policy `{revision}` gave a verdict without saying why"),
            ),
        }
    }
}
