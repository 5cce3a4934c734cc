//! How sure one can be that code is meant to be run: the scores that clients of Terraphim know.

use crate::Tag;
use regex::Regex;
use std::{fmt, ops::Range, sync::LazyLock};

/// Bytes before and after a block in which it may be asked for.
const AROUND: usize = 200;

/// Between 0 and 1, in hundredths, so that sums are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Confidence(u8);

impl Confidence {
    /// From here on code is run without asking.
    pub const THRESHOLD: Self = Self::tenths(7);

    pub(crate) const fn tenths(tenths: u8) -> Self {
        Self(tenths * 10)
    }

    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    fn with(self, hundredths: u8, holds: bool) -> Self {
        Self(self.0.saturating_add(if holds { hundredths } else { 0 }).min(100))
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.as_f64())
    }
}

fn compiled(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|error| unreachable!("constant, and compiled by every test: {error}"))
}

/// Asks for code to be run.
static ASKED: LazyLock<Regex> = LazyLock::new(|| {
    compiled(
        r"(?i)\b(?:run|execute|try|test)\s+(?:this|that|it|the|these|following)\b|\b(?:let's|let me|let us|can you|could you|please|you can|to)\s+(?:run|execute|try|test)\b|\bhere(?:'s| is) (?:how|the code|a script)\b|\b(?:output|result) (?:will|should) be\b",
    )
});
static MENTIONED: LazyLock<Regex> = LazyLock::new(|| compiled(r"(?i-u)run|execute|try"));

/// What of a text matters to every block in it.
pub struct Surroundings<'a> {
    text: &'a str,
    mentioned: bool,
}

impl<'a> Surroundings<'a> {
    pub fn of(text: &'a str) -> Self {
        Self { text, mentioned: MENTIONED.is_match(text) }
    }

    /// Whether what is around a block asks for it to be run.
    pub fn intend(&self, span: &Range<usize>) -> bool {
        let text = self.text;
        let from = text.floor_boundary(span.start.saturating_sub(AROUND));
        let to = text.floor_boundary(span.end.saturating_add(AROUND).min(text.len()));
        ASKED.is_match(&text[from..span.start]) || ASKED.is_match(&text[span.end..to.max(span.end)])
    }

    pub fn confidence(&self, tag: &Tag, code: &str, intended: bool) -> Confidence {
        let base = match tag.as_str() {
            "python" | "javascript" | "bash" => 4,
            "rust" | "go" | "java" => 3,
            "text" => 1,
            _ => 2,
        };
        let has = |words: [&str; 3]| words.into_iter().any(|word| code.contains(word));
        Confidence::tenths(base)
            .with(20, (2..50).contains(&code.lines().take(50).count()))
            .with(10, has(["def ", "function ", "fn "]))
            .with(10, has(["import ", "require(", "use "]))
            .with(20, intended)
            .with(10, self.mentioned)
    }
}

trait FloorBoundary {
    /// The last boundary between characters at or before `at`.
    fn floor_boundary(&self, at: usize) -> usize;
}

impl FloorBoundary for str {
    fn floor_boundary(&self, at: usize) -> usize {
        // The first always is one.
        (at.saturating_sub(3)..=at).rev().find(|at| self.is_char_boundary(*at)).unwrap_or(0)
    }
}

/// What a text as a whole asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    pub confidence: Confidence,
    /// The words it was found by, in the order of the text.
    pub keywords: Vec<&'static str>,
    pub suggestion: Suggestion,
}

/// What is to be done with its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suggestion {
    Execute,
    Ask,
    Show,
    Ignore,
}

impl Suggestion {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Execute => "auto_execute",
            Self::Ask => "ask",
            Self::Show => "show",
            Self::Ignore => "ignore",
        }
    }
}

const KEYWORDS: [&str; 10] = [
    "run this",
    "execute",
    "try this",
    "test this",
    "run the",
    "run it",
    "let's run",
    "please run",
    "can you run",
    "see what happens",
];

