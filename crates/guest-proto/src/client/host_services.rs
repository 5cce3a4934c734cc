//! Services of the host that a guest may open a stream to, by name. What is not registered is refused.

use crate::{
    codec,
    message::{GuestError, GuestErrorKind, GuestOpen, Reply},
    session::{Incoming, MuxStream},
    tunnel::Tunnel,
};
use async_trait::async_trait;
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};
use tokio::task::JoinSet;

/// For the first frame of a stream: a guest does not occupy places by saying nothing.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// A service name is short; a longer one is not even looked up.
const MAX_NAME: usize = 128;

/// One service. What comes through the tunnel is guest data.
#[async_trait]
pub trait HostService: Send + Sync {
    /// Serves one connection. Dropped when the session ends.
    async fn serve(&self, tunnel: Tunnel);
}

/// The registry for one VM. The default one refuses everything.
#[derive(Clone, Default)]
pub struct HostServices {
    services: Arc<BTreeMap<String, Arc<dyn HostService>>>,
}

impl HostServices {
    /// Adds a service, in place of an earlier one of that name.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, service: Arc<dyn HostService>) -> Self {
        Arc::make_mut(&mut self.services).insert(name.into(), service);
        self
    }
}

impl fmt::Debug for HostServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.services.keys()).finish()
    }
}

/// Serves until the session ends; connections still open are dropped with it.
pub(super) async fn serve(services: HostServices, mut incoming: Incoming) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_ended) = connections.join_next() => {}
            stream = incoming.next() => match stream {
                Some(stream) => {
                    connections.spawn(connection(services.clone(), stream));
                }
                None => return,
            },
        }
    }
}

async fn connection(services: HostServices, stream: MuxStream) {
    let (mut reader, mut writer) = codec::messages(stream);
    let Ok(Ok(Some(GuestOpen { service: name }))) =
        tokio::time::timeout(FIRST_FRAME, reader.recv::<GuestOpen>()).await
    else {
        return;
    };
    let service = if name.len() <= MAX_NAME { services.services.get(&name) } else { None };
    let Some(service) = service else {
        let shown: String = name.chars().take(MAX_NAME).collect();
        let refusal = Reply::<()>::Err(GuestError {
            kind: GuestErrorKind::Unsupported,
            message: format!("open service {shown:?}: no such service on this host"),
        });
        // The guest may have left already; it is refused either way.
        let _refused = tokio::time::timeout(FIRST_FRAME, writer.send(&refusal)).await;
        return;
    };
    if let Ok(Ok(())) = tokio::time::timeout(FIRST_FRAME, writer.send(&Reply::Ok(()))).await {
        let (read, ahead) = reader.into_parts();
        service.serve(Tunnel::new(read.unsplit(writer.into_inner()), ahead)).await;
    }
}
