//! What `serve --e2b` tells whoever started it: the three variables that clients need.

use crate::http::{App, Call};
use offshoot_types::{
    Actor, Command, Failure, KeyLimits, KeyName, Owner, ProviderKind, RequestId, Scope, Scopes,
};
use std::net::SocketAddr;
use tokio::sync::oneshot;

/// What the key is called. Each start makes it anew, so that an old one that was pasted somewhere ends with its daemon.
const KEY: &str = "serve-e2b";

/// What to set in the environment of clients.
#[derive(Clone, PartialEq, Eq)]
pub struct Environment {
    pub url: String,
    pub key: String,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Environment {
    /// Name and value, in the order they are printed.
    pub fn variables(&self) -> [(&'static str, &str); 3] {
        [("E2B_API_URL", &self.url), ("E2B_SANDBOX_URL", &self.url), ("E2B_API_KEY", &self.key)]
    }
}

/// That clients are to be told.
#[derive(Debug)]
pub struct Announce {
    /// What their sandboxes are made with; `None`: the default one.
    pub provider: Option<ProviderKind>,
    /// Where it is told once requests are served.
    pub to: oneshot::Sender<Environment>,
}

/// Makes the key, good for all that clients do with sandboxes and no more.
pub async fn environment(
    app: &App,
    provider: Option<ProviderKind>,
    scheme: &str,
    address: SocketAddr,
) -> Result<Environment, Failure> {
    let uid = rustix::process::geteuid().as_raw();
    let call = Call::new(app, Actor::LocalUser { uid, owner: Owner::default() }, RequestId::new());
    let name: KeyName = KEY.parse().expect("a valid name");
    let old = call.engine.keys(call.permit(Command::ListKeys).await?)?;
    for key in old.into_iter().filter(|key| key.name == name) {
        call.engine.remove_key(call.permit(Command::RemoveKey { key: key.id }).await?).await?;
    }
    let scopes = [Scope::VmsRead, Scope::VmsWrite, Scope::Exec, Scope::Files, Scope::Snapshots];
    let limits = KeyLimits { scopes: Scopes::Only(scopes.into()), provider, ..KeyLimits::NONE };
    let permit = call.permit(Command::CreateKey { name, limits: Box::new(limits) }).await?;
    let key = call.engine.create_key(permit).await?.secret;
    Ok(Environment { url: url(scheme, address), key })
}

/// Of clients on this host, wherever they can reach it.
fn url(scheme: &str, address: SocketAddr) -> String {
    match address.ip().is_loopback() || address.ip().is_unspecified() {
        true => format!("{scheme}://localhost:{}", address.port()),
        false => format!("{scheme}://{address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_where_they_find_it() {
        for (scheme, address, expected) in [
            ("http", "127.0.0.1:7", "http://localhost:7"),
            ("https", "0.0.0.0:7", "https://localhost:7"),
            ("https", "192.0.2.1:7", "https://192.0.2.1:7"),
            ("https", "[2001:db8::1]:7", "https://[2001:db8::1]:7"),
        ] {
            assert_eq!(url(scheme, address.parse().unwrap()), expected);
        }
    }
}
