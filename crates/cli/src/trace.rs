//! What the program says of itself with `-v`: one enum, levels derived from the event.
//!
//! ```text
//! (nothing)  warnings and errors        -v  what happens        -vv  every step
//! ```
//! Lines go to standard error. The daemon writes its own log; what it reports of an operation (steps of a boot,
//! events of a VM) is repeated here as it arrives.

use crate::progress;
use offshoot_api::v1;
use offshoot_types::TransactionId;
use std::{fmt, io, path::Path, time::Duration};
use tracing::level_filters::LevelFilter;

#[derive(Debug)]
pub enum TraceEvent<'a> {
    DaemonFound { socket: &'a Path },
    DaemonStarted { socket: &'a Path, took: Duration },
    DaemonRace,
    StepBegun { step: &'a str },
    StepDone { step: &'a str, took_ms: Option<u64> },
    ProcessStarted(&'a v1::Started),
    ProcessEnded(&'a v1::Ended),
    VmEvent(&'a v1::Event),
    Renewed { name: &'a str, said: &'a v1::Attestations },
    StoodStill { micros: u64 },
    Begun { transaction: TransactionId },
    Ended { end: &'a str },
    Racing { racer: u32, name: &'a str },
    Scored { racer: u32, score: f64 },
    SignalForwarded { number: i32 },
    ProcessKilled,
    Copied { path: &'a str, bytes: u64 },
    ImageStage { stage: &'a str },
    ImageLine { line: &'a str },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Info,
    Debug,
}

impl TraceEvent<'_> {
    const fn level(&self) -> Level {
        match self {
            Self::DaemonStarted { .. }
            | Self::DaemonRace
            | Self::StepDone { .. }
            | Self::ProcessStarted(_)
            | Self::ProcessEnded(_)
            | Self::VmEvent(_)
            | Self::Renewed { .. }
            | Self::StoodStill { .. }
            | Self::Begun { .. }
            | Self::Ended { .. }
            | Self::Racing { .. }
            | Self::Scored { .. }
            | Self::SignalForwarded { .. }
            | Self::ProcessKilled
            | Self::ImageStage { .. } => Level::Info,
            Self::DaemonFound { .. }
            | Self::StepBegun { .. }
            | Self::Copied { .. }
            | Self::ImageLine { .. } => Level::Debug,
        }
    }

    pub fn emit(&self) {
        match self.level() {
            Level::Info => tracing::info!(target: "offshoot::cli", "{self}"),
            Level::Debug => tracing::debug!(target: "offshoot::cli", "{self}"),
        }
    }
}

impl fmt::Display for TraceEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DaemonFound { socket } => write!(f, "daemon listens at {}", socket.display()),
            Self::DaemonStarted { socket, took } => {
                write!(f, "daemon started in {} ms, listens at {}", took.as_millis(), socket.display())
            }
            Self::DaemonRace => f.write_str("another daemon was faster, using that one"),
            Self::StepBegun { step } => write!(f, "{step} ..."),
            Self::StepDone { step, took_ms: Some(ms) } => write!(f, "{step} done in {ms} ms"),
            Self::StepDone { step, took_ms: None } => write!(f, "{step} done"),
            Self::ProcessStarted(started) => {
                let v1::Started { exec, vm_name, provider, isolation, .. } = started;
                write!(f, "process started: exec {exec} in VM `{vm_name}` ({provider}, {isolation})")
            }
            Self::ProcessEnded(ended) => write!(
                f,
                "process ended after {} ms ({:.1} ms inside the guest)",
                ended.durations.exec_ms,
                ended.durations.guest_wall_us as f64 / 1000.0
            ),
            Self::VmEvent(event) => f.write_str(&crate::view::event_line(event)),
            Self::Renewed { name, said } => {
                write!(f, "`{name}` renewed: {}", crate::branches::attested(said))
            }
            Self::StoodStill { micros } => {
                write!(f, "it stood still for {:.1} ms", *micros as f64 / 1000.0)
            }
            Self::Begun { transaction } => write!(f, "transaction {transaction} begun"),
            Self::Ended { end } => write!(f, "transaction {end}"),
            Self::Racing { racer, name } => write!(f, "racer {racer} runs as `{name}`"),
            Self::Scored { racer, score } => write!(f, "racer {racer} scored {score}"),
            Self::SignalForwarded { number } => write!(f, "signal {number} passed to the process"),
            Self::ProcessKilled => f.write_str("the process did not end: killed"),
            Self::Copied { path, bytes } => write!(f, "copied {path} ({bytes} bytes)"),
            Self::ImageStage { stage } => f.write_str(stage),
            Self::ImageLine { line } => f.write_str(&crate::printer::visible(line)),
        }
    }
}

/// Starts the log of this process. `verbose` counts the `-v`s.
pub fn init(verbose: u8, color: bool) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| AsideWriter)
        .with_ansi(color)
        .with_target(verbose > 1)
        .without_time()
        .finish();
    // Fails only if there is one already, which is then the one to keep.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Standard error, with the spinner out of the way.
struct AsideWriter;

impl io::Write for AsideWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        progress::aside(|| io::stderr().lock().write(bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}
