//! Cookies: ours, which programs never see, and theirs, which stay where they belong.

use super::Origin;
use axum::http::{HeaderMap, HeaderValue, header};
use std::time::Duration;

const NAME: &str = "offshoot-preview";
/// Browsers take a name that begins so only over TLS, for the whole of one host and for no other.
const HOST_ONLY: &str = "__Host-offshoot-preview";

fn name_of(pair: &str) -> &str {
    pair.split('=').next().unwrap_or_default().trim()
}

fn is_ours(pair: &str) -> bool {
    [NAME, HOST_ONLY].contains(&name_of(pair))
}

/// Every `name=value` a request carries; not what is no text.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|text| text.split(';')).map(str::trim).filter(|pair| !pair.is_empty())
}

/// What the cookies of this name hold: there may be others of a page that shares our domain.
pub fn presented(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    pairs(headers)
        .filter(|pair| is_ours(pair))
        .filter_map(|pair| pair.split_once('='))
        .map(|(_, value)| value.trim())
}

/// Leaves what is the program's.
pub fn hide_ours(headers: &mut HeaderMap) {
    if !headers.contains_key(header::COOKIE) {
        return;
    }
    // In HTTP/2 they may come in several headers; programs of HTTP/1.1 expect one.
    let theirs: Vec<&str> = pairs(headers).filter(|pair| !is_ours(pair)).collect();
    let theirs = HeaderValue::from_str(&theirs.join("; ")).ok().filter(|value| !value.is_empty());
    match theirs {
        Some(theirs) => drop(headers.insert(header::COOKIE, theirs)),
        None => drop(headers.remove(header::COOKIE)),
    }
}

/// What sets ours, for this host name alone.
pub fn set(origin: &Origin, value: &str, holds: Duration) -> String {
    let (name, secure) = if origin.is_secure() { (HOST_ONLY, "; Secure") } else { (NAME, "") };
    format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={}{secure}", holds.as_secs())
}

/// Lets a program set its own cookies, for the host it is seen under and below `prefix`, and never ours.
pub fn confine(headers: &mut HeaderMap, prefix: &str) {
    let asked: Vec<HeaderValue> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    headers.remove(header::SET_COOKIE);
    for value in &asked {
        let confined = value.to_str().ok().filter(|text| !is_ours(text)).map(|text| confined(text, prefix));
        if let Some(Ok(value)) = confined.map(|text| HeaderValue::from_str(&text)) {
            headers.append(header::SET_COOKIE, value);
        }
    }
}

fn confined(cookie: &str, prefix: &str) -> String {
    let mut parts = cookie.split(';');
    let pair = parts.next().unwrap_or_default().trim();
    let kept = parts.map(str::trim).filter(|part| !name_of(part).eq_ignore_ascii_case("domain"));
    let kept = kept.map(|part| match part.split_once('=') {
        Some((name, path)) if name.trim().eq_ignore_ascii_case("path") && path.trim().starts_with('/') => {
            format!("Path={prefix}{}", path.trim())
        }
        _ => part.to_owned(),
    });
    std::iter::once(pair.to_owned()).chain(kept).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn programs_see_their_own_cookies_and_not_ours() {
        let mut sent = headers(
            header::COOKIE,
            &["a=1; offshoot-preview=secret;b=2", "__Host-offshoot-preview=other; c=\"3\""],
        );
        assert_eq!(presented(&sent).collect::<Vec<_>>(), ["secret", "other"]);
        hide_ours(&mut sent);
        assert_eq!(sent.get_all(header::COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=\"3\""]);
        let mut only = headers(header::COOKIE, &["offshoot-preview=secret"]);
        hide_ours(&mut only);
        assert!(only.is_empty());
    }

    #[test]
    fn a_program_sets_cookies_for_itself_alone() {
        let mut answer = headers(
            header::SET_COOKIE,
            &[
                "a=1; Domain=example.com; Path=/; Secure",
                "offshoot-preview=mine; Path=/",
                "__Host-offshoot-preview=mine",
                " offshoot-preview =mine",
                "b=2; domain=.example.com; HttpOnly",
            ],
        );
        confine(&mut answer, "/v1/vms/web/ports/80");
        let kept: Vec<_> = answer.get_all(header::SET_COOKIE).iter().collect();
        assert_eq!(kept, ["a=1; Path=/v1/vms/web/ports/80/; Secure", "b=2; HttpOnly"]);
    }

    #[test]
    fn ours_is_of_one_host_and_not_for_scripts() {
        let plain = set(&Origin::parse("http://8000-web.localhost:1").unwrap(), "x", Duration::from_secs(60));
        assert_eq!(plain, "offshoot-preview=x; Path=/; HttpOnly; SameSite=Lax; Max-Age=60");
        let secure =
            set(&Origin::parse("https://8000-web.example.com").unwrap(), "x", Duration::from_secs(60));
        assert!(secure.starts_with("__Host-offshoot-preview=x; ") && secure.ends_with("; Secure"));
        assert!(!secure.to_lowercase().contains("domain"));
    }
}
