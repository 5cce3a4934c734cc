//! Streams the guest opens to services of the host.

use crate::{
    codec,
    message::{GuestError, GuestOpen, Reply},
    session::{OpenError, Session},
    tunnel::Tunnel,
};
use tokio::sync::watch;

/// Opens streams in whichever session is on.
#[derive(Debug, Clone)]
pub struct HostHandle {
    session: watch::Receiver<Option<Session>>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenServiceError {
    #[error("no host is connected")]
    NoHost,
    #[error("too many streams to the host are open (at most {limit})")]
    TooMany { limit: usize },
    #[error("the host refused service `{service}`")]
    Refused {
        service: String,
        #[source]
        source: GuestError,
    },
    #[error("the host left before it answered for service `{service}`")]
    Left { service: String },
}

impl HostHandle {
    pub(super) fn new() -> (watch::Sender<Option<Session>>, Self) {
        let (sender, session) = watch::channel(None);
        (sender, Self { session })
    }

    /// Opens a stream to a service of the host, by its name.
    pub async fn open(&self, service: &str) -> Result<Tunnel, OpenServiceError> {
        let session = self.session.borrow().clone().ok_or(OpenServiceError::NoHost)?;
        let stream = session.open().await.map_err(|error| match error {
            OpenError::TooMany { limit } => OpenServiceError::TooMany { limit },
            OpenError::Closed => OpenServiceError::NoHost,
        })?;
        let left = || OpenServiceError::Left { service: service.to_owned() };
        let (mut reader, mut writer) = codec::messages(stream);
        writer.send(&GuestOpen { service: service.to_owned() }).await.map_err(|_| left())?;
        match reader.recv::<Reply<()>>().await {
            Ok(Some(Reply::Ok(()))) => {
                let (read, ahead) = reader.into_parts();
                Ok(Tunnel::new(read.unsplit(writer.into_inner()), ahead))
            }
            Ok(Some(Reply::Err(source))) => {
                Err(OpenServiceError::Refused { service: service.to_owned(), source })
            }
            Ok(None) | Err(_) => Err(left()),
        }
    }
}