static CLUES: LazyLock<Regex> = LazyLock::new(|| {
    let keywords = KEYWORDS.map(|word| format!("({})", regex::escape(word))).join("|");
    compiled(&format!("(?i-u){keywords}|(\\?)|(\\bfix|\\bdebug)|(\\btest)|(\\bfunction|\\bscript)|(```|~~~)"))
});

impl Intent {
    pub fn of(text: &str) -> Self {
        const OTHERS: usize = 5;
        let mut seen = [false; KEYWORDS.len() + OTHERS];
        let mut keywords = Vec::new();
        for found in CLUES.captures_iter(text) {
            let which = (1..=seen.len()).find(|group| found.get(*group).is_some());
            let Some(seen) = which.and_then(|group| seen.get_mut(group - 1)) else { continue };
            if let Some(keyword) = which.and_then(|group| KEYWORDS.get(group - 1)).filter(|_| !*seen) {
                keywords.push(*keyword);
            }
            *seen = true;
        }
        let [.., question, fix, test, program, code] = seen;
        let mut confidence = Confidence(0);
        for _ in &keywords {
            confidence = confidence.with(30, true);
        }
        let confidence = confidence.with(20, question).with(20, fix).with(15, test && program).with(10, code);
        let suggestion = match confidence.0 {
            81.. => Suggestion::Execute,
            51.. => Suggestion::Ask,
            21.. => Suggestion::Show,
            _ => Suggestion::Ignore,
        };
        Self { confidence, keywords, suggestion }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract;

    fn only(text: &str) -> f64 {
        let blocks = extract(text);
        assert_eq!(blocks.len(), 1, "{text}");
        blocks[0].confidence.as_f64()
    }

    #[test]
    fn each_sign_counts_what_it_counts() {
        for (text, confidence) in [
            ("```python\nprint(1)\n```", 0.4),
            ("```rust\nlet x = 1;\n```", 0.3),
            ("```text\nhello\n```", 0.1),
            ("```cobol\nhello\n```", 0.2),
            ("```python\nprint(1)\nprint(2)\n```", 0.6),
            ("```python\ndef f(): pass\n```", 0.5),
            ("```python\nimport os\n```", 0.5),
            ("Execution: a trial run.\n```python\nprint(1)\n```", 0.5),
            ("Please run it:\n```python\nprint(1)\n```", 0.7),
            ("Run this:\n```python\nimport os\ndef f():\n  pass\n```", 1.0),
        ] {
            assert!((only(text) - confidence).abs() < 1e-9, "{text}: {}", only(text));
        }
        let long = format!("```python\n{}```", "x()\n".repeat(50));
        assert_eq!(only(&long), 0.4, "fifty lines are more than a demonstration");
    }

    #[test]
    fn the_threshold_is_reached_exactly() {
        assert_eq!(only("```python\nimport os\nprint(os.name)\n```"), 0.7);
        assert_eq!(Confidence::THRESHOLD.as_f64(), 0.7);
    }

    #[test]
    fn what_is_asked_for_far_away_is_not_near() {
        let text = format!("Run this:{}\n```python\nprint(1)\n```", " é".repeat(100));
        assert_eq!(only(&text), 0.5);
    }

    #[test]
    fn intent_suggests_what_its_sum_says() {
        for (text, sum, suggestion) in [
            ("Nothing here", 0, Suggestion::Ignore),
            ("Is it so?", 20, Suggestion::Ignore),
            ("Does this work?\n```\nabc\n```", 30, Suggestion::Show),
            ("Please execute it and fix what fails.", 50, Suggestion::Show),
            ("Run this, then try this", 60, Suggestion::Ask),
            ("Run this to test the script. Does it work?\n```\nabc\n```", 75, Suggestion::Ask),
            ("Run this and execute that. Does it work?\n```\nabc\n```", 90, Suggestion::Execute),
            ("RUN THIS run this", 30, Suggestion::Show),
        ] {
            let intent = Intent::of(text);
            assert_eq!((intent.confidence.0, intent.suggestion), (sum, suggestion), "{text}");
        }
        assert_eq!(Intent::of("try this, run this").keywords, ["try this", "run this"]);
    }
}
