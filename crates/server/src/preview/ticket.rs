//! What lets a browser see one port of one VM for a while: a link, then the cookie it is exchanged for. Nothing of either is
//! stored: what they say is authenticated with a key of this host, together with the VM, the port and the origin they are good
//! for, which the request names.

use super::Origin;
use crate::e2b::Tokens;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use offshoot_policy::Authorized;
use offshoot_provider::parts::Hash;
use offshoot_types::{Actor, Command, ErrorCode, Failure, KeyId, VmId};
use std::time::Duration;
use uuid::Uuid;

/// How long a link may be visited.
const LINK_HOLDS: Duration = Duration::from_secs(5 * 60);
/// How long the cookie is good that a visit of it sets.
pub const SESSION_HOLDS: Duration = Duration::from_secs(12 * 3600);

const HASH: usize = 32;
const SAID: usize = 8 + 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Link,
    Cookie,
}

/// What a ticket is for. The request that shows it names the same.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub vm: VmId,
    pub port: u16,
    pub origin: &'a Origin,
}

/// What a ticket says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// With whose authority; `None`: of somebody who may do everything, which here is to talk to this port.
    pub key: Option<KeyId>,
    pub expires: Timestamp,
}

impl Ticket {
    fn said(&self) -> [u8; SAID] {
        let mut said = [0; SAID];
        said[..8].copy_from_slice(&self.expires.as_second().to_be_bytes());
        if let Some(key) = self.key {
            said[8..].copy_from_slice(key.as_uuid().as_bytes());
        }
        said
    }

    /// As it is handed out.
    pub fn seal(&self, tokens: &Tokens, kind: Kind, subject: Subject<'_>) -> String {
        let said = self.said();
        let tag = tokens.tag(&covered(kind, subject, &said));
        URL_SAFE_NO_PAD.encode([&said[..], tag.as_bytes()].concat())
    }

    /// `None` unless it was made here, of this kind and for this. Its time may be up.
    pub fn open(tokens: &Tokens, kind: Kind, subject: Subject<'_>, text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (said, tag) = bytes.split_at_checked(SAID)?;
        let tag = Hash::from(blake3::Hash::from(<[u8; HASH]>::try_from(tag).ok()?));
        if !tokens.is_ours(&covered(kind, subject, said), &tag) {
            return None;
        }
        let (expires, key) = said.split_at(8);
        let expires = Timestamp::from_second(i64::from_be_bytes(expires.try_into().ok()?)).ok()?;
        let key = Uuid::from_slice(key).ok().filter(|key| !key.is_nil()).map(KeyId::from_uuid);
        Some(Self { key, expires })
    }

    /// Time left; `None` if it is up.
    pub fn left(&self, now: Timestamp) -> Option<Duration> {
        Duration::try_from(self.expires.duration_since(now)).ok().filter(|left| !left.is_zero())
    }
}

/// What the tag is of. All but the last has a fixed length, so that no two mean the same bytes.
fn covered(kind: Kind, Subject { vm, port, origin }: Subject<'_>, said: &[u8]) -> Vec<u8> {
    let kind: &[u8] = match kind {
        Kind::Link => b"preview-link:",
        Kind::Cookie => b"preview-cook:",
    };
    [kind, vm.as_uuid().as_bytes(), &port.to_be_bytes(), said, origin.to_string().as_bytes()].concat()
}

/// The link's part that is good for this port, for somebody who may connect to it.
pub fn link(
    tokens: &Tokens,
    permit: &Authorized<Command>,
    origin: &Origin,
    now: Timestamp,
) -> Result<(String, Timestamp), Failure> {
    let (Command::Connect { port, vm }, judged) = (permit.get(), permit.grant().vm()) else {
        let message = format!("a permit to {} gives no preview", permit.get().action());
        return Err(Failure::new(ErrorCode::Internal, message));
    };
    let id = judged.ok_or_else(|| Failure::new(ErrorCode::NotFound, format!("there is no VM `{vm}`")))?;
    let key = match permit.grant().actor() {
        Actor::ApiKey { id, .. } => Some(*id),
        Actor::LocalUser { .. } | Actor::Sandbox { .. } | Actor::Daemon => None,
    };
    let expires = after(now, LINK_HOLDS);
    let subject = Subject { vm: id, port: *port, origin };
    Ok((Ticket { key, expires }.seal(tokens, Kind::Link, subject), expires))
}

/// Whole seconds, as tickets say them.
pub fn after(now: Timestamp, span: Duration) -> Timestamp {
    let second = now.as_second().saturating_add(i64::try_from(span.as_secs()).unwrap_or(i64::MAX));
    Timestamp::from_second(second).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_for_one_kind_vm_port_and_origin_and_says_what_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::load(dir.path()).unwrap();
        let origin = |text| Origin::parse(text).unwrap();
        let (here, there) = (origin("http://8000-web.localhost:1"), origin("https://8000-web.localhost:1"));
        let vm = VmId::new();
        let subject = Subject { vm, port: 8000, origin: &here };
        for key in [None, Some(KeyId::new())] {
            let ticket = Ticket { key, expires: Timestamp::from_second(2_000_000_000).unwrap() };
            let text = ticket.seal(&tokens, Kind::Link, subject);
            let open = |kind, subject, text: &str| Ticket::open(&tokens, kind, subject, text);
            assert_eq!(open(Kind::Link, subject, &text), Some(ticket));
            assert_eq!(open(Kind::Cookie, subject, &text), None);
            assert_eq!(open(Kind::Link, Subject { vm: VmId::new(), ..subject }, &text), None);
            assert_eq!(open(Kind::Link, Subject { port: 8001, ..subject }, &text), None);
            assert_eq!(open(Kind::Link, Subject { origin: &there, ..subject }, &text), None);
            for at in 0..text.len() {
                let mut other = text.clone().into_bytes();
                other[at] = if other[at] == b'A' { b'B' } else { b'A' };
                let other = String::from_utf8(other).unwrap();
                assert_eq!(open(Kind::Link, subject, &other), None, "changed at {at}");
                assert_eq!(open(Kind::Link, subject, &text[..at]), None, "cut at {at}");
            }
            let elsewhere = tempfile::tempdir().unwrap();
            let elsewhere = Tokens::load(elsewhere.path()).unwrap();
            assert_eq!(Ticket::open(&elsewhere, Kind::Link, subject, &text), None);
        }
    }

    #[test]
    fn a_ticket_holds_until_its_second() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let ticket = Ticket { key: None, expires: at(100) };
        assert_eq!(ticket.left(at(98)), Some(Duration::from_secs(2)));
        assert_eq!((ticket.left(at(100)), ticket.left(at(101))), (None, None));
        assert_eq!(after(at(5), Duration::from_secs(7)), at(12));
    }
}
