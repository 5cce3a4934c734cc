//! The command line: global options and the list of verbs. Each verb's own options and help are in its file.

use crate::{
    commands::{
        completion, context, cp, create, daemon, destroy, diff, doctor, exec, fork, history, image, keeper,
        key, life, list, logs, mcp, pause, port, race, repl, restart, resume, rollback, run, serve, shell,
        snapshot, start, status, stop, suspend, r#try, tx, undo, wait,
    },
    duration::Span,
    options::Within,
    printer::ColorChoice,
};
use clap::{
    ArgAction, Parser, Subcommand,
    builder::{OsStringValueParser, TypedValueParser},
};
use std::{ffi::OsString, path::PathBuf};

/// An empty OFFSHOOT_HOME is as good as none.
fn directory() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

const AFTER: &str = "\
Start with:
  offshoot doctor
  offshoot image build base
  offshoot run -c 'import platform; print(platform.release())'

Precedence: an option wins over its environment variable, that over the default.

Exit status: 0 done, 1 a check failed, 2 usage, 3 not found, 4 exists or wrong state, 5 denied, 6 timeout, \
7 no resource, 8 backend, 130 interrupted. `run`, `exec` and `try` pass the program's own status through, and use \
124 for its timeout, 127 for a program that cannot be executed, and 125 for any failure that is not the \
program's.";

/// Micro-VMs for AI agents: run code in a real virtual machine of its own
///
/// Any verb starts the daemon if none runs. Data goes to standard output, everything else to standard error.
#[derive(Debug, Parser)]
#[command(name = "offshoot", version, after_help = AFTER, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb; they may stand before or after it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Where VMs and records are kept [default: ~/.local/share/offshoot]
    #[arg(long, global = true, env = "OFFSHOOT_HOME", value_name = "DIR", hide_env_values = true, value_parser = directory())]
    pub state_dir: Option<PathBuf>,
    /// Give up after this long, such as `500ms`, `30s` or `2m` [default: wait as long as it takes]
    #[arg(long, global = true, value_name = "DURATION")]
    pub timeout: Option<Span>,
    /// Act from within this open transaction
    #[arg(long, global = true, env = "OFFSHOOT_TRANSACTION", value_name = "ID", hide_env_values = true)]
    pub transaction: Option<Within>,
    /// Fail if the VM is suspended, instead of letting it go on
    #[arg(long, global = true)]
    pub no_wake: bool,
    /// Say what happens, on standard error; twice for every step
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Print exactly one JSON document on standard output, errors included
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colour (`auto` honours NO_COLOR)
    #[arg(long, global = true, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN", hide_possible_values = true)]
    pub color: ColorChoice,
    /// Fail if no daemon runs, instead of starting one
    #[arg(long, global = true)]
    pub no_autostart: bool,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    Run(run::Args),
    Create(create::Args),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Pause(pause::Args),
    Resume(resume::Args),
    Suspend(suspend::Args),
    Life(life::Args),
    Destroy(destroy::Args),
    List(list::Args),
    Status(status::Args),
    Exec(exec::Args),
    Context(context::Args),
    Repl(repl::Args),
    Shell(shell::Args),
    Cp(cp::Args),
    Port(port::Args),
    Snapshot(snapshot::Args),
    Fork(fork::Args),
    Diff(diff::Args),
    Rollback(rollback::Args),
    Undo(undo::Args),
    Try(r#try::Args),
    Tx(tx::Args),
    Race(race::Args),
    History(history::Args),
    Logs(logs::Args),
    Wait(wait::Args),
    Image(image::Args),
    Key(key::Args),
    Mcp(mcp::Args),
    Daemon(daemon::Args),
    Serve(serve::Args),
    Doctor(doctor::Args),
    Completion(completion::Args),
    #[command(hide = true)]
    Keeper(keeper::Args),
}

/// What can be told of a command line that does not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guess {
    /// `run`, `exec` or `try`: failures of ours are 125, since 2 may be the program's own status.
    pub passes_status: bool,
    pub json: bool,
}

impl Guess {
    pub fn of(arguments: &[OsString]) -> Self {
        let mut guess = Self { passes_status: false, json: false };
        let mut verb_seen = false;
        let mut words = arguments.iter().skip(1).map(|word| word.to_string_lossy());
        while let Some(word) = words.next() {
            match word.as_ref() {
                "--" => break,
                "--json" => guess.json = true,
                "--state-dir" | "--timeout" | "--transaction" | "--color" => drop(words.next()),
                option if option.starts_with('-') => {}
                verb if !verb_seen => {
                    verb_seen = true;
                    guess.passes_status = matches!(verb, "run" | "exec" | "try");
                }
                _ => {}
            }
        }
        guess
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn guess(line: &str) -> (bool, bool) {
        let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
        let Guess { passes_status, json } = Guess::of(&words);
        (passes_status, json)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_line_that_does_not_parse_still_tells_its_verb_and_format() {
        assert_eq!(guess("offshoot run --memory 0"), (true, false));
        assert_eq!(guess("offshoot --json --state-dir run list --bogus"), (false, true));
        assert_eq!(guess("offshoot --timeout 3s exec --bogus"), (true, false));
        assert_eq!(guess("offshoot exec web -- x --json"), (true, false));
        assert_eq!(guess("offshoot --transaction exec try web --bogus"), (true, false));
        assert_eq!(guess("offshoot"), (false, false));
    }

    #[test]
    fn global_options_mean_the_same_before_and_after_the_verb() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().global;
        let before =
            parse("offshoot --state-dir /s --timeout 5s -vv --json --color never --no-autostart list");
        let after =
            parse("offshoot list --state-dir /s --timeout 5s -vv --json --color never --no-autostart");
        for global in [before, after] {
            assert_eq!(global.state_dir.as_deref(), Some("/s".as_ref()));
            assert_eq!(global.timeout, Some("5s".parse().unwrap()));
            assert_eq!((global.verbose, global.json, global.color), (2, true, ColorChoice::Never));
            assert!(global.no_autostart);
        }
    }

    #[test]
    fn the_time_limit_of_run_is_the_same_option_wherever_it_stands() {
        for line in ["offshoot --timeout 7s run -- true", "offshoot run --timeout 7s -- true"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Verb::Run(run) = cli.verb else { panic!("the verb is run") };
            assert_eq!(run.timeout, Some("7s".parse().unwrap()), "{line}");
        }
    }
}
