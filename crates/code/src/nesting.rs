//! How deep a text may nest quotes and lists.
//!
//! A parser of CommonMark looks at every open container for every line, so a line that opens a hundred thousand of them
//! costs as much again in each line after it. What lies in a line's indentation and markers beyond [`MAX_PREFIX`] is
//! therefore shown to the parser as plain letters. Code is always taken from the text itself.

use std::borrow::Cow;

/// Bytes of indentation, quote and list markers at the beginning of a line.
const MAX_PREFIX: usize = 256;

/// The text as the parser is to see it: as many bytes, the same lines.
pub fn bounded(text: &str) -> Cow<'_, str> {
    let mut seen: Option<String> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let prefix = prefix(line.as_bytes());
        if prefix > MAX_PREFIX {
            let seen = seen.get_or_insert_with(|| text[..at].to_owned());
            seen.push_str(&line[..MAX_PREFIX]);
            // Only ASCII is covered, so that it stays as long.
            seen.extend(std::iter::repeat_n('x', prefix - MAX_PREFIX));
            seen.push_str(&line[prefix..]);
        } else if let Some(seen) = &mut seen {
            seen.push_str(line);
        }
        at += line.len();
    }
    seen.map_or(Cow::Borrowed(text), Cow::Owned)
}

/// How much of a line may be markers of containers, the white space around them included, all of it ASCII. White space
/// that nothing follows is none.
fn prefix(line: &[u8]) -> usize {
    let marker =
        |byte: &u8| matches!(byte, b' ' | b'\t' | b'>' | b'-' | b'+' | b'*' | b'.' | b')' | b'0'..=b'9');
    let end = line.iter().position(|byte| !marker(byte)).unwrap_or(line.len());
    let rest = line.get(end..).unwrap_or_default();
    if !matches!(rest, b"" | b"\n" | b"\r\n") {
        return end;
    }
    // A rule across the page, or nothing at all: opens no container.
    let marks: Vec<u8> = line[..end].iter().copied().filter(|byte| !matches!(byte, b' ' | b'\t')).collect();
    match marks.first() {
        None => 0,
        Some(first @ (b'-' | b'*')) if marks.iter().all(|mark| mark == first) => 0,
        Some(_) => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_is_seen_as_it_is() {
        let rule = "* ".repeat(400);
        for text in ["", "a\n- b\n  > c\n\n```\n  d\n```", &" ".repeat(1000), &"-".repeat(1000), &rule] {
            assert!(matches!(bounded(text), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn what_nests_too_deep_is_letters_of_the_same_length() {
        let text = format!("é\n{}end\n> after", "> ".repeat(500));
        let seen = bounded(&text);
        assert_eq!(seen.len(), text.len());
        assert!(seen.starts_with("é\n> > ") && seen.ends_with("xxxend\n> after"), "{seen}");
        assert_eq!(seen.matches('>').count(), MAX_PREFIX / 2 + 1);
    }
}
