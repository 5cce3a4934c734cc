//! Completion: a piece of code that asks the interpreter which names begin like the word before the cursor, and how
//! that word is found. The code leaves no variable behind, and runs nothing of the user's but what looking up costs.

use offshoot_types::Language;

/// Names that are offered.
const MOST: usize = 200;

/// Where the word begins that ends at `end`.
pub fn word_at(language: Language, line: &str, end: usize) -> usize {
    let part = |c: char| match language {
        Language::Bash => !c.is_whitespace() && !";|&()<>\"'`".contains(c),
        _ => c.is_alphanumeric() || "_.$".contains(c),
    };
    let before = &line[..end];
    before.char_indices().rev().take_while(|&(_, c)| part(c)).last().map_or(end, |(at, _)| at)
}

/// The code that prints what `word` can become, one a line; `None` where there is nothing to ask.
pub fn question(language: Language, word: &str) -> Option<String> {
    if word.is_empty() {
        return None;
    }
    match language {
        Language::Python => {
            is_path(word).then_some(())?;
            Some(format!(
                "(lambda c: print(*(m.rstrip('()') for m in __import__('itertools').takewhile(bool, \
                (c.complete('{word}', n) for n in range({MOST})))), sep='\\n'))\
                (__import__('rlcompleter').Completer(globals()))"
            ))
        }
        Language::Javascript => {
            is_path(word).then_some(())?;
            let (object, start) = word.rsplit_once('.').unwrap_or(("globalThis", word));
            let before = word.strip_suffix(start).unwrap_or_default();
            Some(format!(
                "{{ const found = new Set(); for (let o = Object({object}); o; o = Object.getPrototypeOf(o)) \
                for (const name of Object.getOwnPropertyNames(o)) if (name.startsWith('{start}')) found.add(name); \
                console.log([...found].sort().slice(0, {MOST}).map((name) => '{before}' + name).join('\\n')); }}"
            ))
        }
        Language::Bash => {
            let word = word.replace('\'', "");
            Some(match word.strip_prefix('$') {
                // Nothing found is a failure, and under `set -e` one would end the shell.
                Some(name) => format!("compgen -v -P '$' -- '{name}' | head -n {MOST} || :"),
                None => format!(
                    "{{ compgen -c -- '{word}'; compgen -f -- '{word}'; }} | sort -u | head -n {MOST} || :"
                ),
            })
        }
    }
}

/// A name, or names with dots between: what can be looked up without running anything else.
fn is_path(word: &str) -> bool {
    let name = |name: &str| {
        name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$')
            && !name.starts_with(|c: char| c.is_numeric())
    };
    let mut names: Vec<&str> = word.split('.').collect();
    let last = names.pop().unwrap_or_default();
    names.iter().all(|part| !part.is_empty() && name(part)) && name(last)
}

/// Of what was printed that which was asked for, and the rest: of code that goes on in the background.
pub fn answer(word: &str, printed: &str) -> (Vec<String>, String) {
    let (mut found, mut rest) = (Vec::new(), String::new());
    for whole in printed.split_inclusive('\n') {
        let line = whole.trim_end();
        if line.starts_with(word) && !line.chars().any(char::is_control) && found.len() < MOST {
            found.push(line.to_owned());
        } else if !line.is_empty() {
            rest.push_str(whole);
        }
    }
    (found, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_before_the_cursor_is_found() {
        let word = |language, line: &'static str| &line[word_at(language, line, line.len())..];
        assert_eq!(word(Language::Python, "print(os.pa"), "os.pa");
        assert_eq!(word(Language::Javascript, "x = $y.fo"), "$y.fo");
        assert_eq!(word(Language::Bash, "ls -l /usr/bi"), "/usr/bi");
        assert_eq!(word(Language::Python, "f("), "");
    }

    #[test]
    fn only_names_are_looked_up() {
        for language in [Language::Python, Language::Javascript] {
            assert!(question(language, "os.pa").is_some());
            for word in ["", "f().x", "a..b", "1.x", "a'b"] {
                assert_eq!(question(language, word), None, "{word}");
            }
        }
        assert!(!question(Language::Bash, "a'; rm -rf /; '").unwrap().contains("'a'; rm"));
    }

    #[test]
    fn what_does_not_begin_so_is_not_offered() {
        let (found, rest) = answer("os.pa", "os.path\nnoise\nos.pa\u{7}\n\n");
        assert_eq!((found, rest.as_str()), (vec!["os.path".to_owned()], "noise\nos.pa\u{7}\n"));
    }

    #[test]
    fn a_question_ends_no_shell_that_is_strict() {
        for word in ["no-such-command-or-file", "$no_such_variable", "/"] {
            let question = question(Language::Bash, word).unwrap();
            let code = format!("set -euo pipefail\n{question}\necho alive");
            let asked = std::process::Command::new("bash").args(["-c", &code]).output().unwrap();
            assert!(String::from_utf8_lossy(&asked.stdout).ends_with("alive\n"), "{word}: {asked:?}");
        }
    }
}
