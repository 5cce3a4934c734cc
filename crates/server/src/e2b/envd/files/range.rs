//! Requests for a part of a file, or for a file that has changed (RFC 9110, sections 13 and 14).

use axum::http::{HeaderMap, HeaderName, header};
use jiff::{Timestamp, fmt::rfc2822};

/// What of a file is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    All,
    Part {
        offset: u64,
        length: u64,
    },
    /// It begins behind the end.
    Unsatisfiable,
    NotModified,
    /// It has changed since.
    Changed,
}

/// Whether a request depends on what the file is.
pub fn depends(headers: &HeaderMap) -> bool {
    [
        header::RANGE,
        header::IF_RANGE,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::IF_NONE_MATCH,
        header::IF_MATCH,
    ]
    .iter()
    .any(|name| headers.contains_key(name))
}

/// `modified` is compared by the second, as the headers have it.
pub fn wanted(headers: &HeaderMap, size: u64, modified: i64) -> Wanted {
    let said = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let date = |name| said(name).and_then(parse_date);
    // There are no entity tags: only `*` matches.
    let matches = |name| said(name).map(|tags| tags.trim() == "*");
    let unmodified = date(header::IF_UNMODIFIED_SINCE).map(|since| modified <= since);
    if matches(header::IF_MATCH).or(unmodified) == Some(false) {
        return Wanted::Changed;
    }
    let modified_since = date(header::IF_MODIFIED_SINCE).map(|since| modified > since);
    if matches(header::IF_NONE_MATCH).map(|matches| !matches).or(modified_since) == Some(false) {
        return Wanted::NotModified;
    }
    if said(header::IF_RANGE).is_some_and(|date| parse_date(date) != Some(modified)) {
        return Wanted::All;
    }
    said(header::RANGE).and_then(|range| part(range, size)).unwrap_or(Wanted::All)
}

/// One range of bytes; `None` for anything else, which is ignored as the standard allows.
fn part(range: &str, size: u64) -> Option<Wanted> {
    let (first, last) = range.trim().strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    let (offset, end) = match (first.is_empty(), last.is_empty()) {
        (true, true) => return None,
        (true, false) => (size.saturating_sub(last.parse().ok()?), size),
        (false, true) => (first.parse().ok()?, size),
        (false, false) => (first.parse().ok()?, last.parse::<u64>().ok()?.saturating_add(1).min(size)),
    };
    if !first.is_empty() && !last.is_empty() && first.parse::<u64>().ok()? > last.parse::<u64>().ok()? {
        return None;
    }
    Some(match end.checked_sub(offset) {
        Some(length) if length > 0 => Wanted::Part { offset, length },
        _ => Wanted::Unsatisfiable,
    })
}

fn parse_date(text: &str) -> Option<i64> {
    rfc2822::parse(text).ok().map(|time| time.timestamp().as_second())
}

/// `Thu, 01 Jan 1970 00:00:01 GMT`
pub fn date(seconds: i64) -> Option<String> {
    let time = Timestamp::from_second(seconds).ok()?;
    rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn asked(headers: &[(HeaderName, &str)]) -> Wanted {
        let headers =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        wanted(&headers.collect(), 100, 784_111_777)
    }

    #[test]
    fn a_range_is_of_the_bytes_there_are() {
        let part = |offset, length| Wanted::Part { offset, length };
        for (range, expected) in [
            ("bytes=0-9", part(0, 10)),
            ("bytes=90-", part(90, 10)),
            ("bytes=90-1000", part(90, 10)),
            ("bytes=-5", part(95, 5)),
            ("bytes=-500", part(0, 100)),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=5-4", Wanted::All),
            ("bytes=0-1,5-6", Wanted::All),
            ("lines=1-2", Wanted::All),
            ("bytes=-", Wanted::All),
        ] {
            assert_eq!(asked(&[(header::RANGE, range)]), expected, "{range}");
        }
    }

    #[test]
    fn conditions_are_of_when_it_was_modified() {
        const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
        assert_eq!(date(784_111_777).as_deref(), Some(THEN));
        for (name, value, expected) in [
            (header::IF_MODIFIED_SINCE, THEN, Wanted::NotModified),
            (header::IF_MODIFIED_SINCE, BEFORE, Wanted::All),
            (header::IF_MODIFIED_SINCE, "yesterday", Wanted::All),
            (header::IF_UNMODIFIED_SINCE, THEN, Wanted::All),
            (header::IF_UNMODIFIED_SINCE, BEFORE, Wanted::Changed),
            (header::IF_NONE_MATCH, "*", Wanted::NotModified),
            (header::IF_NONE_MATCH, "\"tag\"", Wanted::All),
            (header::IF_MATCH, "\"tag\"", Wanted::Changed),
        ] {
            assert_eq!(asked(&[(name.clone(), value)]), expected, "{name}: {value}");
        }
        let range = (header::RANGE, "bytes=0-0");
        let one = Wanted::Part { offset: 0, length: 1 };
        assert_eq!(asked(&[range.clone(), (header::IF_RANGE, THEN)]), one);
        assert_eq!(asked(&[range, (header::IF_RANGE, BEFORE)]), Wanted::All);
    }
}
