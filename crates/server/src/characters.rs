//! Text out of pieces of bytes.

/// Takes all whole characters off the front; what can be none is replaced.
pub fn whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(bad) = error.error_len() else {
                    rest = after;
                    break;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &after[bad..];
            }
        }
    }
    *bytes = rest.to_vec();
    text
}

#[cfg(test)]
mod tests {
    use super::whole_characters;

    #[test]
    fn a_character_cut_in_two_is_told_whole_and_nonsense_is_replaced() {
        let mut bytes = "aé".as_bytes()[..2].to_vec();
        assert_eq!(whole_characters(&mut bytes), "a");
        bytes.push(0xA9);
        assert_eq!(whole_characters(&mut bytes), "é");
        let mut bytes = b"a\xffb\xf0\x9f".to_vec();
        assert_eq!((whole_characters(&mut bytes), bytes), ("a\u{fffd}b".to_owned(), b"\xf0\x9f".to_vec()));
    }
}
