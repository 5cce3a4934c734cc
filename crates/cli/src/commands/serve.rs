use crate::{
    Number, agent,
    cli::Global,
    commands::image,
    conclude,
    exit_code::Status,
    failure::{Result, Stop, host},
    options::Limit,
    printer::Printer,
};
use offshoot_api::v1::{DaemonMode, StartReport};
use offshoot_image::Store;
use offshoot_server::{
    Announce, Environment, Listen, LogFormat, Providers, ReadyPipe, ServeOptions, Tls, serve,
};
use offshoot_types::{Bytes, InvalidSize, ProviderChoice};
use rustix::{io::fcntl_dupfd_cloexec, process::setsid, stdio};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};
use tokio::sync::oneshot;

const EXAMPLES: &str = "Examples:
  offshoot serve
  offshoot serve --state-dir /srv/offshoot --log-format json
  offshoot serve --listen 127.0.0.1:7070
  offshoot serve --listen 0.0.0.0:7070 --tls-cert fullchain.pem --tls-key privkey.pem
  offshoot serve --e2b > e2b.env
  offshoot serve --e2b --provider gvisor > e2b.env

It takes over from a daemon that was started by a verb, VMs included, and is refused where \
another `offshoot serve` runs. SIGTERM ends it when what is under way has ended; VMs live on, and the next daemon \
takes them up.

A daemon that is started by a verb takes its quotas, the size of its pool, what it does with \
idle VMs and how much of what programs say it keeps from the environment of that verb.";

/// What clients make sandboxes of.
const TEMPLATES: [&str; 2] = ["base", "interpreter"];

/// Run the daemon in the foreground, logging to standard error
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How to log: for people or for machines
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    log_format: Format,
    /// Refuse snapshots once all of them together take so much, such as `50G` [default: no limit]
    #[arg(long, value_name = "SIZE", env = "OFFSHOOT_SNAPSHOT_QUOTA", hide_env_values = true)]
    snapshot_quota: Option<Bytes>,
    /// The same for the snapshots of any one VM
    #[arg(long, value_name = "SIZE", env = "OFFSHOOT_SNAPSHOT_QUOTA_PER_VM", hide_env_values = true)]
    snapshot_quota_per_vm: Option<Bytes>,
    /// Keep so many VMs of each kind ready to be claimed; 0 turns the warm pool off [default: as many as were wanted
    /// lately, none before the first]
    #[arg(long, value_name = "N", env = "OFFSHOOT_POOL", hide_env_values = true)]
    pool: Option<u32>,
    /// Listen for TCP connections too, which need an API key; port 0 is any that is free. May be repeated
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// Serve the API of E2B's SDKs: build the images it needs if they are missing, make a key, and print three
    /// variables for the environment of clients, one a line, once they can be used. Listens on a free port of this host
    /// unless --listen says where. The key is good until the next `serve --e2b`
    #[arg(long)]
    e2b: bool,
    /// What VMs are made with whose maker names nothing: `auto` (the strongest isolation of this host), `qemu`, or `gvisor`
    /// where `offshoot doctor` says that it works. A VM of which more isolation is asked gets that
    #[arg(long, value_name = "PROVIDER", env = "OFFSHOOT_PROVIDER", hide_env_values = true, default_value_t = ProviderChoice::Auto)]
    provider: ProviderChoice,
    /// Encrypt what is said over TCP: the file with the chain of certificates, our own first, in PEM. Read at the start
    #[arg(
        long,
        value_name = "FILE",
        env = "OFFSHOOT_TLS_CERT",
        hide_env_values = true,
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,
    /// The private key of the first of them, in PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "OFFSHOOT_TLS_KEY",
        hide_env_values = true,
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,
    /// Let --listen be reachable from other hosts although nothing on the wire is encrypted, keys included
    #[arg(long, requires = "listen", conflicts_with = "tls_cert")]
    allow_plaintext: bool,
    /// Move a VM of which nothing was asked for this long to a fresh base, from when on its snapshots copy what it writes
    /// and no longer all it has, or `never` [default: 30s]
    #[arg(long, value_name = "DURATION", env = "OFFSHOOT_REBASE_IDLE", hide_env_values = true)]
    rebase_idle: Option<Limit>,
    /// Keep at most so much of what programs say in files, such as `4G`, the oldest going first, or `off`: nothing of it
    /// anywhere, only how much it was [default: 1G]
    #[arg(long, value_name = "SIZE", env = "OFFSHOOT_HISTORY_OUTPUT", hide_env_values = true)]
    history_output: Option<KeptOutput>,
    /// Started by a verb: report on standard output when ready, end when idle
    #[arg(long, hide = true)]
    autostarted: bool,
}

/// A size, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct KeptOutput(Option<Bytes>);

