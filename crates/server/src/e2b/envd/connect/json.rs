//! What proto3's JSON has of its own: bytes in base64, numbers that may be text, `null` for a default.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected, Visitor},
};
use std::fmt;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Either alphabet, padded or not.
pub fn base64_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let decoded = STANDARD.decode(&text).or_else(|_| URL_SAFE.decode(&text));
    decoded.map(Some).map_err(|_| Error::invalid_value(Unexpected::Other("text"), &"base64"))
}

pub fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A `uint32`, as a number or as text.
pub fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    struct Number;
    impl Visitor<'_> for Number {
        type Value = Option<u32>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number from 0 to 4294967295")
        }
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
            let number = u32::try_from(number).map(Some);
            number.map_err(|_| Error::invalid_value(Unexpected::Other("a larger number"), &self))
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse().map(Some).map_err(|_| Error::invalid_value(Unexpected::Str(text), &self))
        }
    }
    deserializer.deserialize_any(Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Probe {
        #[serde(deserialize_with = "base64_bytes")]
        bytes: Option<Vec<u8>>,
        #[serde(deserialize_with = "number")]
        number: Option<u32>,
        #[serde(deserialize_with = "null_is_default")]
        list: Vec<String>,
    }

    #[test]
    fn every_spelling_of_a_value_is_understood() {
        for text in ["-_8=", "-_8", "+/8=", "+/8"] {
            let probe: Probe = serde_json::from_value(json!({ "bytes": text })).unwrap();
            assert_eq!(probe.bytes, Some(vec![0xFB, 0xFF]), "{text}");
        }
        for number in [json!(7), json!("7")] {
            let probe: Probe = serde_json::from_value(json!({ "number": number, "list": null })).unwrap();
            assert_eq!(probe.number, Some(7));
        }
        for wrong in [json!({ "bytes": "*" }), json!({ "number": -1 }), json!({ "number": "x" })] {
            assert!(serde_json::from_value::<Probe>(wrong.clone()).is_err(), "{wrong}");
        }
        assert_eq!(serde_json::from_value::<Probe>(json!({ "new": 1 })).unwrap(), Probe::default());
    }
}
