//! The life of a daemon.
//!
//! ```text
//! claim the state directory --theirs--> report ready, done
//!        | ours
//! engine: adopt what runs, complete or undo what was half done
//!        |
//! listen, write daemon.json, report ready          (any failure so far: report it)
//!        |
//! serve --signal, /v1/daemon/stop, idle--> drain --> engine down --> lock free
//! ```

use crate::{
    ServeOptions,
    activity::{Activity, UnderWay},
    claim::{Claim, claim},
    e2b::{self, Tokens},
    http::{App, Shared, router},
    idle::idle_for,
    images::HostImages,
    listener::{Service, TcpDoor, UnixDoor},
    log,
    preview::Origin,
    record::RecordFile,
    shutdown::{Shutdown, Vms},
    tasks::{TaskKind, Tasks},
    wiring,
};
use jiff::Timestamp;
use offshoot_api::{
    socket::{SOCKET_NAME, canonical_state_dir},
    v1::{DEFAULT_GRACE, DaemonMode, DaemonRecord, StartReport},
};
use offshoot_engine::{Engine, OnShutdown, StateDirLock};
use offshoot_types::{ErrorCode, Failure};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// How long sessions that were cut may take to tidy up.
const TIDY: Duration = Duration::from_secs(10);

/// The daemon could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(pub Failure);

impl<F: Into<Failure>> From<F> for ServeError {
    fn from(failure: F) -> Self {
        Self(failure.into())
    }
}

/// Runs a daemon until it is asked to end, or has nothing left to do. Whoever started it is told on
/// `options.ready` when the socket accepts requests, or why it never will.
pub async fn serve(mut options: ServeOptions) -> Result<(), ServeError> {
    if let Some(format) = options.log {
        // What a client of MCP does is in the log as the requests that it makes.
        log::install(format, "info,rmcp=warn");
    }
    let mut ready = std::mem::take(&mut options.ready);
    let announce = options.announce.take();
    match start(&options).await {
        Ok(Started::Daemon(daemon)) => {
            let DaemonRecord { pid, socket, listen, .. } = daemon.app.record.clone();
            if let (Some(announce), Some(asked), Some(bound)) =
                (announce, options.listen.first(), listen.first())
            {
                match e2b::environment(&daemon.app, announce.provider, asked.scheme(), *bound).await {
                    // Whoever is not there to hear it can ask for a key of its own.
                    Ok(environment) => drop(announce.to.send(environment)),
                    Err(failure) => {
                        drop(daemon.unix);
                        daemon.app.engine.shutdown(OnShutdown::LeaveVms).await;
                        ready.report(&StartReport::Failed(failure.clone().into()));
                        return Err(ServeError(failure));
                    }
                }
            }
            tracing::info!(pid, socket = %socket.display(), mode = options.mode.as_str(), "ready");
            ready.report(&StartReport::Ready { pid, socket });
            daemon.run(&options).await;
            Ok(())
        }
        Ok(Started::Superfluous { pid, socket }) => {
            tracing::info!(pid, "another daemon serves already");
            ready.report(&StartReport::Ready { pid, socket });
            Ok(())
        }
        Err(failure) => {
            ready.report(&StartReport::Failed(failure.clone().into()));
            Err(ServeError(failure))
        }
    }
}

enum Started {
    Daemon(Box<Daemon>),
    Superfluous { pid: u32, socket: PathBuf },
}

struct Daemon {
    app: App,
    unix: UnixDoor,
    tcp: Vec<TcpDoor>,
    signals: Signals,
}

async fn start(options: &ServeOptions) -> Result<Started, Failure> {
    let state_dir = canonical_state_dir(&options.state_dir).map_err(|source| {
        let dir = options.state_dir.display();
        unavailable(format!("cannot prepare the state directory {dir}"), &source)
            .hint("check its permissions, or name another with --state-dir")
    })?;
    // From here on a signal ends us in order.
    let signals = Signals::catch().map_err(|source| unavailable("cannot catch signals", &source))?;
    let runtime_dir = options.runtime.runtime_dir(&state_dir);
    let socket = runtime_dir.join(SOCKET_NAME);
    match claim(&state_dir, &socket, options.mode).await? {
        Claim::Theirs { pid } => Ok(Started::Superfluous { pid, socket }),
        Claim::Ours(lock) => {
            let daemon = build(options, lock, &runtime_dir, socket, signals).await?;
            Ok(Started::Daemon(Box::new(daemon)))
        }
    }
}

