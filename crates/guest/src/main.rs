//! The agent inside every VM: PID 1, and the host's hands.
//!
//! ```text
//! init      kernel's hand-over --> disks, root, filesystems;   in a sandbox: what its kernel has not
//! port      virtio-serial port, or a socket --> guest-proto server --> services --+-- exec   processes, terminals, output
//!                                                                    +-- files  with a user's permissions
//!                                                                    +-- entries  files as a shell names them
//!                                                                    +-- contexts  live interpreters
//!                                                                    +-- freeze, thaw  for snapshots and forks
//!                                                                    +-- survey  what the VM is made of
//!                                                                    +-- tree  what was written, out of memory and back
//!                                                                    +-- tcp, info, clock, shutdown
//! reaper    every child that ends, ours and orphans
//! ```
//! One thread runs all of it; short-lived blocking threads do file system calls. Nothing here may end: a failure
//! that cannot be answered to the host is said on the console, and the machine powers off.

mod cgroup;
mod clock;
mod compute;
mod console;
mod contexts;
mod entries;
mod exec;
mod fatal;
mod fault;
mod files;
mod freeze;
mod info;
mod init;
mod kernel;
mod port;
mod presence;
mod reaper;
mod services;
mod shutdown;
mod survey;
mod sys;
mod task;
mod tcp;
mod thaw;
mod tree;
mod usage;
mod users;

use init::CommandLine;
use kernel::Kernel;
use std::{
    convert::Infallible, io::Write, os::fd::AsFd, path::Path, process::ExitCode, sync::Arc, time::Duration,
};

/// The first argument of an agent that is PID 1 of a gVisor sandbox; what a kernel command line would say follows.
const SANDBOX: &str = "sandbox";
/// The virtio-serial port the host gives every VM.
const PORT: &str = "org.offshoot.agent";
/// Where live JavaScript contexts find their add-on.
const ADDON: &str = "/run/offshoot/reseed.node";
/// Programs of the image that are run at each thaw.
const HOOKS: &str = "/etc/offshoot/thaw.d";
/// File operations under way at once; further ones queue.
const BLOCKING_THREADS: usize = 4;
const IDLE_THREAD: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("bring up the VM")]
    Init(#[from] init::InitError),
    #[error("{operation}")]
    Start {
        operation: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the port to the host has ended: {reason}")]
    PortEnded { reason: String },
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("--version") {
        let written = writeln!(std::io::stdout(), "offshoot-guest {}", env!("CARGO_PKG_VERSION"));
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if first.as_deref() == Some(offshoot_guest_proto::compute::ARGUMENT) {
        compute::say();
        // PID 1 of a virtual machine takes it along, with what is still in the terminal's buffer.
        sys::drain_terminal(std::io::stderr().as_fd());
        return ExitCode::SUCCESS;
    }
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        console::warn(format_args!("runs as PID 1 inside a VM, made by `offshoot`; not by hand"));
        return ExitCode::from(2);
    }
    fatal::catch_panics();
    sys::keep_freed_memory();
    let sandbox = (first.as_deref() == Some(SANDBOX)).then(|| CommandLine::of_words(arguments));
    match run(sandbox.as_ref()) {
        Ok(never) => match never {},
        Err(error) => fatal::end(&error),
    }
}

fn run(sandbox: Option<&CommandLine>) -> Result<Infallible, AgentError> {
    let (kernel, booted) = match sandbox {
        None => (Kernel::Linux, init::bring_up(PORT)?),
        Some(given) => {
            sys::keep_notes();
            (Kernel::Gvisor, init::enter_sandbox(given)?)
        }
    };
    raise_own_limits();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(IDLE_THREAD)
        .build()
        .map_err(|source| AgentError::Start { operation: "start the runtime", source })?;
    runtime.block_on(serve(kernel, booted))
}

async fn serve(kernel: Kernel, booted: init::Booted) -> Result<Infallible, AgentError> {
    let start = |operation| move |source| AgentError::Start { operation, source };
    let reaper = reaper::Reaper::start().map_err(start("listen for SIGCHLD"))?;
    let presence = presence::HostPresence::start();
    let trees = |path| exec::Cgroups::set_up(kernel, path).map(Arc::new).map_err(start("set up cgroups"));
    let freezer = Arc::new(freeze::Freezer::new(
        exec::Cgroups::ALL.iter().map(|path| freeze::Group::new(kernel, path.into())).collect(),
    ));
    let users = Arc::new(users::Users::new(Path::new("/etc")));
    let root = Arc::new(files::Root::open_at(Path::new("/")).map_err(start("open the root directory"))?);
    let port = port::Port::open(&booted.port).map_err(start("open the port to the host"))?;
    let addon = Path::new(ADDON);
    let starter = contexts::Starter {
        reaper: Arc::clone(&reaper),
        trees: trees(exec::Cgroups::CONTEXTS)?,
        addon: contexts::place_addon(addon).map(|()| addon.to_owned()).map_err(|error| error.to_string()),
    };
    let contexts = Arc::new(contexts::Contexts::new(starter, Arc::clone(&users), Arc::clone(&freezer)));
    let hooks = thaw::Hooks::new(Arc::clone(&reaper), trees(exec::Cgroups::HOOKS)?, HOOKS.into());
    let user_trees = trees(exec::Cgroups::USER)?;
    let services = services::Services {
        kernel,
        execs: exec::Execs::new(Arc::clone(&reaper), Arc::clone(&presence), user_trees, Arc::clone(&users)),
        thawer: thaw::Thawer::new(kernel, Arc::clone(&freezer), Arc::clone(&contexts), hooks),
        contexts,
        freezer,
        tunnels: tcp::Tunnels::default(),
        reaper,
        presence,
        users,
        root,
        data: Arc::new(booted.data),
        image: booted.image,
        meter: usage::Meter::default(),
        ready_ms: clock::uptime_ms(),
    };
    let end = offshoot_guest_proto::server::serve(port, Arc::new(services)).await;
    Err(AgentError::PortEnded { reason: format!("{end:?}") })
}

/// The agent holds files for everyone. It keeps the ordinary scheduling class: with a real-time one, a host that asks
/// without pause would leave the VM's programs no time at all.
fn raise_own_limits() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let files = Rlimit { current: Some(65536), maximum: Some(512 * 1024) };
    if let Err(error) = setrlimit(Resource::Nofile, files) {
        console::warn(format_args!("raise the limit of open files: {error}"));
    }
}
