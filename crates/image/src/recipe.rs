//! What an image is made of: a small TOML file, checked before anything is built.

use offshoot_types::{MemMib, VmName};
use serde::{Deserialize, Serialize};
use std::{fmt, fs, io, path::Path, path::PathBuf, str::FromStr};

/// The recipes that come with Offshoot, by name.
const BUILT_IN: [(&str, &str); 3] = [
    ("base", include_str!("../../../images/base.toml")),
    ("full", include_str!("../../../images/full.toml")),
    ("interpreter", include_str!("../../../images/interpreter.toml")),
];

/// An image to build. Two equal recipes give images that differ only by what Debian published in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The tag the image gets.
    pub name: VmName,
    /// Debian release, such as `bookworm`.
    pub suite: DebianName,
    /// Package that depends on the kernel's package; its modules go into the initramfs.
    pub kernel: DebianName,
    /// Memory of a VM whose creator names none.
    pub memory: MemoryText,
    /// Installed with their dependencies, without recommendations.
    pub packages: Vec<DebianName>,
    /// Shell commands run as root inside the finished root filesystem, under `set -eu`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub setup: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error(
        "no recipe is called `{name}` (there are {}; anything with a `/` or ending in `.toml` is a path)",
        Recipe::built_in_words()
    )]
    Unknown { name: String },
    #[error("read the recipe `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the recipe `{origin}` is not valid")]
    Invalid { origin: String, source: toml::de::Error },
}

impl Recipe {
    /// A recipe by the name of a built-in one, or by path.
    pub fn load(name_or_path: &str) -> Result<Self, RecipeError> {
        if name_or_path.contains('/') || name_or_path.ends_with(".toml") {
            let path = Path::new(name_or_path);
            let text =
                fs::read_to_string(path).map_err(|source| RecipeError::Read { path: path.into(), source })?;
            return Self::parse(name_or_path, &text);
        }
        let (name, text) = BUILT_IN
            .into_iter()
            .find(|(name, _)| *name == name_or_path)
            .ok_or_else(|| RecipeError::Unknown { name: name_or_path.into() })?;
        Self::parse(name, text)
    }

    pub fn parse(origin: &str, text: &str) -> Result<Self, RecipeError> {
        toml::from_str(text).map_err(|source| RecipeError::Invalid { origin: origin.into(), source })
    }

    /// Names of the recipes that come with Offshoot.
    pub fn built_in() -> impl Iterator<Item = &'static str> {
        BUILT_IN.into_iter().map(|(name, _)| name)
    }

    /// The same in words, for help and messages.
    pub fn built_in_words() -> String {
        let [most @ .., last] = BUILT_IN.map(|(name, _)| format!("`{name}`"));
        format!("{} and {last}", most.join(", "))
    }
}

/// A Debian package or suite: lower-case letters, digits, `+`, `-` and `.`. It reaches command lines, so nothing
/// else is let in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DebianName(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a Debian package or suite name")]
pub struct InvalidDebianName {
    pub text: String,
}

impl DebianName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for DebianName {
    type Err = InvalidDebianName;
    fn from_str(text: &str) -> Result<Self, InvalidDebianName> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let valid = text.len() >= 2
            && text.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
            && text.bytes().all(|byte| plain(byte) || b"+-.".contains(&byte));
        if valid { Ok(Self(text.into())) } else { Err(InvalidDebianName { text: text.into() }) }
    }
}
impl TryFrom<String> for DebianName {
    type Error = InvalidDebianName;
    fn try_from(text: String) -> Result<Self, InvalidDebianName> {
        text.parse()
    }
}
impl From<DebianName> for String {
    fn from(name: DebianName) -> String {
        name.0
    }
}
impl fmt::Display for DebianName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Memory as people write it in a recipe (`256M`), where `MemMib` itself is a number of MiB on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemoryText(pub MemMib);

impl TryFrom<String> for MemoryText {
    type Error = offshoot_types::InvalidSize;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}
impl From<MemoryText> for String {
    fn from(memory: MemoryText) -> String {
        memory.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_recipes_parse_under_their_own_names() {
        for name in Recipe::built_in() {
            let recipe = Recipe::load(name).unwrap();
            assert_eq!(recipe.name.to_string(), name);
        }
        assert_eq!(Recipe::load("base").unwrap().memory.0.mib(), 256);
        assert_eq!(Recipe::load("full").unwrap().memory.0.mib(), 2048);
        assert_eq!(Recipe::load("interpreter").unwrap().memory.0.mib(), 512);
    }

    #[test]
    fn the_others_hold_everything_that_base_holds() {
        let base = Recipe::load("base").unwrap();
        let mut missing = Vec::new();
        for name in ["full", "interpreter"] {
            let other = Recipe::load(name).unwrap();
            let lacks = base.packages.iter().filter(|package| !other.packages.contains(package));
            missing.extend(lacks.map(|package| format!("{package} from {name}")));
            assert_eq!((&base.suite, &base.kernel), (&other.suite, &other.kernel));
        }
        assert!(missing.is_empty(), "missing: {}", missing.join(", "));
    }

    #[test]
    fn unknown_fields_and_names_that_could_be_options_are_refused() {
        let text = |packages: &str, more: &str| {
            format!(
                "name = 'x'\nsuite = 'bookworm'\nkernel = 'linux-image-cloud-amd64'\nmemory = '256M'\npackages = [{packages}]\n{more}"
            )
        };
        Recipe::parse("test", &text("'libstdc++6'", "")).unwrap();
        for (packages, more) in
            [("'--help'", ""), ("'a b'", ""), ("'x;y'", ""), ("'../x'", ""), ("'python3'", "pakages = []")]
        {
            assert!(Recipe::parse("test", &text(packages, more)).is_err(), "{packages} {more}");
        }
        assert!(matches!(Recipe::load("bse"), Err(RecipeError::Unknown { .. })));
        assert!(matches!(Recipe::load("./no/such.toml"), Err(RecipeError::Read { .. })));
    }
}
