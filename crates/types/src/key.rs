//! What an API key is good for. A key is made by somebody, and is never good for more than its maker.

use crate::{Action, ProviderKind, VmName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, num::NonZeroU32, str::FromStr};

/// A group of verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// List and show.
    VmsRead,
    /// Create, move and destroy VMs.
    VmsWrite,
    /// Run processes and code, and connect to ports inside VMs.
    Exec,
    /// Read and change the files of VMs.
    Files,
    /// Keep states and go on from them: snapshots, forks, rollbacks, transactions.
    Snapshots,
    /// Remove and verify images.
    Images,
    /// Make and remove keys, none of them stronger than this one.
    Keys,
    /// End the daemon.
    Daemon,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text:.40}` is not a scope (known: *, vms:read, vms:write, exec, files, snapshots, images, keys, daemon)"
)]
pub struct UnknownScope {
    text: String,
}

impl Scope {
    pub const ALL: [Self; 8] = [
        Self::VmsRead,
        Self::VmsWrite,
        Self::Exec,
        Self::Files,
        Self::Snapshots,
        Self::Images,
        Self::Keys,
        Self::Daemon,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VmsRead => "vms:read",
            Self::VmsWrite => "vms:write",
            Self::Exec => "exec",
            Self::Files => "files",
            Self::Snapshots => "snapshots",
            Self::Images => "images",
            Self::Keys => "keys",
            Self::Daemon => "daemon",
        }
    }

    /// What a key has to have for `action`: all of these.
    pub const fn of(action: Action) -> &'static [Self] {
        match action {
            Action::Inspect => &[Self::VmsRead],
            Action::Create
            | Action::Start
            | Action::Stop
            | Action::Restart
            | Action::Pause
            | Action::Resume
            | Action::Suspend
            | Action::Destroy => &[Self::VmsWrite],
            Action::Exec | Action::Connect => &[Self::Exec],
            Action::ReadFiles | Action::WriteFiles => &[Self::Files],
            // It hands out what opens both.
            Action::Admit => &[Self::Exec, Self::Files],
            Action::Snapshot | Action::RemoveSnapshot | Action::Rollback | Action::Transact => {
                &[Self::Snapshots]
            }
            // It makes VMs.
            Action::Fork => &[Self::Snapshots, Self::VmsWrite],
            Action::ManageImage => &[Self::Images],
            Action::ManageKeys => &[Self::Keys],
            Action::StopDaemon => &[Self::Daemon],
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl FromStr for Scope {
    type Err = UnknownScope;
    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| UnknownScope { text: text.into() })
    }
}

/// Which verbs a key is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub enum Scopes {
    /// Those there are and those there will be: `*`.
    All,
    Only(BTreeSet<Scope>),
}

impl Scopes {
    pub fn has(&self, scope: Scope) -> bool {
        match self {
            Self::All => true,
            Self::Only(scopes) => scopes.contains(&scope),
        }
    }

    fn cover(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::Only(_), Self::All) => false,
            (Self::Only(ours), Self::Only(theirs)) => theirs.is_subset(ours),
        }
    }

    /// From words; `*` among them is all.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownScope> {
        let mut scopes = BTreeSet::new();
        let mut all = false;
        for word in words {
            match word {
                "*" => all = true,
                word => {
                    scopes.insert(word.parse()?);
                }
            }
        }
        Ok(if all { Self::All } else { Self::Only(scopes) })
    }
}
impl TryFrom<Vec<String>> for Scopes {
    type Error = UnknownScope;
    fn try_from(words: Vec<String>) -> Result<Self, UnknownScope> {
        Self::parse(words.iter().map(String::as_str))
    }
}
impl From<Scopes> for Vec<String> {
    fn from(scopes: Scopes) -> Self {
        match scopes {
            Scopes::All => vec!["*".into()],
            Scopes::Only(scopes) => scopes.iter().map(ToString::to_string).collect(),
        }
    }
}

/// What the names of VMs begin with that a key is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmPrefix(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text:.60}` cannot begin a VM's name: use 1 to 40 of a-z, 0-9, `-` and `_`, starting with a letter or digit"
)]
pub struct InvalidPrefix {
    text: String,
}

impl VmPrefix {
    /// Leaves room for what follows in a name.
    const MAX: usize = 40;

    pub fn as_str(&self) -> &str {
        &self.0
    }
    pub fn begins(&self, name: &VmName) -> bool {
        name.as_str().starts_with(&self.0)
    }
}
impl fmt::Display for VmPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl FromStr for VmPrefix {
    type Err = InvalidPrefix;
    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        match text.parse::<VmName>() {
            Ok(_) if text.len() <= Self::MAX => Ok(Self(text.into())),
            _ => Err(InvalidPrefix { text: text.into() }),
        }
    }
}
impl TryFrom<String> for VmPrefix {
    type Error = InvalidPrefix;
    fn try_from(text: String) -> Result<Self, InvalidPrefix> {
        text.parse()
    }
}
impl From<VmPrefix> for String {
    fn from(prefix: VmPrefix) -> String {
        prefix.0
    }
}

