//! Commands that a text gives in lines of their own, outside of all blocks.

use crate::{Confidence, Language, Tag};
use regex::Regex;
use std::{ops::Range, sync::LazyLock};

/// A shorter one is a word of a sentence.
const MIN_LENGTH: usize = 5;
/// Nobody gives a longer command in a line.
const MAX_LENGTH: usize = 1000;
/// It counts if one is surer than this that it is to be run.
const MORE_THAN: Confidence = Confidence::tenths(3);

pub fn counts(confidence: Confidence) -> bool {
    confidence > MORE_THAN
}

pub struct Command {
    pub tag: Tag,
    pub span: Range<usize>,
}

/// A command line, for a shell to run.
static COMMAND: LazyLock<Regex> =
    LazyLock::new(|| compiled(r"^(?:python3?\s+\S|node\s+\S|bash\s+\S|cargo\s+run\b)"));
/// A value for a name, which is Python.
static ASSIGNMENT: LazyLock<Regex> = LazyLock::new(|| compiled(r"^\w+\s*=\s*[^\s=]"));

fn compiled(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|error| unreachable!("constant, and compiled by every test: {error}"))
}

/// Those in lines that none of `taken`, which is in order, has a part of.
pub fn commands<'a>(text: &'a str, taken: &'a [Range<usize>]) -> impl Iterator<Item = Command> + 'a {
    let mut at = 0;
    let mut taken = taken.iter().peekable();
    text.split_inclusive('\n').filter_map(move |line| {
        let start = at;
        at += line.len();
        while taken.next_if(|block| block.end <= start).is_some() {}
        if taken.peek().is_some_and(|block| block.start < at) {
            return None;
        }
        let said = line.trim_end();
        if said.len() > MAX_LENGTH || said.len() < MIN_LENGTH {
            return None;
        }
        let language = match said {
            said if COMMAND.is_match(said) => Language::Bash,
            said if ASSIGNMENT.is_match(said) => Language::Python,
            _ => return None,
        };
        Some(Command { tag: language.into(), span: start..start + said.len() })
    })
}
