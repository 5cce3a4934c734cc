//! Links to programs in a VM, for browsers.

use super::{InvalidField, TcpQuery, schema};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest path of a link.
const MAX_PATH: usize = 2048;
/// Longest origin.
const MAX_ORIGIN: usize = 512;

/// Make a link to a program in a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePreview {
    /// TCP port in the VM on which it speaks HTTP.
    pub port: u32,
    /// What to look at first; `/` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Where browsers find the daemon, such as `https://preview.example.com`: each preview is at a host name of its own
    /// below it. If absent, `localhost` at the daemon's own port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

/// A checked [`CreatePreview`], but for the origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPreview {
    pub port: u16,
    pub path: String,
    pub origin: Option<String>,
}

impl TryFrom<CreatePreview> for NewPreview {
    type Error = InvalidField;
    fn try_from(wire: CreatePreview) -> Result<Self, InvalidField> {
        let port = TcpQuery { port: wire.port }.port()?;
        let path = wire.path.unwrap_or_else(|| "/".into());
        let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !path.starts_with('/') || path.starts_with("//") || !plain || path.len() > MAX_PATH {
            let problem = format!(
                "it begins with one `/`, has at most {MAX_PATH} characters, other than ASCII escaped, and no `#`"
            );
            return Err(InvalidField::new("path", problem));
        }
        if wire.origin.as_ref().is_some_and(|origin| origin.len() > MAX_ORIGIN) {
            return Err(InvalidField::new("origin", format!("it has more than {MAX_ORIGIN} characters")));
        }
        Ok(Self { port, path, origin: wire.origin })
    }
}

/// A link to a program in a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Preview {
    /// To be visited by a browser, which then gets a cookie for this host name alone. A secret as long as it holds.
    pub url: String,
    /// Where the program is then found.
    pub origin: String,
    /// Until when the link may be visited.
    #[schema(schema_with = schema::timestamp)]
    pub expires: Timestamp,
    /// How long the cookie holds, unless the API key that made the link ends before.
    pub session_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_to_a_port_and_a_path() {
        let check = |port, path: &str| {
            NewPreview::try_from(CreatePreview { port, path: Some(path.into()), origin: None })
        };
        assert_eq!(check(80, "/a?b=%20").unwrap().path, "/a?b=%20");
        assert_eq!(check(0, "/").unwrap_err().field, "port");
        for path in ["", "a", "//evil.example", "/a b", "/é", "/a#b", "/\r\n"] {
            assert_eq!(check(80, path).unwrap_err().field, "path", "{path:?}");
        }
    }
}
