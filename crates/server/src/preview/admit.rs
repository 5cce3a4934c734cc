//! Whom a request by host is let in as, if it shows no token of the VM.
//!
//! ```text
//! API key                         that key, for whatever it may do
//! ?offshoot-preview=LINK          a visit: the cookie is set, and the browser sent to where it wanted to go without the link
//! cookie, from a page of its own  who made the link, for this port and nothing else
//!         or to look at a page
//! ```
//! A cookie is sent by the browser, whoever makes it send a request. So one that comes from a page of another origin is not let
//! in, unless somebody goes there to look: neither a sibling's page, which shares our site, nor one that opens a WebSocket.

use super::{
    Origin, cookies, headers,
    ticket::{Kind, SESSION_HOLDS, Subject, Ticket, after},
};
use crate::http::{App, KeyEnds};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    response::Response,
};
use futures::future::{Either, pending, select};
use jiff::Timestamp;
use offshoot_policy::VmFacts;
use offshoot_types::{Actor, Failure};
use std::pin::pin;

/// Parameter of a query that holds a link.
pub const PARAMETER: &str = "offshoot-preview";

/// How a request is let in.
#[derive(Debug)]
pub enum Admission {
    /// As this actor, seen under this origin, until the end.
    In { actor: Actor, origin: Origin, ends: Option<KeyEnds> },
    /// It came to be let in: this is its answer.
    Visit(Response),
    /// Its link is over, or another's.
    LinkOver,
    /// It shows our cookie, but comes from a page of another origin.
    Foreign,
    /// The key it shows is not known, or has asked too often.
    Refused(Failure),
    /// It shows nothing.
    Nobody,
}

/// Judges a request for a port of a VM; `secure` if it came over TLS.
pub fn admit(app: &App, vm: &VmFacts, port: u16, secure: bool, request: &Parts) -> Admission {
    let Some(host) = host(request) else { return Admission::Nobody };
    let origins = [true, false].map(|secure| Origin::of_host(secure, host));
    let opened = |kind, text: &str| {
        // A proxy before us may have TLS where we have none: the ticket says with which it was made.
        let mut origins = origins.iter().flatten();
        origins.find_map(|origin| {
            let ticket = Ticket::open(&app.tokens, kind, Subject { vm: vm.id, port, origin }, text)?;
            Some((origin.clone(), ticket))
        })
    };
    let now = Timestamp::now();
    if let Some(text) = visit(request) {
        let holds = |(_, ticket): &(Origin, Ticket)| ticket.left(now).is_some();
        return match opened(Kind::Link, text).filter(holds) {
            Some((origin, link)) => {
                let cookie = Ticket { expires: after(now, SESSION_HOLDS), ..link };
                let cookie =
                    cookie.seal(&app.tokens, Kind::Cookie, Subject { vm: vm.id, port, origin: &origin });
                Admission::Visit(welcome(request, &origin, &cookie))
            }
            None => Admission::LinkOver,
        };
    }
    if let Some(key) = headers::key(&request.headers) {
        let Some(origin) = Origin::of_host(secure, host) else { return Admission::Nobody };
        return match app.engine.authenticate(key) {
            Ok(actor) => {
                let ends = app.engine.key_ends(&actor).map(KeyEnds::new);
                Admission::In { actor, origin, ends }
            }
            Err(failure) => Admission::Refused(failure),
        };
    }
    let mut shown = cookies::presented(&request.headers);
    let Some((origin, ticket, left)) = shown.find_map(|text| {
        let (origin, ticket) = opened(Kind::Cookie, text)?;
        Some((origin, ticket, ticket.left(now)?))
    }) else {
        return Admission::Nobody;
    };
    if !comes_from(&origin, &request.method, &request.headers) {
        return Admission::Foreign;
    }
    let actor = match ticket.key {
        Some(id) => Actor::ApiKey { id, owner: vm.owner.clone() },
        // Whoever may do everything gave no more away than this.
        None => Actor::Sandbox { vm: vm.id, owner: vm.owner.clone() },
    };
    // Judged by policy it would be denied, and each denial is written down: a page that is left open asks often.
    if ticket.key.is_some() && app.engine.key_limits(&actor).is_none() {
        return Admission::LinkOver;
    }
    let key = app.engine.key_ends(&actor);
    let ends = KeyEnds::new(async move {
        let key = async {
            match key {
                Some(ends) => ends.await,
                None => pending().await,
            }
        };
        match select(pin!(key), pin!(tokio::time::sleep(left))).await {
            Either::Left(_) | Either::Right(_) => {}
        }
    });
    Admission::In { actor, origin, ends: Some(ends) }
}

/// Whether a request shows a link.
pub fn is_visit(request: &Parts) -> bool {
    visit(request).is_some()
}

