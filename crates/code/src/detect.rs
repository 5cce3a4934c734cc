//! In which language code is whose fence does not say.

use crate::Language;
use regex::bytes::{RegexSet, RegexSetBuilder};
use std::sync::LazyLock;

/// Bytes at the beginning that are looked at.
const WINDOW: usize = 4096;
/// Fewer points say nothing.
const ENOUGH: u32 = 2;

use Language::{Bash, Go, Javascript, Python, Rust};

/// What speaks for a language, with how many points. Read line by line, in ASCII.
const SIGNS: &[(Language, u32, &str)] = &[
    (Python, 2, r"^\s*(?:async )?def \w+\(.*\).*:\s*(?:#.*)?$"),
    (Python, 2, r"^\s*class \w+(?:\(.*\))?:\s*$"),
    (Python, 2, r"^(?:from [\w.]+ )?import [\w.]+(?:,| as \w+|$)|^from [\w.]+ import "),
    (Python, 2, r"^\s*(?:if|elif|for|while|with|try|except|else)\b[^{};]*:\s*(?:#.*)?$"),
    (Python, 2, r"^\s*print\("),
    (Python, 1, r"\bself\.|\bNone\b|\bTrue\b|\bFalse\b|\blen\("),
    (Javascript, 2, r"\bconsole\.(?:log|error)\("),
    (Javascript, 2, r"^\s*(?:const|let|var) [\w${},\s\[\]]+=[^=]"),
    (Javascript, 2, r"\brequire\(['\x22]|^\s*export (?:default|const|function)\b"),
    (Javascript, 2, r"^\s*(?:async )?function\s*\w*\("),
    (Javascript, 1, r"===|=>|\bundefined\b|;\s*$"),
    (
        Bash,
        2,
        r"^\s*(?:\$ )?(?:sudo|apt|apt-get|cd|ls|echo|export|mkdir|grep|curl|wget|git|pip3?|npm|npx|chmod|chown|cat|rm|cp|mv|docker|python3?|node|cargo|tar|sed|awk|find|source|set) +[\w./~$'\x22-]",
    ),
    (Bash, 2, r"^\s*(?:fi|done|esac)\b|;\s*(?:then|do)\s*$"),
    (Bash, 1, r"\$\{?\w|&&|\|\s*(?:grep|awk|sed|sort|head|tail|wc|xargs)\b"),
    (Go, 3, r"^package \w+\s*$"),
    (Go, 2, r"^func (?:\(\w+ \*?\w+\) )?\w+\(.*\{\s*$"),
    (Go, 2, r"\bfmt\.[A-Z]\w+\("),
    (Go, 1, r":=|\bchan \w|\bgo func\b|^import \("),
    (Rust, 2, r"^\s*(?:pub(?:\(\w+\))? )?(?:async )?fn \w+(?:<.*>)?\("),
    (Rust, 2, r"\b(?:println|eprintln|vec|format|assert|assert_eq)!\s*[(\[]"),
    (Rust, 2, r"^\s*use (?:std|core|crate|super|\w+)::|\blet mut \w"),
    (
        Rust,
        1,
        r"^\s*(?:impl|trait|enum|mod)\b.*\{\s*$|->\s*(?:Result|Option|Self|&|\w+)\b.*\{|\.unwrap\(\)|^\s*#\[\w",
    ),
];

static SET: LazyLock<RegexSet> = LazyLock::new(|| {
    let patterns = SIGNS.iter().map(|(_, _, pattern)| pattern);
    let set = RegexSetBuilder::new(patterns).unicode(false).multi_line(true).crlf(true).build();
    set.unwrap_or_else(|error| unreachable!("the table is constant and every test compiles it: {error}"))
});

/// `None` if nothing, or as much, speaks for another.
pub fn language(code: &str) -> Option<Language> {
    let bytes = code.as_bytes();
    if let Some(line) = bytes.strip_prefix(b"#!") {
        return shebang(line);
    }
    let window = bytes.get(..WINDOW).unwrap_or(bytes);
    let mut points: [(u32, Language); 5] = Language::ALL.map(|language| (0, language));
    for (language, weight, _) in SET.matches(window).into_iter().filter_map(|index| SIGNS.get(index)) {
        for (points, of) in &mut points {
            *points += if of == language { *weight } else { 0 };
        }
    }
    points.sort_unstable();
    match points {
        [.., (second, _), (best, language)] if best >= ENOUGH && best > second => Some(language),
        _ => None,
    }
}

/// `#!/bin/sh -e`, `#!/usr/bin/env -S python3 -u`.
fn shebang(rest: &[u8]) -> Option<Language> {
    let line = rest.split(|byte| *byte == b'\n').next().and_then(|line| line.get(..line.len().min(200)))?;
    let line = std::str::from_utf8(line).ok()?;
    let name = |word: &str| word.rsplit('/').next().map(str::to_owned);
    let mut words = line.split_whitespace();
    let program = name(words.next()?)?;
    let program = match program.as_str() {
        "env" => name(words.find(|word| !word.starts_with('-') && !word.contains('='))?)?,
        _ => program,
    };
    // python3.12 is python.
    program.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_language_is_known_by_what_only_it_says() {
        for (code, found) in [
            ("import os\nprint(os.name)", Some(Python)),
            ("def add(a, b):\n    return a + b\n\nadd(1, 2)", Some(Python)),
            ("for x in range(3):\n    print(x)", Some(Python)),
            ("const x = require('fs');\nconsole.log(x);", Some(Javascript)),
            ("let total = 0;\nfor (const x of [1]) { total += x; }\nconsole.log(total)", Some(Javascript)),
            ("echo $HOME && ls -l", Some(Bash)),
            ("for f in *; do\n  echo \"$f\"\ndone", Some(Bash)),
            ("package main\n\nimport \"fmt\"\n\nfunc main() {\n\tfmt.Println(1)\n}", Some(Go)),
            ("fn main() {\n    println!(\"{}\", 1);\n}", Some(Rust)),
            ("use std::fs;\nlet mut x = vec![1];", Some(Rust)),
            ("#!/usr/bin/env python3\nx", Some(Python)),
            ("#!/usr/bin/env -S node --trace\nx", Some(Javascript)),
            ("#!/bin/sh -e\nimport os", Some(Bash)),
            ("#!/usr/bin/python3.12\r\nx", Some(Python)),
            ("#!/usr/bin/perl\nprint(1)", None),
            ("#!", None),
            ("#!é", None),
            ("Hello there, how are you today", None),
            ("{\"a\": 1}", None),
            ("日本語のテキスト", None),
        ] {
            assert_eq!(language(code), found, "{code}");
        }
    }
}
