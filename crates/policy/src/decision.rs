//! The three answers, and how a deny reads to the caller.

use crate::{Authorized, PolicyRevision};
use offshoot_types::{Action, Actor, Command, ErrorCode, Failure};
use std::{borrow::Cow, fmt};

/// The stable name of a rule, such as `owner-of-socket/stranger`; callers and audit rows quote it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(Cow<'static, str>);

impl RuleId {
    pub(crate) const fn fixed(id: &'static str) -> Self {
        Self(Cow::Borrowed(id))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The answer to one command of one actor.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    Permit(Authorized<Command>),
    Deny(Denial),
    Require(Required),
}

/// Why not, in words a person or an agent can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Denial {
    pub kind: DenialKind,
    pub actor: Actor,
    pub action: Action,
    pub revision: PolicyRevision,
    /// Never empty.
    pub rule_ids: Vec<RuleId>,
    pub sentence: String,
    pub hint: Option<String>,
}

/// Whether a rule said no, or no rule could be asked. Both deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenialKind {
    Rule,
    /// The judge failed or was given inconsistent facts; an operator must look at it.
    EngineFailure,
}

impl DenialKind {
    /// The stable code in audit rows and log fields.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Rule => "denied-by-rule",
            Self::EngineFailure => "policy-engine-failed",
        }
    }
}

impl From<Denial> for Failure {
    fn from(denial: Denial) -> Self {
        let rules: Vec<&str> = denial.rule_ids.iter().map(RuleId::as_str).collect();
        Self {
            code: ErrorCode::Denied,
            cause: Some(format!("{}: {}", denial.kind.code(), rules.join(", "))),
            message: denial.sentence,
            hint: denial.hint,
        }
    }
}

/// What a caller wants of commands that look as if they could do harm: not to have them carried out, or not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Declined {
    /// Until somebody has approved it.
    Held,
    Refused,
}

/// A command held back: permitted once every obligation is met and policy is asked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Required {
    /// Given back, not authorised.
    pub command: Command,
    pub rule_ids: Vec<RuleId>,
    /// Never empty.
    pub obligations: Vec<Obligation>,
}

/// What must happen before the command may be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obligation {
    /// Somebody other than the actor must approve it.
    Approval {
        /// Who may approve, and what they are asked, as a sentence.
        question: String,
    },
}

impl fmt::Display for Obligation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Approval { question } => write!(f, "approval: {question}"),
        }
    }
}
