//! Durations as people write them: `500ms`, `30s`, `2m`, `1h30m`.

use std::{fmt, str::FromStr, time::Duration};

/// Longest accepted; beyond a year a deadline is a mistake.
const MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A span of time from the command line: positive, with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a duration: write whole numbers with units, such as `500ms`, `30s` or `1h30m`")]
pub struct InvalidSpan {
    text: String,
}

impl Span {
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for Span {
    type Err = InvalidSpan;
    fn from_str(text: &str) -> Result<Self, InvalidSpan> {
        parse(text)
            .filter(|span| !span.is_zero() && *span <= MAX)
            .map(Self)
            .ok_or_else(|| InvalidSpan { text: text.into() })
    }
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = match &rest[..letters] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(24 * 3600),
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(unit.checked_mul(number)?)?;
    }
    Some(total)
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0..=9_999 if !millis.is_multiple_of(1000) => write!(f, "{millis}ms"),
            _ if millis >= 60_000 && millis.is_multiple_of(60_000) => write!(f, "{}m", millis / 60_000),
            _ => write!(f, "{}s", self.0.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_carry_a_unit_and_add_up() {
        let millis = |text: &str| text.parse::<Span>().unwrap().millis();
        assert_eq!(millis("500ms"), 500);
        assert_eq!(millis("30s"), 30_000);
        assert_eq!(millis("2m"), 120_000);
        assert_eq!(millis("1h30m"), 5_400_000);
        for bad in ["", "0", "0s", "30", "s", "-1s", "1.5s", "1 s", "1w", "99999999999s", "400d", "１s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn spans_are_printed_short() {
        let text = |span: &str| span.parse::<Span>().unwrap().to_string();
        assert_eq!(
            (text("500ms"), text("30s"), text("2m"), text("90s")),
            ("500ms".into(), "30s".into(), "2m".into(), "90s".into())
        );
    }
}
