//! Paths as the host gives them.

use crate::fault::invalid;
use offshoot_guest_proto::message::GuestError;

/// An absolute path without NUL. `..` and symlinks stay in it: only the kernel, which sees the directories, can
/// say what they mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPath(String);

impl GuestPath {
    pub fn parse(text: &str) -> Result<Self, GuestError> {
        if text.contains('\0') {
            return Err(invalid(format!("path {text:?}: contains a NUL byte")));
        }
        if !text.starts_with('/') {
            return Err(invalid(format!("path {text:?}: not absolute")));
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory that holds what the path names, and its name there. `None` for the root and for paths that
    /// end in `.` or `..`, which have no name of their own.
    pub fn split(&self) -> Option<(&str, &str)> {
        let trimmed = self.0.trim_end_matches('/');
        let (parent, name) = trimmed.rsplit_once('/')?;
        if matches!(name, "" | "." | "..") {
            return None;
        }
        Some((if parent.is_empty() { "/" } else { parent }, name))
    }

    /// Every prefix that ends in a component, shortest first.
    pub fn prefixes(&self) -> impl Iterator<Item = &str> {
        let text = self.0.trim_end_matches('/');
        let ends = text.char_indices().filter(|&(at, c)| c == '/' && at > 0).map(|(at, _)| at);
        ends.chain([text.len()])
            .map(|end| &text[..end])
            .filter(|prefix| !prefix.is_empty() && !prefix.ends_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_and_nul_bytes_are_refused() {
        for bad in ["", "a", "./a", "../a", "/a\0b"] {
            assert!(GuestPath::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_path_splits_into_directory_and_name() {
        let split =
            |text: &str| GuestPath::parse(text).unwrap().split().map(|(p, n)| (p.to_owned(), n.to_owned()));
        let some = |p: &str, n: &str| Some((p.to_owned(), n.to_owned()));
        assert_eq!(split("/a"), some("/", "a"));
        assert_eq!(split("/a/b//"), some("/a", "b"));
        assert_eq!(split("/a/../b"), some("/a/..", "b"));
        for nameless in ["/", "//", "/..", "/a/.", "/a/../"] {
            assert_eq!(split(nameless), None, "{nameless}");
        }
    }

    #[test]
    fn prefixes_lead_to_the_path_component_by_component() {
        let path = GuestPath::parse("/a//b/c/").unwrap();
        assert_eq!(path.prefixes().collect::<Vec<_>>(), ["/a", "/a//b", "/a//b/c"]);
        assert_eq!(GuestPath::parse("/").unwrap().prefixes().count(), 0);
    }
}