/// How far a key reaches; `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyLimits {
    pub scopes: Scopes,
    pub vm_prefix: Option<VmPrefix>,
    /// It makes VMs on this one only.
    pub provider: Option<ProviderKind>,
    /// VMs that exist at once of those made with it, and with keys made with it.
    pub max_vms: Option<NonZeroU32>,
    /// Requests a second, in bursts of as many; keys made with it take from the same.
    pub rate: Option<NonZeroU32>,
    pub expires: Option<Timestamp>,
}

/// One key would be good for more than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its {0} would go beyond that")]
pub struct Stronger(pub &'static str);

impl KeyLimits {
    pub const NONE: Self = Self {
        scopes: Scopes::All,
        vm_prefix: None,
        provider: None,
        max_vms: None,
        rate: None,
        expires: None,
    };

    /// Whether a key with `other` can do nothing that one with these limits cannot.
    pub fn cover(&self, other: &Self) -> Result<(), Stronger> {
        fn within<T: PartialOrd>(ours: Option<T>, theirs: Option<T>) -> bool {
            ours.is_none_or(|ours| theirs.is_some_and(|theirs| theirs <= ours))
        }
        let prefix = self.vm_prefix.as_ref().is_none_or(|ours| {
            other.vm_prefix.as_ref().is_some_and(|theirs| theirs.as_str().starts_with(ours.as_str()))
        });
        let checks = [
            ("scopes", self.scopes.cover(&other.scopes)),
            ("VM prefix", prefix),
            ("provider", self.provider.is_none() || self.provider == other.provider),
            ("number of VMs", within(self.max_vms, other.max_vms)),
            ("rate", within(self.rate, other.rate)),
            ("life", within(self.expires, other.expires)),
        ];
        match checks.iter().find(|(_, weaker)| !weaker) {
            Some((what, _)) => Err(Stronger(what)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_written_as_they_are_read() {
        for (json, has_daemon) in [(r#"["*"]"#, true), (r#"["vms:read","exec"]"#, false), ("[]", false)] {
            let scopes: Scopes = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&scopes).unwrap(), json);
            assert_eq!(scopes.has(Scope::Daemon), has_daemon, "{json}");
        }
        let unknown = serde_json::from_str::<Scopes>(r#"["root"]"#).unwrap_err();
        assert!(unknown.to_string().contains("known: *"), "{unknown}");
        for scope in Scope::ALL {
            assert!(Action::ALL.iter().any(|action| Scope::of(*action).contains(&scope)), "{scope}");
        }
    }

    #[test]
    fn a_key_covers_what_is_as_strong_or_weaker_in_every_respect() {
        let (one, two) = (NonZeroU32::MIN, NonZeroU32::new(2));
        let ours = KeyLimits {
            scopes: Scopes::parse(["exec", "keys"]).unwrap(),
            vm_prefix: Some("ci-".parse().unwrap()),
            provider: Some(ProviderKind::Qemu),
            max_vms: two,
            rate: two,
            expires: Some(Timestamp::UNIX_EPOCH),
        };
        assert_eq!(ours.cover(&ours), Ok(()));
        assert_eq!(KeyLimits::NONE.cover(&ours), Ok(()));
        let later = Timestamp::from_second(1).unwrap();
        type Widen = fn(&mut KeyLimits, Timestamp);
        let wider: [(&str, Widen); 9] = [
            ("scopes", |k, _| k.scopes = Scopes::All),
            ("scopes", |k, _| k.scopes = Scopes::parse(["files"]).unwrap()),
            ("VM prefix", |k, _| k.vm_prefix = None),
            ("VM prefix", |k, _| k.vm_prefix = Some("c".parse().unwrap())),
            ("provider", |k, _| k.provider = Some(ProviderKind::Gvisor)),
            ("number of VMs", |k, _| k.max_vms = NonZeroU32::new(3)),
            ("rate", |k, _| k.rate = None),
            ("life", |k, _| k.expires = None),
            ("life", |k, later| k.expires = Some(later)),
        ];
        for (what, widen) in wider {
            let mut theirs = ours.clone();
            widen(&mut theirs, later);
            assert_eq!(ours.cover(&theirs), Err(Stronger(what)));
        }
        let mut narrow = ours.clone();
        narrow.scopes = Scopes::parse(["exec"]).unwrap();
        narrow.vm_prefix = Some("ci-7-".parse().unwrap());
        narrow.max_vms = Some(one);
        assert_eq!(ours.cover(&narrow), Ok(()));
    }
}
