//! What an interpreter says on its control socket: a line of a kind, the number of the order it is about and the lengths
//! of its texts, then the texts.
//!
//! ```text
//! end ORDER STATUS?  |  value ORDER (media type, representation)*  |  error ORDER name message traceback
//!      |  display ORDER SERIAL (name or nothing) ("1", an update, or nothing) (media type, representation)*
//! ```
//! It is said by the process that runs the user's code, so it is not believed further than the user's code is.

use offshoot_guest_proto::message::{
    CodeEvent, MAX_DISPLAY_ID, MAX_ERROR, MAX_REPRESENTATIONS, MAX_VALUE, TEXT_PLAIN,
};
use std::collections::BTreeMap;

const MAX_LINE: usize = 512;

#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its serial number is told back once all that was written before it is taken: the interpreter waits for that.
    Display {
        serial: u64,
        event: CodeEvent,
    },
    Conclusion(CodeEvent),
    End {
        status: i32,
    },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the interpreter said what is no answer")]
pub struct Nonsense;

/// Takes one whole answer off the front of `received`, with the number of the order it is about; `None` while it is not
/// whole.
pub fn take(received: &mut Vec<u8>) -> Result<Option<(u64, Answer)>, Nonsense> {
    let Some(line) = received.iter().take(MAX_LINE).position(|&byte| byte == b'\n') else {
        return if received.len() < MAX_LINE { Ok(None) } else { Err(Nonsense) };
    };
    let text = std::str::from_utf8(&received[..line]).map_err(|_| Nonsense)?;
    let mut words = text.split(' ');
    let kind = words.next().unwrap_or_default();
    let mut number = || words.next().and_then(|word| word.parse().ok()).ok_or(Nonsense);
    let order = number()?;
    let serial = if kind == "display" { number()? } else { 0 };
    if kind == "end" {
        let status = words.next().map_or(Ok(0), str::parse).map_err(|_| Nonsense)?;
        received.drain(..=line);
        return Ok(Some((order, Answer::End { status })));
    }
    let lengths: Vec<usize> = words.map(str::parse).collect::<Result<_, _>>().map_err(|_| Nonsense)?;
    let total = lengths.iter().try_fold(0, |sum: usize, &length| sum.checked_add(length));
    let most = if kind == "error" { MAX_ERROR } else { MAX_VALUE };
    let total = total.filter(|&total| total <= most).ok_or(Nonsense)?;
    let Some(mut rest) = received.get(line + 1..line + 1 + total) else { return Ok(None) };
    let mut texts = Vec::with_capacity(lengths.len());
    for length in &lengths {
        let (text, after) = rest.split_at(*length);
        texts.push(std::str::from_utf8(text).map_err(|_| Nonsense)?.to_owned());
        rest = after;
    }
    let mut texts = texts.into_iter();
    let mut next = || texts.next().unwrap_or_default();
    let answer = match (kind, lengths.len()) {
        ("value", _) => Answer::Conclusion(CodeEvent::Value { mime: representations(texts)? }),
        ("display", 4..) => {
            let (id, update) = (next(), next() == "1");
            let id = (!id.is_empty()).then_some(id);
            if update && id.is_none() || id.as_ref().is_some_and(|id| id.len() > MAX_DISPLAY_ID) {
                return Err(Nonsense);
            }
            Answer::Display {
                serial,
                event: CodeEvent::Display { mime: representations(texts)?, id, update },
            }
        }
        ("error", 3) => {
            Answer::Conclusion(CodeEvent::Error { name: next(), message: next(), traceback: next() })
        }
        _ => return Err(Nonsense),
    };
    received.drain(..line + 1 + total);
    Ok(Some((order, answer)))
}

/// Names and texts in turn, the plain text among them.
fn representations(
    mut texts: impl ExactSizeIterator<Item = String>,
) -> Result<BTreeMap<String, String>, Nonsense> {
    if texts.len() > 2 * MAX_REPRESENTATIONS || !texts.len().is_multiple_of(2) {
        return Err(Nonsense);
    }
    let mut mime = BTreeMap::new();
    while let (Some(kind), Some(representation)) = (texts.next(), texts.next()) {
        mime.insert(kind, representation);
    }
    if mime.contains_key(TEXT_PLAIN) { Ok(mime) } else { Err(Nonsense) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_cut_anywhere_are_taken_whole() {
        let wire = b"display 5 9 1 1 10 1\na1text/plain7value 5 10 2 9 3\ntext/plain42text/html<b>\
            error 5 1 0 2\nEttend 5 3\nend 6\n";
        let mut received = Vec::new();
        let mut answers = Vec::new();
        for &byte in wire {
            received.push(byte);
            answers.extend(take(&mut received).unwrap());
        }
        assert_eq!(received, b"");
        let mime = [("text/plain".into(), "42".into()), ("text/html".into(), "<b>".into())].into();
        let shown = [("text/plain".into(), "7".into())].into();
        let shown = CodeEvent::Display { mime: shown, id: Some("a".into()), update: true };
        let error = CodeEvent::Error { name: "E".into(), message: "".into(), traceback: "tt".into() };
        assert_eq!(
            answers,
            [
                (5, Answer::Display { serial: 9, event: shown }),
                (5, Answer::Conclusion(CodeEvent::Value { mime })),
                (5, Answer::Conclusion(error)),
                (5, Answer::End { status: 3 }),
                (6, Answer::End { status: 0 }),
            ]
        );
    }

    #[test]
    fn what_is_no_answer_is_refused_before_memory_is_taken() {
        let long = [b'x'; MAX_LINE];
        for nonsense in [
            &b"value 1 10 999999999\n"[..],
            b"value 1 18446744073709551615 18446744073709551615\n",
            b"error 1 1 1\nab",
            b"value 1 9 1\ntext/htmlx",
            b"display 1 2 0 0\n",
            b"display 1 2 0 1 10 1\n1text/plain7",
            b"display 1\n",
            b"error 1 400000 0 0\n",
            b"hello\n",
            b"hello 1\n",
            b"end\n",
            b"end x\n",
            b"end 1 x\n",
            &[&b"display 1 2 129 0 10 1\n"[..], &[b'i'; 129], b"text/plain7"].concat(),
            b"\xff\n",
            &long,
        ] {
            assert_eq!(take(&mut nonsense.to_vec()), Err(Nonsense), "{nonsense:?}");
        }
    }
}
