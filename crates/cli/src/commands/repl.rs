use crate::{
    context::Context,
    exit_code::Status,
    failure::{Result, usage},
    repl::{self, Partner},
};
use offshoot_types::{ContextName, Language, VmRef};

const EXAMPLES: &str = "Examples:
  offshoot repl web
  offshoot repl web --lang javascript
  offshoot repl web --context main --user user

The context is the one of `offshoot exec --context`: made on first use, its variables stay when you leave, and are in \
every snapshot and fork. Tab completes by what the interpreter knows; code of several lines ends with an empty one \
where that cannot be told. Ctrl-C interrupts the code that runs, Ctrl-D leaves. Figures are saved as files, and their \
names printed. What you type is remembered in `repl-history` of the state directory.";

/// Talk to a live context: type code, see its values
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "VM")]
    vm: VmRef,
    /// Language of the context: python, javascript or bash
    #[arg(short, long, value_name = "LANGUAGE", default_value_t)]
    lang: Language,
    /// The context [default: `repl-` and the language]
    #[arg(long, value_name = "CONTEXT")]
    context: Option<ContextName>,
    /// Who a new context runs as
    #[arg(long, value_name = "USER", default_value = "root")]
    user: String,
    /// Where a new context starts [default: the user's home]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    if context.printer.is_json() {
        return Err(usage("a conversation cannot be one JSON document")
            .hint("use `offshoot exec VM --context NAME -c CODE --json`")
            .into());
    }
    let Args { vm, lang, context: name, user, cwd } = args;
    let name = name.map_or_else(|| format!("repl-{lang}"), |name| name.to_string());
    let client = context.client().await?;
    let partner = Partner { vm, context: name, language: lang, user, cwd };
    repl::converse(context, &client, &partner).await
}
