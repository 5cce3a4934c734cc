//! Headers that are for one hop, for us, or said by somebody who cannot know.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// Of the connection they come on, whatever it says itself (RFC 9110, 7.6.1).
const OF_THE_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What is said to us and not to the program.
const OURS: [&str; 7] = [
    "e2b-sandbox-id",
    "e2b-sandbox-port",
    "e2b-traffic-access-token",
    "x-access-token",
    offshoot_api::v1::TRANSACTION_HEADER,
    offshoot_api::v1::AGENT_HEADER,
    offshoot_api::v1::NO_WAKE_HEADER,
];

/// Where API keys are sent.
const KEY: HeaderName = HeaderName::from_static("x-api-key");
/// How each key of ours begins.
const MARK: &str = "e2b_";

/// The protocol that both ends would go on with, if the hop that comes asks for one, or agrees to it. HTTP/2 is not offered to
/// programs: within it we would see neither headers nor keys.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let listed = |name: &HeaderName, wanted: &str| {
        tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
    };
    let wanted = listed(&header::CONNECTION, "upgrade") && !listed(&header::UPGRADE, "h2c");
    headers.get(header::UPGRADE).filter(|_| wanted).cloned()
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|text| text.split(',')).map(str::trim)
}

/// Takes away what is of the hop it came on; `upgrade` is of the next one as well.
pub fn leave_hop(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    let named: Vec<HeaderName> =
        tokens(headers, &header::CONNECTION).filter_map(|token| token.parse().ok()).collect();
    for name in OF_THE_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// The API key that a request shows.
pub fn key(headers: &HeaderMap) -> Option<&str> {
    let named = headers.get(KEY).and_then(|value| value.to_str().ok()).map(str::trim);
    named.filter(|key| key.starts_with(MARK)).or_else(|| bearer(headers))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    Some(key.trim()).filter(|key| scheme.eq_ignore_ascii_case("bearer") && key.starts_with(MARK))
}

/// Takes away what opens more than this program: it is sent to us, or by mistake.
pub fn hide_ours(headers: &mut HeaderMap) {
    for name in OURS {
        headers.remove(name);
    }
    if bearer(headers).is_some() {
        headers.remove(header::AUTHORIZATION);
    }
    if headers.get(KEY).is_some_and(|value| value.as_bytes().trim_ascii().starts_with(MARK.as_bytes())) {
        headers.remove(KEY);
    }
}

/// Takes away what whoever asks says of the way it came: that is for us to say.
pub fn forget_way(headers: &mut HeaderMap) {
    let said = |name: &&HeaderName| {
        let name = name.as_str();
        name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "x-real-ip" | "via")
    };
    let said: Vec<HeaderName> = headers.keys().filter(said).cloned().collect();
    for name in said {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn what_is_of_the_hop_stays_there_and_an_upgrade_goes_on() {
        let mut sent = headers(&[
            ("connection", "keep-alive, X-Mine"),
            ("connection", "Upgrade"),
            ("x-mine", "1"),
            ("upgrade", "websocket"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("proxy-authorization", "x"),
            ("x-theirs", "2"),
        ]);
        let protocol = upgrade(&sent);
        assert_eq!(protocol.as_ref().map(HeaderValue::as_bytes), Some(&b"websocket"[..]));
        leave_hop(&mut sent, protocol);
        assert_eq!(sent, headers(&[("x-theirs", "2"), ("connection", "upgrade"), ("upgrade", "websocket")]));
        leave_hop(&mut sent, None);
        assert_eq!(sent, headers(&[("x-theirs", "2")]));
        for not_asked in [
            headers(&[("upgrade", "websocket")]),
            headers(&[("connection", "upgrade")]),
            headers(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]),
        ] {
            assert_eq!(upgrade(&not_asked), None, "{not_asked:?}");
        }
    }

    #[test]
    fn no_key_of_ours_reaches_a_program_and_what_is_its_own_does() {
        for (sent, shows, left) in [
            (&[("authorization", "Bearer e2b_1")][..], Some("e2b_1"), &[][..]),
            (&[("authorization", "bearer  e2b_1")], Some("e2b_1"), &[]),
            (&[("x-api-key", "e2b_1"), ("authorization", "Bearer e2b_2")], Some("e2b_1"), &[]),
            (&[("x-api-key", " e2b_1")], Some("e2b_1"), &[]),
            (&[("authorization", "Bearer abc")], None, &[("authorization", "Bearer abc")]),
            (
                &[("x-api-key", "theirs"), ("authorization", "Basic x")],
                None,
                &[("x-api-key", "theirs"), ("authorization", "Basic x")],
            ),
            (
                &[("x-access-token", "t"), ("offshoot-transaction", "x"), ("x-own", "1")],
                None,
                &[("x-own", "1")],
            ),
        ] {
            let mut sent = headers(sent);
            assert_eq!(key(&sent), shows, "{sent:?}");
            hide_ours(&mut sent);
            assert_eq!(sent, headers(left));
        }
    }

    #[test]
    fn nobody_says_which_way_he_came() {
        let mut sent = headers(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-host", "evil"),
            ("forwarded", "for=x"),
            ("via", "x"),
            ("x-real-ip", "x"),
            ("accept", "*/*"),
        ]);
        forget_way(&mut sent);
        assert_eq!(sent, headers(&[("accept", "*/*")]));
    }
}
