//! Becoming the daemon of a state directory.
//!
//! ```text
//! lock free ------------------------------------------------------> Ours
//! held, autostarted, we are explicit --stop{handover}--> lock free -> Ours
//! held, explicit or we are autostarted:   explicit --> Busy        autostarted --> Theirs (once it answers)
//! held, nobody answers yet (starting or ending) --> look again, within bounds
//! ```

use crate::record;
use offshoot_api::{
    Client, ClientError,
    v1::{DaemonMode, StopDaemon},
};
use offshoot_engine::{LockError, StateDirLock};
use offshoot_types::{ErrorCode, Failure};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How long to wait for another daemon to answer or to end. Longer than a drain.
const PATIENCE: Duration = Duration::from_secs(45);
/// Neither a lock nor a socket announces that it has become free.
const POLL: Duration = Duration::from_millis(20);

/// Whose the state directory is.
#[derive(Debug)]
pub enum Claim {
    Ours(StateDirLock),
    /// Another daemon serves it and answers.
    Theirs {
        pid: u32,
    },
}

/// Tries until it is clear.
pub async fn claim(state_dir: &Path, socket: &Path, mode: DaemonMode) -> Result<Claim, Failure> {
    let until = Instant::now() + PATIENCE;
    let mut asked = false;
    loop {
        match StateDirLock::acquire(state_dir) {
            Ok(lock) => return Ok(Claim::Ours(lock)),
            Err(LockError::Held { .. }) => {}
            Err(error) => return Err(unusable(state_dir, &error)),
        }
        // The holder may have been started with another XDG_RUNTIME_DIR, and so listen elsewhere.
        let holder = record::read(state_dir).map_or_else(|| socket.to_owned(), |holder| holder.socket);
        let client = Client::new(holder);
        match mode {
            DaemonMode::Autostarted => {
                if let Ok(health) = client.health().await {
                    return Ok(Claim::Theirs { pid: health.pid });
                }
            }
            DaemonMode::Explicit if !asked => asked = ask_to_leave(&client).await?,
            DaemonMode::Explicit => {}
        }
        if Instant::now() >= until {
            return Err(stuck(state_dir));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether the other daemon heard us. One that is starting or ending does not answer.
async fn ask_to_leave(client: &Client) -> Result<bool, Failure> {
    match client.stop_daemon(&StopDaemon { vms: false, handover: true }).await {
        Ok(stopping) => {
            tracing::info!(pid = stopping.pid, "an autostarted daemon hands over");
            Ok(true)
        }
        Err(ClientError::Api(refusal)) => Err((*refusal).into()),
        Err(error) => {
            tracing::debug!(%error, "the daemon that holds the state directory does not answer yet");
            Ok(false)
        }
    }
}

fn unusable(state_dir: &Path, error: &LockError) -> Failure {
    let message = format!("cannot use the state directory {}", state_dir.display());
    Failure::new(ErrorCode::Unavailable, message)
        .caused_by(error)
        .hint("check its permissions, or name another with --state-dir")
}

fn stuck(state_dir: &Path) -> Failure {
    let holder = record::read(state_dir);
    let who = holder.map_or("another process".into(), |holder| format!("process {}", holder.pid));
    let message = format!(
        "{who} holds the state directory {} and neither serves nor ends within {PATIENCE:?}",
        state_dir.display()
    );
    Failure::new(ErrorCode::Busy, message).hint("look at its log; ending it leaves the VMs running")
}
