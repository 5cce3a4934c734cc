//! Live interpreters: kept in the guest with their variables, from one piece of code to the next.

use crate::ContextName;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

/// What a live context interprets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Language {
    #[default]
    Python,
    Javascript,
    Bash,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no language of a context: use python, javascript or bash")]
pub struct InvalidLanguage {
    pub text: String,
}

impl Language {
    pub const ALL: [Self; 3] = [Self::Python, Self::Javascript, Self::Bash];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Javascript => "javascript",
            Self::Bash => "bash",
        }
    }
}
impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl FromStr for Language {
    type Err = InvalidLanguage;
    fn from_str(text: &str) -> Result<Self, InvalidLanguage> {
        match text {
            "python" | "python3" | "py" => Ok(Self::Python),
            "javascript" | "js" | "node" => Ok(Self::Javascript),
            "bash" | "sh" => Ok(Self::Bash),
            _ => Err(InvalidLanguage { text: text.into() }),
        }
    }
}

/// One piece of code for a live context, which is made on first use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextCode {
    pub context: ContextName,
    /// `None`: that of the context, python for a new one. Another than the context's own is an error.
    pub language: Option<Language>,
    pub code: String,
    /// After this the interpreter is interrupted; its variables survive.
    pub timeout: Option<Duration>,
    /// Who a new context runs as: a name in the guest's `/etc/passwd`, or a numeric uid.
    pub user: String,
    /// Where a new context starts; defaults to the user's home directory.
    pub cwd: Option<String>,
    /// What a new context's interpreter has in its environment, besides the user's own.
    pub context_env: BTreeMap<String, String>,
    /// What this code alone has in its environment.
    pub env: BTreeMap<String, String>,
    /// Refused where there is no such context yet.
    pub existing: bool,
}
