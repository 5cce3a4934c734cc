use crate::{cli::Cli, context::Context, exit_code::Status, failure::Result};
use clap::CommandFactory;
use clap_complete::Shell;
use serde::Serialize;

const EXAMPLES: &str = "Examples:
  offshoot completion bash > /etc/bash_completion.d/offshoot
  offshoot completion zsh > ~/.zfunc/_offshoot
  offshoot completion fish > ~/.config/fish/completions/offshoot.fish";

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[arg(value_enum)]
    shell: Shell,
}

/// `completion --json`.
#[derive(Debug, Serialize)]
struct Script {
    shell: String,
    script: String,
}

pub fn run(context: &Context, args: &Args) -> Result<Status> {
    let document = Script { shell: args.shell.to_string(), script: script(args.shell) };
    context.printer.answer(&document, || document.script.clone())?;
    Ok(Status::DONE)
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "offshoot", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_verbs() {
        for shell in Shell::value_variants() {
            let script = script(*shell);
            for word in ["offshoot", "destroy", "image", "doctor"] {
                assert!(script.contains(word), "{shell} does not know `{word}`");
            }
        }
    }
}
