//! What an interpreter says on its control socket: a line of a kind and the lengths of its texts, then the texts.
//!
//! ```text
//! end STATUS?  |  value (media type, representation)*  |  error name message traceback
//! ```
//! It is said by the process that runs the user's code, so it is not believed further than the user's code is.

use offshoot_guest_proto::message::{CodeEvent, MAX_VALUE, TEXT_PLAIN};

const MAX_LINE: usize = 512;

#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Conclusion(CodeEvent),
    End { status: i32 },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the interpreter said what is no answer")]
pub struct Nonsense;

/// Takes one whole answer off the front of `received`; `None` while it is not whole.
pub fn take(received: &mut Vec<u8>) -> Result<Option<Answer>, Nonsense> {
    let Some(line) = received.iter().take(MAX_LINE).position(|&byte| byte == b'\n') else {
        return if received.len() < MAX_LINE { Ok(None) } else { Err(Nonsense) };
    };
    let text = std::str::from_utf8(&received[..line]).map_err(|_| Nonsense)?;
    let mut words = text.split(' ');
    let kind = words.next().unwrap_or_default();
    if kind == "end" {
        let status = words.next().map_or(Ok(0), str::parse).map_err(|_| Nonsense)?;
        received.drain(..=line);
        return Ok(Some(Answer::End { status }));
    }
    let lengths: Vec<usize> = words.map(str::parse).collect::<Result<_, _>>().map_err(|_| Nonsense)?;
    let total = lengths.iter().try_fold(0, |sum: usize, &length| sum.checked_add(length));
    let total = total.filter(|&total| total <= MAX_VALUE).ok_or(Nonsense)?;
    let Some(mut rest) = received.get(line + 1..line + 1 + total) else { return Ok(None) };
    let mut texts = Vec::with_capacity(lengths.len());
    for length in &lengths {
        let (text, after) = rest.split_at(*length);
        texts.push(std::str::from_utf8(text).map_err(|_| Nonsense)?.to_owned());
        rest = after;
    }
    let answer = match (kind, texts.len()) {
        ("value", 2..=32) if texts.len().is_multiple_of(2) => {
            let mut texts = texts.into_iter();
            let mut mime = std::collections::BTreeMap::new();
            while let (Some(kind), Some(representation)) = (texts.next(), texts.next()) {
                mime.insert(kind, representation);
            }
            if !mime.contains_key(TEXT_PLAIN) {
                return Err(Nonsense);
            }
            CodeEvent::Value { mime }
        }
        ("error", 3) => {
            let mut texts = texts.into_iter();
            let mut next = || texts.next().unwrap_or_default();
            CodeEvent::Error { name: next(), message: next(), traceback: next() }
        }
        _ => return Err(Nonsense),
    };
    received.drain(..line + 1 + total);
    Ok(Some(Answer::Conclusion(answer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_cut_anywhere_are_taken_whole() {
        let wire = b"value 10 2 9 3\ntext/plain42text/html<b>error 1 0 2\nEttend 3\nend\n";
        let mut received = Vec::new();
        let mut answers = Vec::new();
        for &byte in wire {
            received.push(byte);
            answers.extend(take(&mut received).unwrap());
        }
        assert_eq!(received, b"");
        let mime = [("text/plain".into(), "42".into()), ("text/html".into(), "<b>".into())].into();
        let error = CodeEvent::Error { name: "E".into(), message: "".into(), traceback: "tt".into() };
        assert_eq!(
            answers,
            [
                Answer::Conclusion(CodeEvent::Value { mime }),
                Answer::Conclusion(error),
                Answer::End { status: 3 },
                Answer::End { status: 0 },
            ]
        );
    }

    #[test]
    fn what_is_no_answer_is_refused_before_memory_is_taken() {
        let long = [b'x'; MAX_LINE];
        for nonsense in [
            &b"value 10 999999999\n"[..],
            b"value 18446744073709551615 18446744073709551615\n",
            b"error 1 1\nab",
            b"value 9 1\ntext/htmlx",
            b"hello\n",
            b"end x\n",
            b"\xff\n",
            &long,
        ] {
            assert_eq!(take(&mut nonsense.to_vec()), Err(Nonsense), "{nonsense:?}");
        }
    }
}