fn visit(request: &Parts) -> Option<&str> {
    let looks = request.method == Method::GET || request.method == Method::HEAD;
    parameters(request.uri.query().filter(|_| looks)?)
        .find_map(|(name, value)| (name == PARAMETER).then_some(value))
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn host(request: &Parts) -> Option<&str> {
    match request.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers.get(header::HOST)?.to_str().ok(),
    }
}

/// Sends the browser to where it wanted to go, with the cookie and without the link.
fn welcome(request: &Parts, origin: &Origin, cookie: &str) -> Response {
    let kept: Vec<&str> = request.uri.query().unwrap_or_default().split('&').collect();
    let kept: Vec<&str> =
        kept.into_iter().filter(|pair| parameters(pair).all(|(name, _)| name != PARAMETER)).collect();
    // A path of several slashes would lead to another host.
    let mut location = format!("/{}", request.uri.path().trim_start_matches('/'));
    if !kept.is_empty() {
        location = format!("{location}?{}", kept.join("&"));
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    // What was read as a path can be written as one; if not, the beginning is as good.
    let location = HeaderValue::from_bytes(location.as_bytes()).unwrap_or(HeaderValue::from_static("/"));
    let cookie = HeaderValue::from_str(&cookies::set(origin, cookie, SESSION_HOLDS));
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    headers.insert(header::SET_COOKIE, cookie.expect("a ticket is letters and digits"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// Whether a page of this origin makes the request, or somebody goes to look at one.
fn comes_from(origin: &Origin, method: &Method, headers: &HeaderMap) -> bool {
    let said = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    if let Some(from) = said("origin") {
        return from == origin.to_string().as_bytes();
    }
    match said("sec-fetch-site") {
        // Not a browser, or one that does not say.
        None => !headers.contains_key(header::UPGRADE),
        Some(b"same-origin" | b"none") => true,
        Some(_) => {
            let looks = *method == Method::GET || *method == Method::HEAD;
            looks
                && said("sec-fetch-mode") == Some(b"navigate")
                && said("sec-fetch-dest") == Some(b"document")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let builder = Request::builder().method(method).uri(uri);
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_cookie_is_good_for_pages_of_its_own_and_for_somebody_who_looks() {
        let origin = Origin::parse("http://8000-web.localhost:1").unwrap();
        let comes = |method, headers: &[(&str, &str)]| {
            let parts = parts(method, "/", headers);
            comes_from(&origin, &parts.method, &parts.headers)
        };
        let own = ("origin", "http://8000-web.localhost:1");
        assert!(comes("POST", &[own]) && comes("GET", &[own, ("upgrade", "websocket")]));
        assert!(comes("GET", &[]) && comes("GET", &[("sec-fetch-site", "none")]));
        assert!(comes("POST", &[("sec-fetch-site", "same-origin")]));
        let look = [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        assert!(comes("GET", &look));
        assert!(!comes("POST", &look), "a form of another page");
        for from in ["http://8000-other.localhost:1", "https://8000-web.localhost:1", "null", ""] {
            assert!(!comes("GET", &[("origin", from)]), "{from}");
            assert!(!comes("GET", &[("origin", from), ("upgrade", "websocket")]), "{from}");
        }
        assert!(!comes("GET", &[("upgrade", "websocket")]), "browsers say where a WebSocket comes from");
        for site in ["same-site", "cross-site"] {
            assert!(!comes("GET", &[("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")]), "an image");
            let frame =
                [("sec-fetch-site", site), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
            assert!(!comes("GET", &frame), "a frame");
        }
    }

    #[test]
    fn a_visit_leads_to_where_it_was_going_and_nowhere_else() {
        let origin = Origin::parse("http://8000-web.localhost:1").unwrap();
        for (uri, location) in [
            ("/?offshoot-preview=x", "/"),
            ("/a%20b/?c=1&offshoot-preview=x&d", "/a%20b/?c=1&d"),
            ("//evil.example/?offshoot-preview=x", "/evil.example/"),
        ] {
            let request = parts("GET", uri, &[]);
            assert!(is_visit(&request), "{uri}");
            let answer = welcome(&request, &origin, "sealed");
            assert_eq!(answer.status(), StatusCode::SEE_OTHER);
            assert_eq!(answer.headers()["location"], location);
            assert_eq!(answer.headers()["cache-control"], "no-store");
            assert_eq!(answer.headers()["referrer-policy"], "no-referrer");
            assert!(answer.headers()["set-cookie"].to_str().unwrap().contains("=sealed; "));
        }
        assert!(!is_visit(&parts("POST", "/?offshoot-preview=x", &[])));
        assert!(!is_visit(&parts("GET", "/?other=offshoot-preview", &[])));
    }
}