impl FromStr for KeptOutput {
    type Err = InvalidSize;
    fn from_str(text: &str) -> std::result::Result<Self, InvalidSize> {
        match text {
            "off" => Ok(Self(None)),
            size => size.parse().map(|size| Self(Some(size))),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

pub fn run(global: &Global, args: Args) -> Number {
    let printer = global.printer();
    let outcome = match args.autostarted {
        true => autostarted(global, &args),
        false => explicit(&printer, global, &args),
    };
    conclude(&printer, outcome.map(|()| Status::DONE), false)
}

fn explicit(printer: &Printer, global: &Global, args: &Args) -> Result {
    let mut options = options(global, args, DaemonMode::Explicit)?;
    if !args.e2b {
        return live(options, None);
    }
    image::build_missing(printer, &TEMPLATES)?;
    if options.listen.is_empty() {
        options.listen.extend(listen(args, &[(Ipv4Addr::LOCALHOST, 0).into()])?);
    }
    let (to, announced) = oneshot::channel();
    options.announce = Some(Announce { provider: options.provider, to });
    live(options, Some((printer, announced)))
}

/// Leaves the session of the verb that started us, whose pipe is our standard output.
fn autostarted(global: &Global, args: &Args) -> Result {
    let mut ready = detach()?;
    match options(global, args, DaemonMode::Autostarted) {
        Ok(mut options) => {
            options.ready = ready;
            live(options, None)
        }
        Err(Stop::Failed(report)) => {
            ready.report(&StartReport::Failed(report.failure.clone().into()));
            Err(Stop::Failed(report))
        }
        Err(stop) => Err(stop),
    }
}

fn detach() -> Result<ReadyPipe> {
    let failed = |what: &str, error: rustix::io::Errno| host(format!("cannot {what}"), &error);
    let pipe = fcntl_dupfd_cloexec(stdio::stdout(), 3).map_err(|error| failed("keep the pipe", error))?;
    // From here on nothing but the report goes into the pipe.
    stdio::dup2_stdout(stdio::stderr()).map_err(|error| failed("close the standard output", error))?;
    setsid().map_err(|error| failed("leave the session", error))?;
    Ok(pipe.into())
}

fn options(global: &Global, args: &Args, mode: DaemonMode) -> Result<ServeOptions> {
    let listen = listen(args, &args.listen)?;
    let state_dir = global.paths()?.state_dir;
    let images_dir = Store::default_root()?;
    let log = match args.log_format {
        Format::Text => LogFormat::Readable,
        Format::Json => LogFormat::Json,
    };
    let offshoot_exe =
        std::env::current_exe().map_err(|error| host("cannot find our own program", &error))?;
    let providers = Providers::Host { offshoot_exe };
    let mut options = ServeOptions::new(state_dir, images_dir, agent::binary()?, providers, mode);
    options.provider = match args.provider {
        ProviderChoice::Auto => None,
        ProviderChoice::Named(kind) => Some(kind),
    };
    options.log = Some(log);
    options.listen = listen;
    options.limits.snapshots = args.snapshot_quota;
    options.limits.snapshots_per_vm = args.snapshot_quota_per_vm;
    options.keep_pool(args.pool);
    if let Some(KeptOutput(most)) = args.history_output {
        options.keep_output(most);
    }
    if let Some(idle) = args.rebase_idle {
        options.rebase_after(idle.span());
    }
    Ok(options)
}

/// All of them with TLS, if there is a certificate.
fn listen(args: &Args, addresses: &[SocketAddr]) -> Result<Vec<Listen>> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        // A daemon without a port has no use for what is in the environment of whoever started it.
        (Some(certificates), Some(key)) if !addresses.is_empty() => Some(Tls::load(certificates, key)?),
        _ => None,
    };
    let one = |address: &SocketAddr| match &tls {
        Some(tls) => Ok(Listen::encrypted(*address, tls.clone())),
        None => Listen::plain(*address, args.allow_plaintext),
    };
    Ok(addresses.iter().map(one).collect::<std::result::Result<_, _>>()?)
}

/// Serves to the end, and meanwhile prints what clients of E2B need, once they can use it.
fn live(options: ServeOptions, e2b: Option<(&Printer, oneshot::Receiver<Environment>)>) -> Result {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| host("cannot start", &error))?;
    let told = async {
        let Some((printer, announced)) = e2b else { return Ok(()) };
        // A daemon that does not come up says why itself.
        let Ok(environment) = announced.await else { return Ok(()) };
        printer.data(&environment.variables().map(|(name, value)| format!("{name}={value}")).join("\n"))
    };
    let (served, told) = runtime.block_on(async { tokio::join!(serve(options), told) });
    served.map_err(|error| Stop::from(error.0))?;
    told
}
