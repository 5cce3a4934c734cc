//! How a request is shown to a program, and its answer to whoever asked.

use super::{Origin, cookies, headers};
use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, header},
    response::Response,
};

/// For whom a program is dressed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dress {
    /// E2B's clients: the program sees the host that was asked for, and answers as it likes.
    AsSent,
    /// Everybody else: the program is asked as at `localhost`, where programs under development expect to be, and may
    /// disturb nobody but itself.
    Preview(Front),
}

/// What whoever asks sees in front of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    pub origin: Origin,
    /// What every path of the program begins with there: nothing, or a path without a slash at its end.
    pub prefix: String,
}

/// What a program could do to others that share an address with it, or to how they are reached.
const BEYOND_ITSELF: [&str; 4] =
    ["clear-site-data", "alt-svc", "strict-transport-security", "service-worker-allowed"];

impl Dress {
    /// Makes of a request one of HTTP/1.1 for the program at this port.
    pub fn request(&self, port: u16, request: &mut Request) {
        let host = request.uri().authority().map(|authority| authority.as_str().to_owned());
        let prefix = match self {
            Self::AsSent => "",
            Self::Preview(front) => &front.prefix,
        };
        *request.uri_mut() = below(prefix, request.uri());
        *request.version_mut() = Version::HTTP_11;
        let headers = request.headers_mut();
        let upgrade = headers::upgrade(headers);
        let chunked = headers.contains_key(header::TRANSFER_ENCODING);
        headers::leave_hop(headers, upgrade);
        if chunked {
            // A body of a length that nobody knows yet, whatever the method: without this word that of a GET is lost.
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        headers::hide_ours(headers);
        cookies::hide_ours(headers);
        // The server has answered it by reading the body.
        headers.remove(header::EXPECT);
        match self {
            Self::AsSent => {
                let host = host.and_then(|host| HeaderValue::from_str(&host).ok());
                if let (false, Some(host)) = (headers.contains_key(header::HOST), host) {
                    headers.insert(header::HOST, host);
                }
            }
            Self::Preview(front) => front.introduce(port, headers),
        }
    }

    /// Makes of a program's answer one of ours.
    pub fn response(&self, port: u16, response: &mut Response) {
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        // In HTTP/1.0, which simple programs speak, an answer that breaks off would look as if it had come to its end.
        *response.version_mut() = Version::HTTP_11;
        let headers = response.headers_mut();
        let upgrade = headers::upgrade(headers).filter(|_| switches);
        headers::leave_hop(headers, upgrade);
        if let Self::Preview(front) = self {
            front.confine(port, headers);
        }
    }
}

/// The path of a request below `prefix`, as it was sent: what a program reads into escapes is its own affair.
fn below(prefix: &str, uri: &Uri) -> Uri {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let path = path.strip_prefix(prefix).unwrap_or(path);
    let rooted = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    rooted.parse().unwrap_or_default()
}

/// The program's origin as it knows it.
fn inside(port: u16) -> String {
    format!("http://localhost:{port}")
}

impl Front {
    fn introduce(&self, port: u16, headers: &mut HeaderMap) {
        headers::forget_way(headers);
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set("host", &format!("localhost:{port}"));
        set("x-forwarded-host", self.origin.authority());
        set("x-forwarded-proto", self.origin.scheme());
        if !self.prefix.is_empty() {
            set("x-forwarded-prefix", &self.prefix);
        }
        // Programs compare it with their host. Others' are left for them to judge.
        if headers
            .get(header::ORIGIN)
            .is_some_and(|from| from.as_bytes() == self.origin.to_string().as_bytes())
            && let Ok(own) = HeaderValue::from_str(&inside(port))
        {
            headers.insert(header::ORIGIN, own);
        }
    }

