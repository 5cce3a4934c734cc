//! The command line of Offshoot: verbs, and how they speak to people and programs.
//!
//! ```text
//! main -> cli (parse) --serve, keeper--> processes of their own
//!            |
//!            +--> runtime -> Context {printer, paths, interrupt} -> commands::perform -> offshoot_api::Client
//!                                                                         |
//!            exit status <- exit_code <- Stop | Status <------------------+
//! ```
//! The command line holds no state and has no privilege: all it does, it asks of the daemon by the API. Only images
//! are built right here, since that needs no daemon.

#![forbid(unsafe_code)]

mod agent;
mod ask;
mod branches;
mod change;
mod cli;
mod commands;
mod context;
mod copy;
mod daemon;
mod differences;
mod doctor;
mod duration;
mod exit_code;
mod failure;
mod forward;
mod hints;
mod history;
mod interrupt;
mod lang;
mod mcp;
mod options;
mod paths;
mod printer;
mod progress;
mod repl;
mod session;
mod terminal;
mod trace;
mod view;

pub use exit_code::ExitCode;

use clap::{Parser, error::ErrorKind};
use cli::{Cli, Global, Guess, Verb};
use context::Context;
use daemon::Autostart;
use exit_code::Status;
use failure::{Report, Result, Stop, host, usage};
use interrupt::Interrupt;
use offshoot_types::{ErrorCode, Failure};
use paths::Paths;
use printer::{ColorChoice, Format, Printer};
use std::ffi::OsString;

/// Does what the command line says and returns the program's exit status.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> std::process::ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, Guess::of(&arguments)).into(),
    };
    let Cli { global, verb } = cli;
    if matches!(verb, Verb::Keeper(_) | Verb::Serve(_)) {
        // Sockets, records and logs are their owner's alone, whatever the caller's umask says.
        rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    }
    match verb {
        Verb::Keeper(args) => offshoot_provider::keeper::main(&args.spec),
        Verb::Serve(args) => commands::serve::run(&global, args).into(),
        verb => {
            let passes_status = matches!(verb, Verb::Run(_) | Verb::Exec(_) | Verb::Try(_));
            let printer = global.printer();
            let outcome = perform(&global, &printer, verb);
            conclude(&printer, outcome, passes_status).into()
        }
    }
}

/// A process's exit status as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number(u8);

impl From<Number> for std::process::ExitCode {
    fn from(number: Number) -> Self {
        number.0.into()
    }
}

impl Global {
    fn printer(&self) -> Printer {
        Printer::new(if self.json { Format::Json } else { Format::Text }, self.color)
    }

    fn paths(&self) -> Result<Paths> {
        Paths::new(self.state_dir.clone(), std::env::home_dir())
    }
}

fn perform(global: &Global, printer: &Printer, verb: Verb) -> Result<Status> {
    trace::init(global.verbose, printer.colors_errors());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| host("cannot start", &error))?;
    let outcome = runtime.block_on(async {
        let context = Context {
            printer: printer.clone(),
            paths: global.paths()?,
            deadline: global.timeout.map(|span| span.0),
            no_wake: global.no_wake,
            transaction: global.transaction.and_then(|within| within.0),
            autostart: if global.no_autostart { Autostart::Refused } else { Autostart::Allowed },
            interrupt: Interrupt::install().map_err(|error| host("cannot listen to signals", &error))?,
            verbose: global.verbose,
        };
        commands::perform(&context, verb).await
    });
    // A thread may still wait for a line nobody types.
    runtime.shutdown_background();
    outcome
}

/// Says what went wrong, if anything, and finds the status for it.
fn conclude(printer: &Printer, outcome: Result<Status>, passes_status: bool) -> Number {
    match outcome {
        Ok(status) => Number(status.number()),
        Err(Stop::BrokenPipe) => Number(Status::DONE.number()),
        Err(Stop::Interrupted) => {
            match printer.format() {
                Format::Text => printer.note("interrupted"),
                Format::Json => printer.failure(&Failure::new(ErrorCode::Interrupted, "interrupted").into()),
            }
            Number(ExitCode::Interrupted as u8)
        }
        Err(Stop::Program(report, status)) => {
            printer.failure(&report);
            Number(status as u8)
        }
        Err(Stop::Failed(report)) => {
            printer.failure(&report);
            Number(status_of(&report, passes_status) as u8)
        }
    }
}

fn status_of(report: &Report, passes_status: bool) -> ExitCode {
    match passes_status {
        true => ExitCode::OwnFailure,
        false => report.failure.code.into(),
    }
}

/// A command line that does not parse, or one that asks for help.
fn refuse(error: &clap::Error, guess: Guess) -> Number {
    let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if guess.json && !help {
        let printer = Printer::new(Format::Json, ColorChoice::Never);
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let report = usage(message).hint("`offshoot VERB --help` shows what is possible").into();
        printer.failure(&report);
        return Number(status_of(&report, guess.passes_status) as u8);
    }
    // A reader of the help that has gone away is no failure.
    let _ = error.print();
    match (help, guess.passes_status) {
        (true, _) => Number(Status::DONE.number()),
        (false, true) => Number(ExitCode::OwnFailure as u8),
        (false, false) => Number(ExitCode::Usage as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_ours_are_125_where_the_status_is_the_programs() {
        let report: Report = Failure::new(ErrorCode::NotFound, "no VM `x`").into();
        assert_eq!(status_of(&report, false), ExitCode::NotFound);
        assert_eq!(status_of(&report, true), ExitCode::OwnFailure);
    }

    #[test]
    fn a_broken_pipe_is_success_and_an_interruption_is_130() {
        let printer = Printer::new(Format::Text, ColorChoice::Never);
        assert_eq!(conclude(&printer, Err(Stop::BrokenPipe), true), Number(0));
        assert_eq!(conclude(&printer, Err(Stop::Interrupted), true), Number(130));
        assert_eq!(conclude(&printer, Ok(Status::Guest(7)), true), Number(7));
    }
}
