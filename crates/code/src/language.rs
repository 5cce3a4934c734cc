//! What languages are called.

use std::{borrow::Cow, fmt, str::FromStr};

/// What can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Language {
    Python,
    Javascript,
    Bash,
    Go,
    Rust,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no language that can be run: use python, javascript, bash, go or rust")]
pub struct UnsupportedLanguage {
    pub name: String,
}

impl Language {
    pub const ALL: [Self; 5] = [Self::Python, Self::Javascript, Self::Bash, Self::Go, Self::Rust];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Javascript => "javascript",
            Self::Bash => "bash",
            Self::Go => "go",
            Self::Rust => "rust",
        }
    }

    /// That of a live context; `None` for what is compiled first.
    pub const fn interpreted(self) -> Option<offshoot_types::Language> {
        match self {
            Self::Python => Some(offshoot_types::Language::Python),
            Self::Javascript => Some(offshoot_types::Language::Javascript),
            Self::Bash => Some(offshoot_types::Language::Bash),
            Self::Go | Self::Rust => None,
        }
    }

    /// By any of its names, in small letters.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "python" | "python3" | "py" | "py3" | "ipython" => Self::Python,
            "javascript" | "js" | "node" | "nodejs" | "mjs" | "cjs" | "ecmascript" => Self::Javascript,
            "bash" | "sh" | "shell" | "shellscript" => Self::Bash,
            "go" | "golang" => Self::Go,
            "rust" | "rs" => Self::Rust,
            _ => return None,
        })
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Language {
    type Err = UnsupportedLanguage;
    fn from_str(name: &str) -> Result<Self, UnsupportedLanguage> {
        let known = Self::named(&name.trim().to_lowercase());
        known.ok_or_else(|| UnsupportedLanguage { name: name.into() })
    }
}

impl From<offshoot_types::Language> for Language {
    fn from(language: offshoot_types::Language) -> Self {
        match language {
            offshoot_types::Language::Python => Self::Python,
            offshoot_types::Language::Javascript => Self::Javascript,
            offshoot_types::Language::Bash => Self::Bash,
        }
    }
}

/// What a block is said, or found, to be written in: one of ours by its one name, any other as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(Cow<'static, str>);

impl Tag {
    pub const TEXT: Self = Self(Cow::Borrowed("text"));

    /// From the info string of a fence; `None` if that names no language.
    ///
    /// Read are `python title=x`, `rust,no_run`, `go:main.go`, `{.python .numbers}`, `js{1,3}`, in any case.
    pub(crate) fn of_info(info: &str) -> Option<Self> {
        let info = info.trim().trim_start_matches(['{', '.']);
        let end = info.find(|c: char| c.is_whitespace() || matches!(c, ',' | ':' | ';' | '{' | '}' | '='));
        // `title=x`: an attribute, before which no language stands.
        if end.is_some_and(|end| info[end..].starts_with('=')) {
            return None;
        }
        let name = info[..end.unwrap_or(info.len())].to_lowercase();
        match name.as_str() {
            "" => None,
            "text" | "txt" | "plain" | "plaintext" => Some(Self::TEXT),
            known => Some(Language::named(known).map_or(Self(Cow::Owned(name)), Self::from)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn language(&self) -> Option<Language> {
        Language::named(&self.0)
    }
}

impl From<Language> for Tag {
    fn from(language: Language) -> Self {
        Self(Cow::Borrowed(language.as_str()))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_a_language_in_a_fence_is_read() {
        for (info, name) in [
            ("python", Some("python")),
            ("Python3", Some("python")),
            ("py title=\"a b\"", Some("python")),
            ("js{1,3}", Some("javascript")),
            ("{.bash .numbers}", Some("bash")),
            ("{rust}", Some("rust")),
            ("rust,no_run", Some("rust")),
            ("golang:cmd/main.go", Some("go")),
            ("c++", Some("c++")),
            ("Objective-C", Some("objective-c")),
            ("c#", Some("c#")),
            ("plaintext", Some("text")),
            ("title=x", None),
            ("", None),
            ("  ", None),
            ("日本語", Some("日本語")),
        ] {
            assert_eq!(Tag::of_info(info).as_ref().map(Tag::as_str), name, "{info}");
        }
    }

    #[test]
    fn a_language_is_read_by_its_own_name_and_others_are_refused_by_name() {
        for language in Language::ALL {
            assert_eq!(language.as_str().parse(), Ok(language));
            assert_eq!(Tag::from(language).language(), Some(language));
        }
        let refused = "cobol".parse::<Language>().unwrap_err();
        assert_eq!(
            refused.to_string(),
            "`cobol` is no language that can be run: use python, javascript, bash, go or rust"
        );
    }
}
