//! Where a browser finds the port of a VM: scheme, host and port, as it says them in `Origin`.

use axum::http::{Uri, uri::Scheme};
use offshoot_types::VmName;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

/// Always in the one form that browsers use: small letters, no port where the scheme has it by default.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    secure: bool,
    authority: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.authority)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOrigin {
    #[error("it is not `http://` or `https://` with a host and nothing behind it")]
    Form,
    #[error("it is an address, and a name is needed: each preview has a host name of its own before it")]
    Address,
}

impl Origin {
    /// As a request names it that came with this scheme; `None` for what is no host.
    pub fn of_host(secure: bool, host: &str) -> Option<Self> {
        let host = host.to_ascii_lowercase();
        let allowed = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']')
        };
        if host.is_empty() || !host.bytes().all(allowed) {
            return None;
        }
        let default = if secure { ":443" } else { ":80" };
        let authority = host.strip_suffix(default).unwrap_or(&host).to_owned();
        Some(Self { secure, authority })
    }

    /// As somebody writes it.
    pub fn parse(text: &str) -> Result<Self, InvalidOrigin> {
        let uri: Uri = text.parse().map_err(|_| InvalidOrigin::Form)?;
        let secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(InvalidOrigin::Form),
        };
        let bare = uri.query().is_none() && matches!(uri.path(), "" | "/");
        let authority = uri.authority().filter(|_| bare).ok_or(InvalidOrigin::Form)?;
        if authority.host().starts_with('[') || authority.host().parse::<IpAddr>().is_ok() {
            return Err(InvalidOrigin::Address);
        }
        Self::of_host(secure, authority.as_str()).ok_or(InvalidOrigin::Form)
    }

    /// Of a daemon that listens here, for browsers on its own host; `None` if those do not find it by `localhost`.
    pub fn of_listener(scheme: &str, address: SocketAddr) -> Option<Self> {
        let found = address.ip().is_loopback() || address.ip().is_unspecified();
        found.then(|| Self::of_host(scheme == "https", &format!("localhost:{}", address.port())))?
    }

    /// The one of a port of a VM, below this.
    pub fn of_port(&self, port: u16, vm: &VmName) -> Self {
        Self { secure: self.secure, authority: format!("{port}-{vm}.{}", self.authority) }
    }

    pub fn is_secure(&self) -> bool {
        self.secure
    }

    pub const fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// Host, and port if it is not the scheme's own.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_one_form() {
        for (text, shown) in [
            ("http://localhost:3000", "http://localhost:3000"),
            ("https://Preview.Example.COM/", "https://preview.example.com"),
            ("https://a.example:443", "https://a.example"),
            ("http://a.example:80", "http://a.example"),
            ("http://a.example:443", "http://a.example:443"),
        ] {
            assert_eq!(Origin::parse(text).unwrap().to_string(), shown, "{text}");
        }
        for text in
            ["", "localhost", "ftp://a", "http://a/b", "http://a?b", "http://me@a", "/a", "http://a b"]
        {
            assert_eq!(Origin::parse(text), Err(InvalidOrigin::Form), "{text}");
        }
        for text in ["http://127.0.0.1:80", "https://[::1]"] {
            assert_eq!(Origin::parse(text), Err(InvalidOrigin::Address), "{text}");
        }
        assert_eq!(Origin::of_host(false, "a\r\nb"), None);
    }

    #[test]
    fn each_port_of_each_vm_has_its_own() {
        let front = Origin::of_listener("http", "127.0.0.1:7".parse().unwrap()).unwrap();
        let shown = front.of_port(8000, &"web".parse().unwrap()).to_string();
        assert_eq!(shown, "http://8000-web.localhost:7");
        assert!(Origin::of_listener("https", "0.0.0.0:7".parse().unwrap()).is_some());
        assert_eq!(Origin::of_listener("https", "192.0.2.1:7".parse().unwrap()), None);
    }
}
