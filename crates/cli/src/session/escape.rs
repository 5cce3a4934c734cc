//! The way out of a raw terminal: `~.` at the beginning of a line, as in ssh.
//!
//! ```text
//! LineStart --'~'--> Tilde --'.'--> leave
//!     ^  |             |--'~'--> one `~` --> MidLine
//!     |  other         |--CR, LF--> `~` and it --> LineStart
//! CR, LF |             +--other--> `~` and it --> MidLine
//!     |  v
//!    MidLine
//! ```
//! A key may arrive in any chunk, so the state lives between chunks.

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Escape {
    /// Nothing was typed on this line yet.
    #[default]
    LineStart,
    MidLine,
    /// A `~` at the beginning of a line, held back until the next key.
    Tilde,
}

/// What to do with a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Pass these bytes on.
    Pass(Vec<u8>),
    /// Pass these bytes on, then leave.
    Leave(Vec<u8>),
}

impl Escape {
    pub fn feed(&mut self, chunk: &[u8]) -> Step {
        let mut pass = Vec::with_capacity(chunk.len() + 1);
        for &byte in chunk {
            let ends_line = byte == b'\r' || byte == b'\n';
            *self = match (*self, byte) {
                (Self::LineStart, b'~') => {
                    *self = Self::Tilde;
                    continue;
                }
                (Self::Tilde, b'.') => return Step::Leave(pass),
                (Self::Tilde, b'~') => Self::MidLine,
                (state, _) => {
                    if state == Self::Tilde {
                        pass.push(b'~');
                    }
                    if ends_line { Self::LineStart } else { Self::MidLine }
                }
            };
            pass.push(byte);
        }
        Step::Pass(pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `chunks` and returns what was passed on and whether the keys led out.
    fn fed(chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut escape = Escape::default();
        let mut passed = Vec::new();
        for chunk in chunks {
            match escape.feed(chunk) {
                Step::Pass(bytes) => passed.extend(bytes),
                Step::Leave(bytes) => {
                    passed.extend(bytes);
                    return (passed, true);
                }
            }
        }
        (passed, false)
    }

    #[test]
    fn the_keys_are_recognised_at_every_split_of_the_input() {
        for (typed, passed, leaves) in [
            (&b"~."[..], &b""[..], true),
            (b"ls\r~.", b"ls\r", true),
            (b"ls\n~.rest", b"ls\n", true),
            (b"\r~~.\r", b"\r~.\r", false),
            (b"a~.", b"a~.", false),
            (b"\r~x~.", b"\r~x~.", false),
            (b"~\r~.", b"~\r", true),
            ("é\r~.".as_bytes(), "é\r".as_bytes(), true),
        ] {
            for first in 0..=typed.len() {
                for second in first..=typed.len() {
                    let chunks = [&typed[..first], &typed[first..second], &typed[second..]];
                    assert_eq!(fed(&chunks), (passed.to_vec(), leaves), "{typed:?} at {first}, {second}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn bytes_without_a_tilde_pass_unchanged(typed in proptest::collection::vec(any::<u8>(), 0..200)) {
            let typed: Vec<u8> = typed.into_iter().filter(|byte| *byte != b'~').collect();
            prop_assert_eq!(fed(&[&typed]), (typed, false));
        }

        #[test]
        fn splitting_never_changes_what_is_passed(
            typed in proptest::collection::vec(prop_oneof![Just(b'~'), Just(b'.'), Just(b'\r'), Just(b'x')], 0..20),
            at in 0_usize..20,
        ) {
            let at = at.min(typed.len());
            prop_assert_eq!(fed(&[&typed]), fed(&[&typed[..at], &typed[at..]]));
        }
    }
}
