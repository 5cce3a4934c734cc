//! From a pipe to a session: epoch, multiplexer, handshake, heartbeats.

use super::{
    Client, ClientError, ConnectError, HostServices, Inner, TUNNELS,
    call::{Call, Context},
    heartbeat::{Health, Heartbeat},
    host_services,
};
use crate::{
    message::{FromGuest, GuestHello, HostHello, HostOpen, HostTime, PROTOCOL_VERSION, version_of_other},
    resync::{Epoch, Pipe, Resync},
    session::{CloseReason, Session, Side},
    task::OwnedTask,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Longest text the guest may say about itself.
const MAX_IDENTITY: usize = 256;

#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The guest takes this name, at its first handshake.
    pub hostname: String,
    pub generation: u64,
    /// For the whole of `connect`: a booting guest answers late.
    pub deadline: Duration,
    /// How long the guest may take for a single answer later on.
    pub patience: Duration,
    /// What the guest may ask of the host.
    pub services: HostServices,
}

impl ConnectOptions {
    pub fn new(hostname: impl Into<String>, generation: u64) -> Self {
        Self {
            hostname: hostname.into(),
            generation,
            deadline: Duration::from_secs(60),
            patience: Duration::from_secs(60),
            services: HostServices::default(),
        }
    }
}

pub(super) async fn connect(
    pipe: Box<dyn Pipe>,
    options: ConnectOptions,
) -> Result<(Client, GuestHello), ConnectError> {
    let begun = Instant::now();
    let epoch = Epoch::random().map_err(ConnectError::Random)?;
    let stream = Resync::host(pipe).connect(epoch, options.deadline).await?;

    let (session, incoming, driver) = Session::new(stream, Side::Host);
    let driver = OwnedTask::spawn(async move {
        let reason = driver.await;
        tracing::debug!(%reason, "guest session ended");
    });
    let hello = HostHello {
        version: PROTOCOL_VERSION,
        epoch: epoch.0,
        time: HostTime::now(),
        hostname: options.hostname,
        generation: options.generation,
    };
    let context = Context {
        session: session.clone(),
        operation: "handshake",
        patience: options.deadline.saturating_sub(begun.elapsed()),
    };
    let (control, guest) = match shake_hands(context, hello).await {
        Err(ConnectError::Handshake(ClientError::Timeout { .. })) => {
            return Err(ConnectError::Deadline { after: options.deadline });
        }
        shaken => shaken?,
    };

    let (health_sender, health) = watch::channel(Health::Alive { last: Instant::now() });
    let leave = CancellationToken::new();
    let heartbeat = Heartbeat::new(control, session.clone(), health_sender, leave.clone());
    let services = host_services::serve(options.services, incoming);
    let client = Client {
        inner: Arc::new(Inner {
            session,
            tunnels: Arc::new(Semaphore::new(TUNNELS)),
            health,
            patience: options.patience,
            leave,
            _heartbeat: OwnedTask::spawn(heartbeat.run()),
            _services: OwnedTask::spawn(services),
            _driver: driver,
        }),
    };
    Ok((client, guest))
}

async fn shake_hands(context: Context, hello: HostHello) -> Result<(Call, GuestHello), ConnectError> {
    let epoch = hello.epoch;
    let session = context.session.clone();
    let open = HostOpen::Control(hello);
    let shaken = async {
        let mut control = Call::open(context, &open).await?;
        let answer = control.soon::<FromGuest>().await?;
        Ok((control, answer))
    };
    let (control, answer) = shaken.await.map_err(ConnectError::Handshake)?;
    let guest = match answer {
        FromGuest::Hello(guest) => guest,
        FromGuest::Refused(error) => {
            return Err(match version_of_other(&error.message) {
                Some(guest) => ConnectError::Version { guest },
                None => ConnectError::Refused(error),
            });
        }
        FromGuest::Heartbeat { .. } => {
            let problem = "a heartbeat in place of its hello";
            session.close(CloseReason::Protocol { problem: problem.into() });
            return Err(ConnectError::Handshake(ClientError::protocol("handshake", problem)));
        }
    };
    if guest.version != PROTOCOL_VERSION {
        return Err(ConnectError::Version { guest: guest.version });
    }
    if guest.epoch != epoch {
        return Err(ConnectError::Epoch);
    }
    for text in [&guest.agent_version, &guest.boot_id, &guest.kernel_release] {
        if text.len() > MAX_IDENTITY || text.chars().any(char::is_control) {
            let problem = "a hello with control characters or of absurd length";
            return Err(ConnectError::Handshake(ClientError::protocol("handshake", problem)));
        }
    }
    Ok((control, guest))
}
