//! A value as one JSON object: each form it has under a name of its own, the others together.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Names on the wire of media types, and whether the text is JSON itself.
const NAMES: [(&str, &str, bool); 12] = [
    ("text/plain", "text", false),
    ("text/html", "html", false),
    ("text/markdown", "markdown", false),
    ("image/svg+xml", "svg", false),
    ("image/png", "png", false),
    ("image/jpeg", "jpeg", false),
    ("application/pdf", "pdf", false),
    ("text/latex", "latex", false),
    ("application/json", "json", true),
    ("application/javascript", "javascript", false),
    ("application/vnd.e2b.data+json", "data", true),
    ("application/vnd.e2b.chart+json", "chart", true),
];

/// The line of a value (`main`), or of something displayed.
pub fn line(mime: BTreeMap<String, String>, main: bool) -> Value {
    let mut object = Map::new();
    object.insert("type".into(), "result".into());
    let mut extra = Map::new();
    for (kind, text) in mime {
        match NAMES.iter().find(|(name, ..)| *name == kind) {
            Some(&("text/plain", name, _)) => object.insert(name.into(), without_quotes(&text).into()),
            // What is no JSON although it says so stays what it is: a text.
            Some(&(_, name, true)) => {
                let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
                object.insert(name.into(), value)
            }
            Some(&(_, name, false)) => object.insert(name.into(), text.into()),
            None => extra.insert(kind, text.into()),
        };
    }
    if !extra.is_empty() {
        object.insert("extra".into(), extra.into());
    }
    object.insert("is_main_result".into(), json!(main));
    object.into()
}

/// A string is shown as what it says.
fn without_quotes(text: &str) -> &str {
    let within = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    within('\'').or_else(|| within('"')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_has_its_name_and_json_is_json() {
        let mime = [
            ("text/plain", "'a'"),
            ("application/vnd.e2b.chart+json", r#"{"type":"line"}"#),
            ("application/json", "[1,"),
            ("image/png", "AA=="),
            ("application/x-mine", "m"),
        ]
        .map(|(kind, text)| (kind.to_owned(), text.to_owned()));
        let expected = json!({
            "type": "result", "text": "a", "chart": {"type": "line"}, "json": "[1,", "png": "AA==",
            "extra": {"application/x-mine": "m"}, "is_main_result": true,
        });
        assert_eq!(line(mime.into(), true), expected);
    }

    #[test]
    fn quotes_are_taken_off_in_pairs_only() {
        for (text, shown) in
            [("'a'", "a"), ("\"a\"", "a"), ("'a\"", "'a\""), ("'", "'"), ("''", ""), ("7", "7")]
        {
            assert_eq!(without_quotes(text), shown);
        }
    }
}
