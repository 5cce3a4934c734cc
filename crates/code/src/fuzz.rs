//! The body of the fuzz target `blocks` in `/fuzz`, which the tests here run on bounded random text as well.

use crate::{Intent, extract};

/// Any bytes as the answer of a model: no panic, in order, no block in another, and every offset between characters.
pub fn blocks(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut last = 0;
    for block in extract(&text) {
        assert!(block.span.start >= last, "in the order of the text, none in another");
        assert!(block.span.start < block.span.end);
        last = block.span.end;
        assert!(text.get(block.span.clone()).is_some(), "a block is between characters");
        assert!(text.get(block.code_span.clone()).is_some(), "code is between characters");
        assert!(block.span.start <= block.code_span.start && block.code_span.end <= block.span.end);
        assert!((0.0..=1.0).contains(&block.confidence.as_f64()));
        let lines =
            |text: &str| text.lines().map(|line| line.trim_end_matches('\r').len()).max().unwrap_or(0);
        assert!(
            lines(&block.code) <= lines(&text) + 4,
            "code is lines of the text; a tab in its indentation may have become spaces"
        );
    }
    let intent = Intent::of(&text);
    assert!((0.0..=1.0).contains(&intent.confidence.as_f64()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What Markdown is made of, so that chance makes more than paragraphs.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            "[`~]{1,5}[a-z+ ]{0,6}\r?\n?",
            "[ \t]{0,5}(?:> ?|[-*+] |[0-9]{1,2}[.)] ){0,3}",
            "(?:run this|python3 x\\.py|x = 1|é日😀|<pre>|</pre>|<!--|rm -rf /)\r?\n?",
            "\r?\n{0,2}",
            "\\PC{0,20}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn any_text_keeps_what_is_promised(pieces in prop::collection::vec(piece(), 0..40)) {
            blocks(pieces.concat().as_bytes());
        }

        #[test]
        fn any_bytes_keep_what_is_promised(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            blocks(&bytes);
        }
    }
}
