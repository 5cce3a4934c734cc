//! What the agent is told at its start: words of the kernel command line, or of its own in a sandbox.

use super::{InitError, Step};
use std::fs;

#[derive(Debug)]
pub struct CommandLine(String);

impl CommandLine {
    pub fn read() -> Result<Self, InitError> {
        fs::read_to_string("/proc/cmdline").map(Self).step("read", "/proc/cmdline")
    }

    pub fn of_words(words: impl IntoIterator<Item = String>) -> Self {
        Self(words.into_iter().collect::<Vec<_>>().join(" "))
    }

    /// The last value given for `key`, as the kernel itself decides.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .rfind(|(k, _)| *k == key)
            .map(|(_, v)| v)
    }
}

#[cfg(test)]
mod tests {
    use super::CommandLine;

    #[test]
    fn the_last_value_of_a_key_wins() {
        let line = CommandLine("quiet offshoot.hostname=a root=x offshoot.hostname=b\n".into());
        assert_eq!(line.value("offshoot.hostname"), Some("b"));
        assert_eq!(line.value("hostname"), None);
    }
}
