//! On whose behalf a caller says it acts: a claim, for the history. The actor beside it is verified.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// 1 to 128 visible ASCII characters, so that it is one header value, one word of a command line and one cell of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentName(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text:.40}` is no name of an agent: use 1 to {} visible ASCII characters", AgentName::MAX)]
pub struct InvalidAgent {
    text: String,
}

impl AgentName {
    /// Most characters.
    pub const MAX: usize = 128;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for AgentName {
    type Err = InvalidAgent;
    fn from_str(text: &str) -> Result<Self, InvalidAgent> {
        let valid = (1..=Self::MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidAgent { text: text.escape_default().collect() })
        }
    }
}
impl TryFrom<String> for AgentName {
    type Error = InvalidAgent;
    fn try_from(text: String) -> Result<Self, InvalidAgent> {
        text.parse()
    }
}
impl From<AgentName> for String {
    fn from(name: AgentName) -> String {
        name.0
    }
}
impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_visible_word() {
        for good in ["a", "Rust-Engineer_7", "team/agent:1@host", &"x".repeat(AgentName::MAX)] {
            assert_eq!(good.parse::<AgentName>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a\n", "é", "\u{7f}", &"x".repeat(AgentName::MAX + 1)] {
            assert!(bad.parse::<AgentName>().is_err(), "{bad:?}");
        }
        let refused = "a\u{1b}[2J".parse::<AgentName>().unwrap_err().to_string();
        assert!(!refused.contains('\u{1b}'), "{refused:?}");
    }
}
