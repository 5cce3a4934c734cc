//! One side of a copy, as written on the command line.

use offshoot_types::VmRef;
use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

/// `NAME:/PATH` is in a VM; anything else is on the host. A local name with a colon is written `./a:b`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Local(LocalPath),
    Remote(RemotePath),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPath {
    pub path: PathBuf,
    pub shape: Shape,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePath {
    pub vm: VmRef,
    /// Absolute, without a trailing slash unless it is the root itself.
    pub path: String,
    pub shape: Shape,
}

/// What the end of the path says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Plain,
    /// Ends in `/`: a directory, which must exist if copied to.
    Directory,
    /// Ends in `/.`: what is in it, not the directory itself.
    Contents,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlace {
    #[error("the path is empty")]
    Empty,
    #[error("`{text}`: a path inside a VM is absolute, as in `{vm}:/workspace`")]
    Relative { text: String, vm: VmRef },
    #[error("`{text}`: {source}; a local name with a colon is written `./{text}`")]
    Name { text: String, source: offshoot_types::InvalidName },
}

impl FromStr for Place {
    type Err = InvalidPlace;
    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        if text.is_empty() {
            return Err(InvalidPlace::Empty);
        }
        match text.split_once(':') {
            Some((vm, path)) if !vm.contains('/') => {
                let vm: VmRef =
                    vm.parse().map_err(|source| InvalidPlace::Name { text: text.into(), source })?;
                if !path.starts_with('/') {
                    return Err(InvalidPlace::Relative { text: text.into(), vm });
                }
                let (path, shape) = split_shape(path);
                let path = if path.is_empty() { "/" } else { path };
                Ok(Self::Remote(RemotePath { vm, path: path.into(), shape }))
            }
            _ => {
                let (path, shape) = split_shape(text);
                let path = if path.is_empty() { "/" } else { path };
                Ok(Self::Local(LocalPath { path: path.into(), shape }))
            }
        }
    }
}

fn split_shape(path: &str) -> (&str, Shape) {
    let trimmed = path.trim_end_matches('/');
    if path == "." || path == "/." {
        return (if path == "." { "." } else { "/" }, Shape::Contents);
    }
    match trimmed.strip_suffix("/.") {
        Some(directory) => (directory.trim_end_matches('/'), Shape::Contents),
        None if trimmed.len() < path.len() => (trimmed, Shape::Directory),
        None => (trimmed, Shape::Plain),
    }
}

impl RemotePath {
    /// The last component; `None` for the root, and for a path that ends in `..`.
    pub fn name(&self) -> Option<&str> {
        Path::new(&self.path).file_name()?.to_str()
    }

    pub fn join(&self, name: &str) -> String {
        join(&self.path, name)
    }
}

/// `name` below `directory`, inside a VM.
pub fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(text: &str) -> (String, String, Shape) {
        match text.parse() {
            Ok(Place::Remote(RemotePath { vm, path, shape })) => (vm.to_string(), path, shape),
            other => panic!("{text} is {other:?}"),
        }
    }

    fn local(text: &str) -> (PathBuf, Shape) {
        match text.parse() {
            Ok(Place::Local(LocalPath { path, shape })) => (path, shape),
            other => panic!("{text} is {other:?}"),
        }
    }

    #[test]
    fn a_vm_is_named_before_the_colon() {
        assert_eq!(remote("web:/etc/hosts"), ("web".into(), "/etc/hosts".into(), Shape::Plain));
        assert_eq!(remote("web:/"), ("web".into(), "/".into(), Shape::Directory));
        assert_eq!(remote("web:/a/b//"), ("web".into(), "/a/b".into(), Shape::Directory));
        assert_eq!(remote("web:/a/."), ("web".into(), "/a".into(), Shape::Contents));
        assert_eq!(remote("web:/."), ("web".into(), "/".into(), Shape::Contents));
        assert_eq!(remote("web:/a:b").1, "/a:b");
    }

    #[test]
    fn everything_else_is_local() {
        assert_eq!(local("a/b"), ("a/b".into(), Shape::Plain));
        assert_eq!(local("./a:b"), ("./a:b".into(), Shape::Plain));
        assert_eq!(local("/x/a:/b"), ("/x/a:/b".into(), Shape::Plain));
        assert_eq!(local("."), (".".into(), Shape::Contents));
        assert_eq!(local("a/"), ("a".into(), Shape::Directory));
        assert_eq!(local("/"), ("/".into(), Shape::Directory));
    }

    #[test]
    fn relative_paths_in_a_vm_and_impossible_names_are_refused() {
        assert!(matches!("web:etc".parse::<Place>(), Err(InvalidPlace::Relative { .. })));
        assert!(matches!("web:".parse::<Place>(), Err(InvalidPlace::Relative { .. })));
        assert!(matches!("Web:/etc".parse::<Place>(), Err(InvalidPlace::Name { .. })));
        assert!(matches!("".parse::<Place>(), Err(InvalidPlace::Empty)));
    }

    #[test]
    fn the_root_has_no_name() {
        let Ok(Place::Remote(root)) = "web:/".parse() else { panic!("it is remote") };
        assert_eq!((root.name(), root.join("etc").as_str()), (None, "/etc"));
    }
}
