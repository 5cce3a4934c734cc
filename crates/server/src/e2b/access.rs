//! Who may send a request to a sandbox.
//!
//! ```text
//! the VM's access token                                   everything
//! no token: GET /health                                   whether it runs
//!           /files with a signature made with the token   that file, so long
//!           /execute, /contexts of the interpreter        from this host (its SDK sends none), by no web page or proxy, if it was
//!                                                         made over the wire
//!           programs in it                                from this host, if it was made over the wire and not as private
//! the VM's traffic token                                  programs in it
//! ```

use super::{
    address::{ENVD, INTERPRETER},
    token::{Purpose, Tokens},
};
use axum::http::{HeaderMap, HeaderName, Method, Uri, header, request::Parts};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use jiff::Timestamp;
use offshoot_types::VmId;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

const TOKEN: HeaderName = HeaderName::from_static("x-access-token");
const TRAFFIC: HeaderName = HeaderName::from_static("e2b-traffic-access-token");

/// Whom a request reaches.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub vm: VmId,
    pub port: u16,
    /// It cannot come from another host.
    pub local: bool,
    /// It was made over the wire, whose ids cannot be guessed.
    pub made_here: bool,
    /// So it was, and nobody asked for a token before programs in the VM are talked to.
    pub open: bool,
}

/// Whether a request may pass.
pub fn may_pass(tokens: &Tokens, way: Way, request: &Parts) -> bool {
    let Way { vm, port, local, made_here, open } = way;
    if let Some(presented) = request.headers.get(TOKEN) {
        return tokens.open(vm, Purpose::Access, presented.as_bytes());
    }
    let local = local && !is_forwarded(&request.headers);
    let program = port != ENVD && port != INTERPRETER;
    if let (true, Some(presented)) = (program, request.headers.get(TRAFFIC)) {
        return tokens.open(vm, Purpose::Traffic, presented.as_bytes());
    }
    let path = request.uri.path();
    match port {
        ENVD if is_read(&request.method) && path == "/health" => true,
        ENVD if path == "/files" => Signed::of(&request.method, &request.uri).is_some_and(|signed| {
            signed.is_by(&tokens.of(vm, Purpose::Access)) && signed.holds(Timestamp::now())
        }),
        INTERPRETER => local && made_here && is_interpreters(path) && !is_web_page(&request.headers),
        _ => program && local && open,
    }
}

/// Whether all that a refused request lacks is time: its signature was right once.
pub fn has_expired(tokens: &Tokens, way: Way, request: &Parts) -> bool {
    let of_a_file =
        way.port == ENVD && request.uri.path() == "/files" && !request.headers.contains_key(TOKEN);
    of_a_file
        && Signed::of(&request.method, &request.uri).is_some_and(|signed| {
            signed.is_by(&tokens.of(way.vm, Purpose::Access)) && !signed.holds(Timestamp::now())
        })
}

/// Whether a request that may pass has shown a token, rather than something that is good for less.
pub fn has_token(headers: &HeaderMap) -> bool {
    headers.contains_key(TOKEN)
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

fn is_interpreters(path: &str) -> bool {
    path == "/execute" || path == "/health" || path == "/contexts" || path.starts_with("/contexts/")
}

/// A proxy on this host speaks for whoever reaches it.
fn is_forwarded(headers: &HeaderMap) -> bool {
    ["forwarded", "x-forwarded-for", "x-real-ip", "via"].iter().any(|name| headers.contains_key(*name))
}

/// Browsers say where a request that changes something comes from. A page that somebody looks at on this host must not
/// run code in a VM.
fn is_web_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site")
}

/// A signed request for one file.
#[derive(Debug, PartialEq, Eq)]
pub struct Signed {
    path: String,
    user: String,
    operation: &'static str,
    signature: String,
    expires: Option<i64>,
}

impl Signed {
    /// `None` if it carries no signature, or one for something that cannot be signed.
    pub fn of(method: &Method, uri: &Uri) -> Option<Self> {
        let operation = match *method {
            Method::GET | Method::HEAD => "read",
            Method::POST => "write",
            _ => return None,
        };
        let query: Vec<(String, String)> = serde_urlencoded::from_str(uri.query()?).ok()?;
        let value = |name| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let expires = match value("signature_expiration") {
            None => None,
            Some(text) => Some(text.parse().ok()?),
        };
        Some(Self {
            path: value("path").unwrap_or_default(),
            user: value("username").unwrap_or_default(),
            operation,
            signature: value("signature")?,
            expires,
        })
    }

