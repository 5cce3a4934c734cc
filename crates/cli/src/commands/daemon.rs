use crate::{
    context::Context,
    exit_code::Status,
    failure::{Result, host},
    view,
};
use clap::Subcommand;
use offshoot_api::{
    Client,
    v1::{Daemon, StopDaemon},
};
use offshoot_types::{ErrorCode, Failure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::Serialize;
use std::{
    fs, io,
    time::{Duration, Instant},
};
use tokio::task::spawn_blocking;

const EXAMPLES: &str = "Examples:
  offshoot daemon status
  offshoot daemon stop
  offshoot daemon stop --vms";

/// How long a daemon may take to finish what is under way.
const END_WITHIN: Duration = Duration::from_secs(60);

/// Look at the daemon, or end it
///
/// VMs live on without it; the next daemon takes them up.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show whether a daemon runs; never starts one
    Status,
    /// End the daemon; VMs live on unless --vms
    Stop {
        /// Stop all VMs first
        #[arg(long)]
        vms: bool,
    },
}

/// `daemon status --json`.
#[derive(Debug, Serialize)]
struct Shown {
    running: bool,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    daemon: Option<Daemon>,
}

/// `daemon stop --json`.
#[derive(Debug, Serialize)]
struct Stopped {
    /// False if none ran.
    stopped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    match args.action {
        Action::Status => status(context).await?,
        Action::Stop { vms } => stop(context, vms).await?,
    }
    Ok(Status::DONE)
}

async fn status(context: &Context) -> Result {
    let daemon = match context.running_client().await? {
        Some(client) => Some(client.daemon().await?),
        None => None,
    };
    let shown = Shown { running: daemon.is_some(), daemon };
    context.printer.answer(&shown, || match &shown.daemon {
        Some(daemon) => view::daemon_details(daemon),
        None => format!("no daemon runs for `{}`", context.paths.state_dir.display()),
    })
}

async fn stop(context: &Context, vms: bool) -> Result {
    let running = match context.running_client().await? {
        // VMs outlive their daemon: to stop them, one has to take them up first.
        None if vms && has_vms(context) => Some(context.client().await?),
        found => found,
    };
    let Some(client) = running else {
        let stopped = Stopped { stopped: false, pid: None };
        if context.printer.is_json() {
            return context.printer.document(&stopped);
        }
        context.printer.note("no daemon runs");
        return Ok(());
    };
    let pid = end(context, &client, vms).await?;
    match context.printer.is_json() {
        true => context.printer.document(&Stopped { stopped: true, pid: Some(pid) }),
        false => {
            context.printer.note(&format!("daemon {pid} has ended"));
            Ok(())
        }
    }
}

/// Asks it to end and sees that it did.
async fn end(context: &Context, client: &Client, vms: bool) -> Result<u32> {
    let pid = client.health().await?.pid;
    let process = watch(pid).map_err(|error| host(format!("cannot watch process {pid}"), &error))?;
    client.stop_daemon(&StopDaemon { vms, handover: false }).await?;
    let Some(process) = process else { return Ok(pid) };
    let progress = context.printer.progress("the daemon finishes what is under way");
    let waiting = progress.during(spawn_blocking(move || gone(&process)));
    let ended = waiting.await.map_err(|error| host("the wait ended without a result", &error))?;
    match ended {
        Ok(true) => Ok(pid),
        Ok(false) => Err(Failure::new(
            ErrorCode::Timeout,
            format!("the daemon, process {pid}, has not ended within {END_WITHIN:?}"),
        )
        .hint("its log tells what it waits for")
        .into()),
        Err(error) => Err(host(format!("cannot watch process {pid}"), &error).into()),
    }
}

/// A handle on the process; `None` if it has ended already.
fn watch(pid: u32) -> io::Result<Option<OwnedFd>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok(Some(process)),
        Err(Errno::SRCH) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits until the process has ended; false if it takes too long.
fn gone(process: &OwnedFd) -> io::Result<bool> {
    let until = Instant::now() + END_WITHIN;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Ok(ended) => return Ok(ended > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn has_vms(context: &Context) -> bool {
    fs::read_dir(context.paths.state_dir.join("vms")).is_ok_and(|mut entries| entries.next().is_some())
}
