//! JSON objects of others: what is not ours stays as it is written, in its order.

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::value::{RawValue, to_raw_value};
use std::fmt;

/// An object whose values are texts.
#[derive(Debug, Default)]
pub struct Ordered(Vec<(String, Box<RawValue>)>);

impl Ordered {
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// In the place of what has the name, else at the end.
    pub fn set(&mut self, name: &str, value: Box<RawValue>) {
        match self.0.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.into(), value)),
        }
    }

    /// As a value of another object, `depth` objects deep.
    fn raw(&self, depth: usize) -> serde_json::Result<Box<RawValue>> {
        let (inner, outer) = ("  ".repeat(depth + 1), "  ".repeat(depth));
        let mut lines = Vec::new();
        for (key, value) in &self.0 {
            lines.push(format!("{inner}{}: {value}", serde_json::to_string(key)?));
        }
        RawValue::from_string(format!("{{\n{}\n{outer}}}", lines.join(",\n")))
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Ordered;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Ordered(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl Serialize for Ordered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// The document with `entry` as `servers.name`; `None` if that stands there already.
pub fn with_server(
    document: &str,
    servers: &str,
    name: &str,
    entry: &serde_json::Value,
) -> serde_json::Result<Option<String>> {
    let mut whole: Ordered = match document.trim() {
        "" => Ordered::default(),
        text => serde_json::from_str(text)?,
    };
    let mut list: Ordered = match whole.get(servers) {
        Some(list) => serde_json::from_str(list.get())?,
        None => Ordered::default(),
    };
    if let Some(present) = list.get(name)
        && serde_json::from_str::<serde_json::Value>(present.get())? == *entry
    {
        return Ok(None);
    }
    // Indented as deep as it will stand.
    let text = serde_json::to_string_pretty(entry)?.replace('\n', "\n    ");
    list.set(name, to_raw_value(&RawValue::from_string(text)?)?);
    whole.set(servers, list.raw(1)?);
    Ok(Some(format!("{}\n", whole.raw(0)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_others_wrote_stays_in_its_place_and_words() {
        let document = r#"{
  "zebra": {"b":1,  "a": [1,
    2]},
  "mcpServers": {
    "other": {"command": "x"}
  },
  "apple": "é\u00e9"
}"#;
        let entry = json!({ "command": "/usr/bin/offshoot", "args": ["mcp"] });
        let written = with_server(document, "mcpServers", "offshoot", &entry).unwrap().unwrap();
        let expected = r#"{
  "zebra": {"b":1,  "a": [1,
    2]},
  "mcpServers": {
    "other": {"command": "x"},
    "offshoot": {
      "args": [
        "mcp"
      ],
      "command": "/usr/bin/offshoot"
    }
  },
  "apple": "é\u00e9"
}
"#;
        assert_eq!(written, expected);
        assert_eq!(with_server(&written, "mcpServers", "offshoot", &entry).unwrap(), None, "it is there");
        let other = json!({ "command": "/opt/offshoot", "args": ["mcp"] });
        let replaced = with_server(&written, "mcpServers", "offshoot", &other).unwrap().unwrap();
        assert_eq!(replaced, expected.replace("/usr/bin", "/opt"));
    }

    #[test]
    fn nothing_becomes_a_document_and_what_is_no_plain_json_is_refused() {
        let entry = json!({ "command": "x" });
        let written = with_server("", "servers", "offshoot", &entry).unwrap().unwrap();
        let value: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(value, json!({ "servers": { "offshoot": { "command": "x" } } }));
        for wrong in ["// a comment\n{}", "[]", r#"{"servers": []}"#, "{"] {
            assert!(with_server(wrong, "servers", "offshoot", &entry).is_err(), "{wrong}");
        }
    }
}
