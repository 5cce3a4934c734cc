//! Which sandbox a request is for, if it is for one: by its headers, or by its host.

use axum::http::{HeaderMap, HeaderName, Uri, header};
use std::borrow::Cow;

const ID: HeaderName = HeaderName::from_static("e2b-sandbox-id");
const PORT: HeaderName = HeaderName::from_static("e2b-sandbox-port");
/// Where the daemon of a sandbox listens, as the wire sees it.
pub const ENVD: u16 = 49983;
/// Where its code interpreter does.
pub const INTERPRETER: u16 = 49999;

/// A sandbox that a request names, be it there or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub sandbox: String,
    /// `None`: what it names is no port.
    pub port: Option<u16>,
}

impl Address {
    /// `None` for a request that names no sandbox.
    pub fn of(uri: &Uri, headers: &HeaderMap) -> Option<Self> {
        if let Some(id) = headers.get(ID) {
            let port = headers.get(PORT).map(|port| port.to_str().ok()?.parse().ok());
            let sandbox = String::from_utf8_lossy(id.as_bytes()).into_owned();
            return Some(Self { sandbox, port: port.unwrap_or(Some(ENVD)) });
        }
        let host = match uri.authority() {
            Some(authority) => Cow::Borrowed(authority.as_str()),
            None => String::from_utf8_lossy(headers.get(header::HOST)?.as_bytes()),
        };
        Self::of_host(&host)
    }

    /// `{port}-{id}.{domain}`.
    fn of_host(host: &str) -> Option<Self> {
        let (label, _domain) = host.split_once('.')?;
        let (port, sandbox) = label.split_once('-')?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        (digits && !sandbox.is_empty()).then(|| Self { sandbox: sandbox.into(), port: port.parse().ok() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uri: &str, headers: &[(HeaderName, &str)]) -> Option<Address> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        Address::of(&uri.parse().unwrap(), &headers)
    }
    fn address(sandbox: &str, port: impl Into<Option<u16>>) -> Option<Address> {
        Some(Address { sandbox: sandbox.into(), port: port.into() })
    }

    #[test]
    fn a_sandbox_is_named_by_headers_or_by_the_host() {
        assert_eq!(of("/x", &[(ID, "iabc"), (PORT, "8080")]), address("iabc", 8080));
        assert_eq!(of("/x", &[(ID, "iabc")]), address("iabc", ENVD));
        assert_eq!(of("/x", &[(header::HOST, "49999-iabc.localhost:3000")]), address("iabc", 49999));
        assert_eq!(of("http://80-my-vm.localhost/", &[]), address("my-vm", 80), "HTTP/2 has an authority");
        let both = [(ID, "iabc"), (PORT, "1"), (header::HOST, "2-idef.localhost")];
        assert_eq!(of("/x", &both), address("iabc", 1));
    }

    #[test]
    fn what_names_a_sandbox_badly_still_names_one() {
        assert_eq!(of("/x", &[(ID, "")]), address("", ENVD));
        assert_eq!(of("/x", &[(ID, "iabc"), (PORT, "70000")]), address("iabc", None));
        assert_eq!(of("/x", &[(header::HOST, "70000-iabc.localhost")]), address("iabc", None));
    }

    #[test]
    fn other_hosts_name_none() {
        for host in
            ["localhost:3000", "127.0.0.1:3000", "api.example.com", "my-host.example.com", "-x.y", "1-"]
        {
            assert_eq!(of("/x", &[(header::HOST, host)]), None, "{host}");
        }
        assert_eq!(of("/x", &[]), None);
    }
}
