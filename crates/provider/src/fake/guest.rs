//! The fake guest: speaks the real protocol, runs nothing on the host.

use super::{exec::Execs, files::Files};
use offshoot_guest_proto::{
    message::{
        ExecAttach, ExecStart, ExecSummary, FileRequest, GuestError, GuestErrorKind, GuestHello, GuestInfo,
        HostHello, HostTime, PROTOCOL_VERSION, ShutdownKind,
    },
    server::{ExecPeer, FilePeer, Services, TcpPeer},
};
use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

pub(super) const KERNEL: &str = "0.0.0-fake";
/// The one port that listens: it sends back what it gets (RFC 862).
const ECHO: u16 = 7;

#[derive(Debug)]
pub(super) struct Guest {
    boot_id: String,
    booted: Instant,
    hostname: Mutex<String>,
    pub execs: Execs,
    files: Files,
    memory: u64,
    /// `true` once the guest has powered itself off.
    power: watch::Sender<bool>,
}

impl Guest {
    pub fn new(boot_id: String, memory: u64) -> Self {
        Self {
            boot_id,
            booted: Instant::now(),
            hostname: Mutex::default(),
            execs: Execs::default(),
            files: Files::default(),
            memory,
            power: watch::Sender::new(false),
        }
    }

    pub fn powered_off(&self) -> watch::Receiver<bool> {
        self.power.subscribe()
    }
}

fn now() -> HostTime {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    HostTime(time.as_nanos() as u64)
}

impl Services for Guest {
    async fn hello(&self, hello: &HostHello) -> Result<GuestHello, GuestError> {
        let mut hostname = self.hostname.lock().unwrap_or_else(PoisonError::into_inner);
        if hostname.is_empty() {
            hostname.clone_from(&hello.hostname);
        }
        Ok(GuestHello {
            version: PROTOCOL_VERSION,
            epoch: hello.epoch,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.boot_id.clone(),
            kernel_release: KERNEL.into(),
            ready_ms: 0,
            frozen: false,
        })
    }

    fn heartbeat(&self, time: HostTime) -> i64 {
        now().0.wrapping_sub(time.0) as i64
    }

    async fn exec(&self, start: ExecStart, peer: ExecPeer) {
        self.execs.start(start, peer).await;
    }

    async fn attach(&self, attach: ExecAttach, peer: ExecPeer) {
        self.execs.attach(attach, peer).await;
    }

    async fn list_execs(&self) -> Vec<ExecSummary> {
        self.execs.list()
    }

    async fn file(&self, request: FileRequest, peer: FilePeer) {
        // A host that left in the middle wants no answer.
        let _ = self.files.serve(request, peer).await;
    }

    async fn tcp(&self, port: u16, peer: TcpPeer) {
        if port == ECHO {
            // A host that left in the middle wants nothing back.
            if let Ok(tunnel) = peer.accept().await {
                let (mut from, mut to) = tokio::io::split(tunnel);
                if tokio::io::copy(&mut from, &mut to).await.is_ok() {
                    let _ = to.shutdown().await;
                }
            }
            return;
        }
        let message = format!("connect to port {port}: connection refused");
        peer.refuse(GuestError { kind: GuestErrorKind::ConnectionRefused, message }).await;
    }

    async fn info(&self) -> Result<GuestInfo, GuestError> {
        Ok(GuestInfo {
            kernel_release: KERNEL.into(),
            hostname: self.hostname.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            boot_id: self.boot_id.clone(),
            uptime_ms: self.booted.elapsed().as_millis() as u64,
            memory_total: self.memory,
            memory_available: self.memory,
            load_1m: 0.0,
            disk_total: 0,
            disk_available: 0,
            processes: 1 + self.execs.running(),
            time: now(),
        })
    }

    fn may_shutdown(&self, _: ShutdownKind) -> Result<(), GuestError> {
        Ok(())
    }

    async fn shutdown(&self, _: ShutdownKind) {
        // A restart ends the machine too, as everywhere: `-no-reboot`.
        self.power.send_replace(true);
    }
}