    fn confine(&self, port: u16, headers: &mut HeaderMap) {
        for name in BEYOND_ITSELF {
            headers.remove(name);
        }
        cookies::confine(headers, &self.prefix);
        let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.and_then(|to| HeaderValue::from_str(&self.shown(port, to)?).ok());
        if let Some(location) = location {
            headers.insert(header::LOCATION, location);
        }
        if !self.prefix.is_empty() {
            // Beside the API: should a browser ever show it, then as of no origin at all.
            headers.append(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
        }
    }

    /// Where something of the program is seen; `None` if it says so itself.
    fn shown(&self, port: u16, location: &str) -> Option<String> {
        let own = location.strip_prefix(&inside(port));
        let path = match own {
            Some("") => "/",
            Some(path) if path.starts_with(['/', '?', '#']) => path,
            _ if location.starts_with('/') && !location.starts_with("//") => location,
            _ => return None,
        };
        // From a root of several slashes browsers would go to another host.
        Some(format!("{}/{}", self.prefix, path.trim_start_matches('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn preview(prefix: &str) -> Dress {
        let origin = Origin::parse("https://8000-web.example.com").unwrap();
        Dress::Preview(Front { origin, prefix: prefix.into() })
    }

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request {
        let builder = Request::builder().uri(uri).version(Version::HTTP_2);
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        builder.body(Body::empty()).unwrap()
    }

    fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
        headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn a_program_is_asked_as_at_localhost_and_told_how_it_is_seen() {
        let mut asked = request(
            "https://8000-web.example.com/a%2Fb/../c?d=%20",
            &[
                ("origin", "https://8000-web.example.com"),
                ("x-forwarded-host", "evil"),
                ("cookie", "offshoot-preview=x; own=1"),
                ("authorization", "Bearer e2b_x"),
                ("expect", "100-continue"),
            ],
        );
        preview("").request(8000, &mut asked);
        assert_eq!(
            (asked.uri().to_string().as_str(), asked.version()),
            ("/a%2Fb/../c?d=%20", Version::HTTP_11)
        );
        let headers = asked.headers();
        assert_eq!(text(headers, "host"), Some("localhost:8000"));
        assert_eq!(text(headers, "origin"), Some("http://localhost:8000"));
        assert_eq!(text(headers, "x-forwarded-host"), Some("8000-web.example.com"));
        assert_eq!(text(headers, "x-forwarded-proto"), Some("https"));
        assert_eq!(text(headers, "cookie"), Some("own=1"));
        for absent in ["authorization", "x-forwarded-prefix", "expect"] {
            assert_eq!(text(headers, absent), None, "{absent}");
        }
    }

    #[test]
    fn a_body_of_unknown_length_stays_one_and_an_answer_shows_when_it_breaks_off() {
        let mut asked = request("/", &[("transfer-encoding", "chunked"), ("connection", "keep-alive")]);
        Dress::AsSent.request(8000, &mut asked);
        assert_eq!(text(asked.headers(), "transfer-encoding"), Some("chunked"));
        let mut answer = Response::builder().version(Version::HTTP_10).body(Body::empty()).unwrap();
        preview("").response(80, &mut answer);
        assert_eq!(answer.version(), Version::HTTP_11);
    }

    #[test]
    fn below_a_path_the_program_sees_its_own_paths() {
        for (uri, seen) in [
            ("/v1/vms/web/ports/80/", "/"),
            ("/v1/vms/web/ports/80/a/b?c", "/a/b?c"),
            ("/v1/vms/web/ports/80//a", "//a"),
            ("/v1/vms/web/ports/80/%2e%2e/x", "/%2e%2e/x"),
        ] {
            let mut asked = request(uri, &[("origin", "https://elsewhere.example")]);
            preview("/v1/vms/web/ports/80").request(80, &mut asked);
            assert_eq!(asked.uri().to_string(), seen);
            assert_eq!(text(asked.headers(), "x-forwarded-prefix"), Some("/v1/vms/web/ports/80"));
            assert_eq!(text(asked.headers(), "origin"), Some("https://elsewhere.example"));
        }
    }

    #[test]
    fn clients_of_e2b_are_answered_as_they_were() {
        let mut asked =
            request("http://8000-iabc.localhost/x", &[("x-forwarded-for", "1"), ("x-access-token", "t")]);
        Dress::AsSent.request(8000, &mut asked);
        assert_eq!(text(asked.headers(), "host"), Some("8000-iabc.localhost"));
        assert_eq!(text(asked.headers(), "x-forwarded-for"), Some("1"));
        assert_eq!(text(asked.headers(), "x-access-token"), None);
        let mut answer =
            Response::builder().header("set-cookie", "a=1; Domain=x").body(Body::empty()).unwrap();
        Dress::AsSent.response(8000, &mut answer);
        assert_eq!(text(answer.headers(), "set-cookie"), Some("a=1; Domain=x"));
    }

    #[test]
    fn an_answer_leads_nowhere_but_to_where_the_program_is_seen() {
        for (prefix, said, seen) in [
            ("", "http://localhost:80/x", "/x"),
            ("", "http://localhost:80", "/"),
            ("", "http://localhost:80?q", "/?q"),
            ("", "http://localhost:80//evil.example", "/evil.example"),
            ("", "http://localhost:8000/x", "http://localhost:8000/x"),
            ("", "/x", "/x"),
            ("", "x", "x"),
            ("", "//elsewhere.example", "//elsewhere.example"),
            ("", "https://elsewhere.example/", "https://elsewhere.example/"),
            ("/p", "/x?q", "/p/x?q"),
            ("/p", "http://localhost:80/x", "/p/x"),
            ("/p", "x", "x"),
        ] {
            let mut answer = Response::builder().header("location", said).body(Body::empty()).unwrap();
            preview(prefix).response(80, &mut answer);
            assert_eq!(text(answer.headers(), "location"), Some(seen), "{prefix} {said}");
        }
    }

    #[test]
    fn an_answer_disturbs_nobody_else() {
        let mut answer = Response::builder();
        for (name, value) in [
            ("clear-site-data", "*"),
            ("alt-svc", "h3=\":1\""),
            ("strict-transport-security", "max-age=1; includeSubDomains"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("set-cookie", "offshoot-preview=x"),
            ("content-security-policy", "default-src 'self'"),
        ] {
            answer = answer.header(name, value);
        }
        let mut answer = answer.body(Body::empty()).unwrap();
        preview("/p").response(80, &mut answer);
        let left: Vec<_> =
            answer.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(
            left,
            [
                ("content-security-policy", &b"default-src 'self'"[..]),
                ("content-security-policy", b"sandbox"),
            ]
        );
    }
}