async fn build(
    options: &ServeOptions,
    mut lock: StateDirLock,
    runtime_dir: &Path,
    socket: PathBuf,
    signals: Signals,
) -> Result<Daemon, Failure> {
    let state_dir = lock.dir().to_path_buf();
    // Who connects before the engine is up waits in the backlog.
    let mut tcp = Vec::new();
    for listen in &options.listen {
        tcp.push(TcpDoor::bind(listen.clone()).await?);
    }
    let record = DaemonRecord {
        pid: std::process::id(),
        started: Timestamp::now(),
        mode: options.mode,
        version: env!("CARGO_PKG_VERSION").into(),
        socket,
        listen: tcp.iter().map(TcpDoor::address).collect(),
        state_dir: state_dir.clone(),
    };
    let record_file = RecordFile::write(&state_dir, &record)
        .map_err(|source| unavailable("cannot write daemon.json in the state directory", &source))?;
    lock.keep_until_released(record_file);
    let tokens = Tokens::load(&state_dir)?;
    let images = HostImages::open(&options.images_dir, options.agent.clone())?;
    let policy = wiring::policy();
    let engine_options = wiring::engine_options(options, runtime_dir, &images, &policy);
    let engine = Engine::start(lock, engine_options).await?;
    // Whoever can connect can be served: the engine has brought record and world together.
    let unix = UnixDoor::bind(&record.socket, options.identify)
        .map_err(|error| unavailable("cannot open the daemon's socket", &error))?;
    let (activity, shutdown, tasks) = (Activity::default(), Shutdown::default(), Tasks::default());
    let mut listeners = options.listen.iter().zip(&record.listen);
    let front = listeners.find_map(|(asked, bound)| Origin::of_listener(asked.scheme(), *bound));
    let app = App::new(Shared {
        engine,
        policy,
        images,
        record,
        activity,
        under_way: UnderWay::default(),
        shutdown,
        tasks,
        tokens,
        front,
    });
    Ok(Daemon { app, unix, tcp, signals })
}

fn unavailable(message: impl Into<String>, source: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(ErrorCode::Unavailable, message).caused_by(source)
}

impl Daemon {
    async fn run(self, options: &ServeOptions) {
        let Self { app, unix, tcp, signals } = self;
        let (activity, shutdown, tasks) = (app.activity.clone(), app.shutdown.clone(), app.tasks.clone());
        let _serving = tasks.while_serving();
        tasks.spawn(TaskKind::Signals, signals.turn_into(shutdown.clone()));
        if options.mode == DaemonMode::Autostarted {
            tasks.spawn(TaskKind::Idle, leave_when_idle(app.clone(), options.idle_timeout));
        }
        let service = Service {
            router: router(app.clone()),
            activity: activity.clone(),
            shutdown: shutdown.clone(),
            tasks,
        };
        let ports = futures::future::join_all(tcp.into_iter().map(|door| service.clone().serve(door)));
        futures::future::join(ports, service.clone().serve(unix)).await;
        drop(service);
        tracing::info!(present = activity.count(), "shutting down");
        let drained = tokio::select! {
            drained = timeout(options.drain, activity.gone()) => drained.is_ok(),
            () = shutdown.expired() => false,
        };
        if !drained {
            tracing::info!(present = activity.count(), "sessions are cut");
            shutdown.expire();
            if timeout(TIDY, activity.gone()).await.is_err() {
                tracing::warn!(present = activity.count(), "sessions did not end in time");
            }
        }
        // Lets go of the tasks that watch for a shutdown, whatever asked for it.
        shutdown.expire();
        let vms = match shutdown.vms() {
            Vms::LiveOn => OnShutdown::LeaveVms,
            Vms::Stop => OnShutdown::StopVms { grace: DEFAULT_GRACE },
        };
        let report = app.engine.shutdown(vms).await;
        for (vm, failure) in &report.not_stopped {
            tracing::warn!(%vm, code = %failure.code, message = failure.message, "a VM could not be stopped");
        }
        tracing::info!(
            left_running = report.left_running.len(),
            interrupted = report.interrupted.len(),
            "the daemon ends"
        );
    }
}

async fn leave_when_idle(app: App, idle_timeout: Duration) {
    tokio::select! {
        () = idle_for(&app.engine, &app.activity, idle_timeout) => {
            tracing::info!(?idle_timeout, "nothing left to do");
            app.shutdown.begin(Vms::LiveOn);
        }
        () = app.shutdown.requested() => {}
    }
}

/// SIGTERM and SIGINT: the first asks for an orderly end, the second for a quick one.
#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn turn_into(mut self, shutdown: Shutdown) {
        for act in [|s: &Shutdown| s.begin(Vms::LiveOn), |s: &Shutdown| s.expire()] {
            tokio::select! {
                _ = self.terminate.recv() => act(&shutdown),
                _ = self.interrupt.recv() => act(&shutdown),
                () = shutdown.expired() => return,
            }
        }
    }
}
