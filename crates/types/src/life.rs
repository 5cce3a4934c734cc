//! When a VM rests by itself, and when its time is up.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// What a VM does without being asked. Of a VM that lives as long as its request nothing of this holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Life {
    /// It is suspended once nothing was asked of it for so long; `None`: never.
    pub idle_suspend: Option<Duration>,
    pub wake: Wake,
    /// How long it may run after each start; `None`: for ever.
    pub timeout: Option<Duration>,
    pub on_timeout: OnTimeout,
}

impl Life {
    /// This life with what `change` names taken from there.
    pub fn changed(self, change: LifeChange) -> Self {
        Self {
            idle_suspend: change.idle_suspend.map_or(self.idle_suspend, TimeLimit::span),
            wake: change.wake.unwrap_or(self.wake),
            timeout: change.timeout.map_or(self.timeout, TimeLimit::span),
            on_timeout: change.on_timeout.unwrap_or(self.on_timeout),
        }
    }
}

/// Whether a request that needs a running VM continues one that is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wake {
    /// If it was suspended by itself. What somebody suspended, somebody resumes.
    #[default]
    Auto,
    /// Also if somebody suspended it.
    Always,
    Never,
}

/// What becomes of a VM whose time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTimeout {
    /// Nothing is lost.
    #[default]
    Suspend,
    Stop,
    Destroy,
}

/// What is to be another than before in a [`Life`]; the rest stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LifeChange {
    pub idle_suspend: Option<TimeLimit>,
    pub wake: Option<Wake>,
    /// Of a VM that runs it counts from now.
    pub timeout: Option<TimeLimit>,
    pub on_timeout: Option<OnTimeout>,
}

/// A limit that is set or lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeLimit {
    None,
    After(Duration),
}

impl TimeLimit {
    pub const fn span(self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::After(span) => Some(span),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text:.40}` is not one of {known}")]
pub struct UnknownWord {
    text: String,
    known: &'static str,
}

macro_rules! words {
    ($name:ident: $known:literal, $($variant:ident = $word:literal),*) => {
        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                let found = Self::ALL.iter().copied().find(|one| one.as_str() == text);
                found.ok_or_else(|| UnknownWord { text: text.into(), known: $known })
            }
        }
    };
}

words!(Wake: "auto, always, never", Auto = "auto", Always = "always", Never = "never");
words!(OnTimeout: "suspend, stop, destroy", Suspend = "suspend", Stop = "stop", Destroy = "destroy");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_written_as_they_are_read_and_nothing_is_destroyed_unless_asked() {
        for wake in Wake::ALL {
            assert_eq!(wake.to_string().parse(), Ok(*wake));
            assert_eq!(serde_json::to_string(wake).unwrap(), format!("\"{wake}\""));
        }
        for on in OnTimeout::ALL {
            assert_eq!(on.to_string().parse(), Ok(*on));
            assert_eq!(serde_json::to_string(on).unwrap(), format!("\"{on}\""));
        }
        assert_eq!(Life::default().on_timeout, OnTimeout::Suspend);
        let unknown = "kill".parse::<OnTimeout>().unwrap_err();
        assert_eq!(unknown.to_string(), "`kill` is not one of suspend, stop, destroy");
    }

    #[test]
    fn a_change_sets_and_lifts_what_it_names() {
        let span = Duration::from_secs(60);
        let set = LifeChange { timeout: Some(TimeLimit::After(span)), ..LifeChange::default() };
        let life = Life { idle_suspend: Some(span), ..Life::default() }.changed(set);
        assert_eq!((life.idle_suspend, life.timeout), (Some(span), Some(span)));
        let lift = LifeChange { idle_suspend: Some(TimeLimit::None), ..LifeChange::default() };
        assert_eq!(life.changed(lift), Life { idle_suspend: None, ..life });
    }
}
