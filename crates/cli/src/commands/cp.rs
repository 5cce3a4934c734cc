use crate::{
    context::Context,
    copy::{self, Place, Route},
    exit_code::Status,
    failure::Result,
};

const EXAMPLES: &str = "Examples:
  offshoot cp ./src web:/workspace/src
  offshoot cp web:/workspace/out.tar .
  offshoot cp web:/etc/. ./etc-of-web

Modes and symbolic links are kept; set-id bits are not brought to the host, and no link is followed there. \
Each file arrives whole or not at all, also when interrupted.";

/// Copy files and directories into or out of a running VM
///
/// One side is `NAME:/PATH`. An existing directory as the target is copied into; `SRC/.` copies what is in SRC.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to copy
    #[arg(value_name = "SRC")]
    from: Place,
    /// Where to
    #[arg(value_name = "DST")]
    to: Place,
    /// User inside the VM, by name or uid
    #[arg(long, value_name = "USER", default_value = "root")]
    user: String,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let route = Route::between(args.from, args.to)?;
    let client = context.client().await?;
    let progress = context.printer.progress("copying");
    let copying = copy::copy(&client, &context.printer, &progress, &route, Some(args.user));
    let copied = progress.during(copying).await?;
    drop(progress);
    match context.printer.is_json() {
        true => context.printer.document(&copied)?,
        false => context.printer.note(&copied.summary()),
    }
    Ok(Status::DONE)
}
