//! Finding the daemon of a state directory, and starting one.
//!
//! ```text
//! connect -> answers?  yes -> use it
//!            no -> `--no-autostart`? yes -> refuse, with a hint
//!                  no -> take `autostart.lock` -> answers now? yes -> use it (another verb was faster)
//!                        no -> spawn `offshoot serve --autostarted`, wait for its word on a pipe
//!                              ready  -> use it, or whichever was faster still
//!                              failed -> its failure is ours
//! ```
//! The child's standard output is the pipe: one line of JSON, a [`StartReport`]. Its standard error is the log
//! file. It leaves our session by itself, so that Ctrl-C here never reaches it.

use crate::{
    context::Context,
    failure::{Result, file, host},
    paths::{Paths, StateDir},
    progress::Progress,
    trace::TraceEvent,
};
use offshoot_api::{Client, ClientError, v1::StartReport};
use offshoot_types::{ErrorCode, Failure};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio::io::{AsyncBufReadExt, BufReader};

/// How long a daemon may take to bring record and world together, adopting what runs.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often a socket or lock is looked at again, where there is nothing to wait on.
const POLL: Duration = Duration::from_millis(20);
/// A larger log is set aside when the next daemon starts.
const LOG_LIMIT: u64 = 8 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Autostart {
    Allowed,
    Refused,
}

/// The daemon, if one answers.
pub async fn find(paths: &Paths) -> Result<Option<Client>> {
    let dir = paths.existing().map_err(|error| file("open", &paths.state_dir, error))?;
    match dir {
        Some(dir) => Ok(answering(&dir).await?),
        None => Ok(None),
    }
}

pub async fn connect(context: &Context) -> Result<Client> {
    let progress = context.printer.progress("reaching the daemon");
    progress.during(context.abandonable("reaching the daemon", find_or_start(context, &progress))).await
}

pub async fn find_or_start(context: &Context, progress: &Progress) -> Result<Client> {
    let dir = context.paths.prepare()?;
    if let Some(client) = answering(&dir).await? {
        context.tell(&TraceEvent::DaemonFound { socket: client.socket().unwrap_or(&dir.socket()) });
        return Ok(client);
    }
    if context.autostart == Autostart::Refused {
        let message = format!("no daemon runs for state directory `{}`", dir.path().display());
        return Err(Failure::new(ErrorCode::Unavailable, message)
            .hint("start one with `offshoot serve`, or leave out `--no-autostart`")
            .into());
    }
    progress.message("starting the daemon");
    start(context, &dir).await
}

async fn start(context: &Context, dir: &StateDir) -> Result<Client> {
    let began = Instant::now();
    let _lock = autostart_lock(dir, began).await?;
    if let Some(client) = answering(dir).await? {
        context.tell(&TraceEvent::DaemonRace);
        return Ok(client);
    }
    spawn(dir, began).await?;
    let socket = dir.socket();
    context.tell(&TraceEvent::DaemonStarted { socket: &socket, took: began.elapsed() });
    Ok(Client::new(socket))
}

/// The daemon where our environment says it listens, else where it recorded that it does: it may have been
/// started with another runtime directory (by a service manager, say) than ours.
async fn answering(dir: &StateDir) -> Result<Option<Client>, ClientError> {
    let expected = dir.socket();
    if let Some(client) = answering_at(expected.clone()).await? {
        return Ok(Some(client));
    }
    match offshoot_server::read_daemon_record(dir.path()) {
        Some(record) if record.socket != expected => answering_at(record.socket).await,
        _ => Ok(None),
    }
}

async fn answering_at(socket: PathBuf) -> Result<Option<Client>, ClientError> {
    let client = Client::new(socket);
    match client.health().await {
        Ok(_) => Ok(Some(client)),
        Err(ClientError::NotRunning { .. }) => Ok(None),
        // It accepted us and went away: a daemon in the act of ending.
        Err(ClientError::Io { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Held while a daemon is being started, so that verbs started at once make one daemon between them.
async fn autostart_lock(dir: &StateDir, began: Instant) -> Result<File> {
    let path = dir.path().join("autostart.lock");
    let failed = |error: io::Error| file("lock", &path, error);
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < READY_WITHIN => {
                tokio::time::sleep(POLL).await;
            }
            Err(errno) => return Err(failed(errno.into()).into()),
        }
    }
}

/// Returns once the child, or a daemon that was faster, accepts requests.
async fn spawn(dir: &StateDir, began: Instant) -> Result {
    let exe = std::env::current_exe().map_err(|error| host("cannot find our own program", &error))?;
    let log_path = dir.daemon_log();
    let log = open_log(&log_path)?;
    let log_begins = log.metadata().map_or(0, |metadata| metadata.len());
    let mut command = Command::new(&exe);
    command
        // The name operators look for, whatever the file is called.
        .arg0("offshoot")
        .args(["serve", "--autostarted", "--log-format", "text", "--state-dir"])
        .arg(dir.path())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    let mut child = command.spawn().map_err(|error| file("start", &exe, error))?;
    let pipe = child.stdout.take().expect("standard output was set to a pipe");
    let pipe = tokio::process::ChildStdout::from_std(pipe)
        .map_err(|error| host("cannot listen to the daemon", &error))?;
    let mut line = String::new();
    let heard = tokio::time::timeout(
        READY_WITHIN.saturating_sub(began.elapsed()),
        BufReader::new(pipe).read_line(&mut line),
    )
    .await;
    let failure = match heard {
        Ok(Ok(_)) => match serde_json::from_str(&line) {
            Ok(StartReport::Ready { .. }) => return Ok(()),
            Ok(StartReport::Failed(problem)) => problem.into(),
            Err(_) => Failure::new(ErrorCode::Internal, "the daemon ended before it was ready")
                .hint(format!("its log is `{}`{}", log_path.display(), last_words(&log_path, log_begins))),
        },
        Ok(Err(error)) => host("cannot listen to the daemon", &error),
        Err(_) => {
            Failure::new(ErrorCode::Timeout, format!("the daemon was not ready within {READY_WITHIN:?}"))
                .hint(format!("its log is `{}`", log_path.display()))
        }
    };
    Err(failure.into())
}

fn open_log(path: &Path) -> Result<File> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_LIMIT) {
        fs::rename(path, path.with_extension("log.1")).map_err(|error| file("set aside", path, error))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| file("open", path, error).into())
}

/// The last line the daemon logged since it was started, for the hint.
fn last_words(log: &Path, since: u64) -> String {
    let text = fs::read(log).unwrap_or_default();
    let new = text.get(usize::try_from(since).unwrap_or(0)..).unwrap_or_default();
    match String::from_utf8_lossy(new).lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => format!("; it ends with: {}", line.trim()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn an_overgrown_log_is_set_aside_and_the_new_one_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.log");
        File::create(&path).unwrap().set_len(LOG_LIMIT + 1).unwrap();
        let Ok(mut log) = open_log(&path) else { panic!("the log opens") };
        assert_eq!(log.metadata().unwrap().len(), 0);
        assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(dir.path().join("daemon.log.1").exists());
        log.write_all(b"one\nlast\n\n").unwrap();
        assert_eq!(last_words(&path, 4), "; it ends with: last");
        assert_eq!(last_words(&path, 10), "");
    }
}
