//! The seam behind [`crate::Policy`]: what evaluates the rules. Crate-private, so that nobody outside can
//! supply a judge that permits everything and mint authority with it.

use crate::{Facts, Obligation, PolicyRevision, RuleId};
use offshoot_types::{Action, Actor, Command};
use std::fmt::Debug;

/// Everything a rule may look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    pub actor: &'a Actor,
    pub action: Action,
    pub command: &'a Command,
    pub facts: &'a Facts,
}

/// What the rules say. A verdict names at least one rule, a permit included: the audit must be able to say why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Permit {
        rules: Vec<RuleId>,
    },
    Deny {
        rules: Vec<RuleId>,
        sentence: String,
        hint: Option<String>,
    },
    #[cfg_attr(not(test), expect(dead_code, reason = "no rule of today's judge asks for an approval"))]
    Require {
        rules: Vec<RuleId>,
        obligations: Vec<Obligation>,
    },
}

/// The rules could not be evaluated.
#[derive(Debug, thiserror::Error)]
#[error("policy `{revision}` could not be evaluated: {message}")]
pub(crate) struct JudgeFailure {
    pub revision: PolicyRevision,
    pub message: String,
}

/// Evaluates rules. Pure: the same question to the same revision has the same verdict.
pub(crate) trait Judge: Send + Sync + Debug {
    fn revision(&self) -> PolicyRevision;
    fn judge(&self, question: Question<'_>) -> Result<Verdict, JudgeFailure>;
}