    /// Whether its time is not up yet.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| expires >= now.as_second())
    }

    /// Whether it was made with this token.
    pub fn is_by(&self, token: &str) -> bool {
        let mut text = format!("{}:{}:{}:{token}", self.path, self.operation, self.user);
        if let Some(expires) = self.expires {
            write!(text, ":{expires}").expect("a String takes any text");
        }
        let digest = STANDARD_NO_PAD.encode(Sha256::digest(text.as_bytes()));
        // Of hashes under a random key, so that how long it takes says nothing of either.
        let presented = self.signature.strip_prefix("v1_").unwrap_or_default();
        let key = blake3::hash(token.as_bytes());
        blake3::keyed_hash(key.as_bytes(), digest.as_bytes())
            == blake3::keyed_hash(key.as_bytes(), presented.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_token_opens_all_and_without_one_only_what_is_meant_to_be_open_is() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::load(dir.path()).unwrap();
        let vm = VmId::new();
        let token = tokens.of(vm, Purpose::Access);
        let pass = |open, port, local, method, uri, headers: &[(&str, &str)]| {
            let way = Way { vm, port, local, made_here: open, open };
            may_pass(&tokens, way, &request(method, uri, headers))
        };
        let may = |port, local, method, uri, headers: &[(&str, &str)]| {
            pass(false, port, local, method, uri, headers)
        };
        let (right, wrong) = ([("x-access-token", token.as_str())], [("x-access-token", "no")]);
        for port in [ENVD, INTERPRETER, 8080] {
            assert!(may(port, false, "POST", "/anything", &right));
            assert!(!may(port, true, "POST", "/anything", &wrong));
            assert!(!may(port, true, "POST", "/anything", &[]));
        }
        let traffic = tokens.of(vm, Purpose::Traffic);
        let traffic = [("e2b-traffic-access-token", traffic.as_str())];
        assert!(may(8080, false, "GET", "/", &traffic) && !may(ENVD, true, "GET", "/envs", &traffic));
        assert!(pass(true, 8080, true, "GET", "/", &[]) && !pass(true, 8080, false, "GET", "/", &[]));
        assert!(!pass(true, ENVD, true, "GET", "/envs", &[]));
        assert!(may(ENVD, false, "GET", "/health", &[]) && !may(ENVD, false, "POST", "/health", &[]));
        assert!(!may(ENVD, true, "GET", "/files?path=/etc/passwd", &[]), "unsigned");
        for path in ["/execute", "/contexts", "/contexts/x/restart"] {
            assert!(pass(true, INTERPRETER, true, "POST", path, &[]));
            assert!(!may(INTERPRETER, true, "POST", path, &[]), "its name may be guessed");
            assert!(!pass(true, INTERPRETER, false, "POST", path, &[]), "from afar");
            assert!(!pass(true, INTERPRETER, true, "POST", path, &wrong), "a wrong token is no token");
            assert!(!pass(true, INTERPRETER, true, "POST", path, &[("origin", "http://evil.example")]));
            for forwarded in ["forwarded", "x-forwarded-for", "x-real-ip", "via"] {
                let headers = [(forwarded, "198.51.100.7")];
                assert!(!pass(true, INTERPRETER, true, "POST", path, &headers), "{forwarded}: by a proxy");
                assert!(!pass(true, 8080, true, "GET", "/", &headers), "{forwarded}: by a proxy");
            }
            assert!(!may(ENVD, true, "POST", path, &[]));
        }
    }

    #[test]
    fn a_signature_whose_time_is_up_is_known_for_what_it_was_and_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::load(dir.path()).unwrap();
        let way = Way { vm: VmId::new(), port: ENVD, local: true, made_here: true, open: true };
        let token = tokens.of(way.vm, Purpose::Access);
        let signed = |expires: i64| {
            let digest = STANDARD_NO_PAD.encode(Sha256::digest(format!("/a:read:user:{token}:{expires}")));
            let encoded = digest.replace('+', "%2B").replace('/', "%2F");
            let query =
                format!("path=/a&username=user&signature=v1_{encoded}&signature_expiration={expires}");
            request("GET", &format!("/files?{query}"), &[])
        };
        let (late, early) = (signed(1), signed(Timestamp::now().as_second() + 1000));
        assert!(!may_pass(&tokens, way, &late) && has_expired(&tokens, way, &late));
        assert!(may_pass(&tokens, way, &early) && !has_expired(&tokens, way, &early));
        let other = Way { vm: VmId::new(), ..way };
        assert!(!may_pass(&tokens, other, &late) && !has_expired(&tokens, other, &late), "another's");
    }

    #[test]
    fn a_signature_holds_for_one_file_one_operation_one_user_and_so_long() {
        // As the Python SDK makes it: sha256 of `/a:read:user:secret:2000000000`, base64 without padding.
        let digest = STANDARD_NO_PAD.encode(Sha256::digest(b"/a:read:user:secret:2000000000"));
        let encoded = digest.replace('+', "%2B").replace('/', "%2F");
        let uri = |path: &str, user: &str, expires: &str| {
            format!(
                "/files?path={path}&username={user}&signature=v1_{encoded}&signature_expiration={expires}"
            )
        };
        let now = Timestamp::from_second(1_900_000_000).unwrap();
        let holds = |method: &str, uri: &str, token: &str, now| {
            let request = request(method, uri, &[]);
            Signed::of(&request.method, &request.uri)
                .is_some_and(|signed| signed.is_by(token) && signed.holds(now))
        };
        let right = uri("/a", "user", "2000000000");
        assert!(holds("GET", &right, "secret", now));
        assert!(!holds("GET", &right, "secret", Timestamp::from_second(2_000_000_001).unwrap()));
        assert!(!holds("GET", &right, "another", now));
        assert!(!holds("POST", &right, "secret", now) && !holds("DELETE", &right, "secret", now));
        for other in [
            uri("/b", "user", "2000000000"),
            uri("/a", "root", "2000000000"),
            uri("/a", "user", "2000000001"),
        ] {
            assert!(!holds("GET", &other, "secret", now), "{other}");
        }
        assert!(!holds("GET", "/files?path=/a&username=user", "secret", now));
        let endless = STANDARD_NO_PAD.encode(Sha256::digest(b"/a:read::secret")).replace('+', "%2B");
        assert!(holds("GET", &format!("/files?path=/a&signature=v1_{endless}"), "secret", now));
    }
}
