//! Starting a keeper: the lock, the lease, the connection and the process, in this order.

use super::{
    client::{self, ClientError, Greeting},
    files::{Files, write_json},
    last_lines,
    spec::Spec,
    wire::Socket,
};
use crate::{
    os,
    task::{Task, spawn},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::{
    fs::OpenOptions,
    io,
    os::{fd::BorrowedFd, unix::fs::OpenOptionsExt},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("`{directory}` is in use by a keeper that lives")]
    InUse { directory: String },
    #[error("cannot {operation}")]
    Prepare {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot run `{program} keeper`")]
    Spawn {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("the keeper ended before it could say why: {log}")]
    Silent {
        log: String,
        #[source]
        source: ClientError,
    },
    #[error("the keeper had no VMM running after {after:?}")]
    Late { after: Duration },
}

/// Returns once the VMM runs, or the keeper says why it does not. Dropping the future leaves a keeper that the
/// instance's record finds.
/// `passed`: the memory files the specification speaks of, in its order.
pub(crate) async fn launch(
    exe: &Path,
    spec: &Spec,
    passed: &[BorrowedFd<'_>],
    limit: Duration,
) -> Result<Greeting, LaunchError> {
    let prepare = |operation| move |source| LaunchError::Prepare { operation, source };
    let files = Files::new(&spec.state_dir, &spec.runtime_dir);
    let lock = files.try_lock().map_err(prepare("lock the state directory"))?;
    let Some(lock) = lock else {
        return Err(LaunchError::InUse { directory: spec.state_dir.display().to_string() });
    };
    files.clear().map_err(prepare("remove what an earlier start left"))?;
    let path = files.spec(&spec.name);
    write_json(&path, spec, false).map_err(prepare("write the keeper's specification"))?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(files.keeper_log());
    let log = log.map_err(prepare("create keeper.log"))?;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| LaunchError::Prepare { operation: "make a connection", source: error.into() })?;
    let socket = Socket::new(ours).map_err(prepare("make a connection"))?;

    let mut command = Command::new(exe);
    command.arg("keeper").arg("--spec").arg(&path).current_dir("/");
    // The lock goes along: it is held from before the keeper's first instruction, and by nobody else once this
    // command is dropped.
    command.stdin(Stdio::from(theirs)).stdout(Stdio::from(lock)).stderr(Stdio::from(log));
    os::detach(&mut command, passed).map_err(prepare("pass files to the keeper"))?;
    // From here on a keeper may come into being; until it claims the lease it can be kept from starting a VMM.
    files.grant().map_err(prepare("grant the lease"))?;
    let spawned = tokio::process::Command::from(command).spawn();
    let mut child =
        spawned.map_err(|source| LaunchError::Spawn { program: exe.display().to_string(), source })?;
    spawn(Task::KeeperReaper, async move {
        let status = child.wait().await;
        tracing::debug!(?status, "keeper process ended");
    });

    match tokio::time::timeout(limit, client::attach(socket, files.clone())).await {
        Ok(Ok(greeting)) => Ok(greeting),
        Ok(Err(source)) => {
            let log = std::fs::read(files.keeper_log()).unwrap_or_default();
            let log = last_lines(&log).pop().unwrap_or_else(|| "it left no log".into());
            Err(LaunchError::Silent { log, source })
        }
        Err(_elapsed) => Err(LaunchError::Late { after: limit }),
    }
}
