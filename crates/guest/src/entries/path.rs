//! Paths as they are typed.

use crate::fault::invalid;
use offshoot_guest_proto::message::GuestError;

/// Absolute, without `.`, `..` and empty names: relative ones begin in `home`, as does `~`. What `..` would mean behind a
/// symlink is not asked.
pub fn at_home(text: &str, home: &str) -> Result<String, GuestError> {
    let whole = match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{home}/{rest}"),
        Some(_) => return Err(invalid(format!("path {text:?}: another user's home is not known by `~`"))),
        None if text.starts_with('/') => text.to_owned(),
        None => format!("{home}/{text}"),
    };
    let mut names = Vec::new();
    for name in whole.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    Ok(format!("/{}", names.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_where_a_shell_would_have_them_begin() {
        let cases = [
            ("", "/home/u"),
            ("~", "/home/u"),
            ("~/a", "/home/u/a"),
            ("a/b", "/home/u/a/b"),
            ("./a", "/home/u/a"),
            ("../x", "/home/x"),
            ("/", "/"),
            ("/a//b/./c/", "/a/b/c"),
            ("/a/../../b", "/b"),
            ("a~", "/home/u/a~"),
        ];
        for (typed, meant) in cases {
            assert_eq!(at_home(typed, "/home/u").unwrap(), meant, "{typed}");
        }
        assert!(at_home("~other/x", "/home/u").is_err());
    }
}
