//! Which port of a VM is to be found where on this host, as it is written on the command line.

use crate::failure::{Result, usage};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

/// `PORT`, `PORT:HOST_PORT` or `PORT:ADDRESS:HOST_PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// In the VM; never 0.
    pub port: u16,
    /// On this host; port 0 is any that is free.
    pub host: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMapping {
    #[error("`{text}` is not a port in a VM (1 to 65535)")]
    Guest { text: String },
    #[error(
        "`{text}` is not a port of this host (0 to 65535; 0 is any that is free), nor an address with one"
    )]
    Host { text: String },
}

/// Who may reach what listens here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    ThisHost,
    Anywhere,
}

impl FromStr for Mapping {
    type Err = InvalidMapping;
    fn from_str(text: &str) -> Result<Self, InvalidMapping> {
        let (guest, host) = text.split_once(':').map_or((text, None), |(guest, host)| (guest, Some(host)));
        let port = guest.parse().ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| InvalidMapping::Guest { text: guest.into() })?;
        let at_loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let host = match host {
            None => at_loopback(port),
            Some(host) => {
                address(host, at_loopback).ok_or_else(|| InvalidMapping::Host { text: host.into() })?
            }
        };
        Ok(Self { port, host })
    }
}

fn address(text: &str, at_loopback: impl Fn(u16) -> SocketAddr) -> Option<SocketAddr> {
    let port = text.strip_prefix("localhost:").unwrap_or(text);
    port.parse().ok().map(at_loopback).or_else(|| text.parse().ok())
}

impl Mapping {
    /// Whether it says nothing else than what follows from the port.
    pub fn host_is_implied(&self) -> bool {
        self.host == SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Whoever can connect is asked for nothing, so other hosts must be meant.
    pub fn allowed(&self, reach: Reach) -> Result {
        let ip: IpAddr = self.host.ip();
        if reach == Reach::Anywhere || ip.is_loopback() {
            return Ok(());
        }
        Err(usage(format!("other hosts can reach {ip}, and whoever connects is asked for nothing"))
            .hint("leave the address out to listen at 127.0.0.1, or say `--allow-remote`")
            .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_a_port_and_where_it_is_found() {
        for (text, port, host) in [
            ("8000", 8000, "127.0.0.1:8000"),
            ("8000:9000", 8000, "127.0.0.1:9000"),
            ("8000:0", 8000, "127.0.0.1:0"),
            ("80:127.0.0.2:8080", 80, "127.0.0.2:8080"),
            ("80:localhost:8080", 80, "127.0.0.1:8080"),
            ("80:[::1]:8080", 80, "[::1]:8080"),
        ] {
            let mapping = Mapping { port, host: host.parse().unwrap() };
            assert_eq!(text.parse(), Ok(mapping), "{text}");
        }
        for text in ["", "0", "65536", "web", "-1", "0:80", ":80", "80:", "80:web", "80:1.2.3:4", "80:1:2"] {
            assert!(text.parse::<Mapping>().is_err(), "{text}");
        }
    }

    #[test]
    fn other_hosts_have_to_be_meant() {
        let of = |text: &str| text.parse::<Mapping>().unwrap();
        assert!(
            of("80").allowed(Reach::ThisHost).is_ok() && of("80:[::1]:0").allowed(Reach::ThisHost).is_ok()
        );
        for text in ["80:0.0.0.0:80", "80:[::]:80", "80:192.0.2.1:80"] {
            assert!(of(text).allowed(Reach::ThisHost).is_err(), "{text}");
            assert!(of(text).allowed(Reach::Anywhere).is_ok(), "{text}");
        }
    }
}
