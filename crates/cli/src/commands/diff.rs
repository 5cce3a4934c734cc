use crate::{
    context::Context,
    differences,
    exit_code::{ExitCode, Status},
    failure::Result,
};
use offshoot_api::v1::{DEFAULT_DIFFERENCES, DiffKind, DiffRequest, MAX_DIFFERENCES};

const EXAMPLES: &str = "Examples:
  offshoot diff web@before web
  offshoot diff web
  offshoot diff web-1 web-2 --files
  offshoot diff web@before web --exit-code --stat

A line is `A` (added), `M` (modified) or `D` (removed) on the way from the first state to the second. A snapshot, a \
suspended or a stopped VM is looked into as a copy, which needs the memory of the VM for as long as it takes and is \
destroyed again; a running VM is looked at as it is. Files are compared by kind, mode, owner, size and content, not by \
their times; both states must be over the same image. Exit status 0 says that they were compared; see --exit-code.";

/// Show what differs between two states: files, packages, processes
///
/// With one state, what has changed in it since the snapshot it came of: of a VM, its last one.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A VM by name or id, or a snapshot as VM@NAME or by id
    #[arg(value_name = "VM|SNAPSHOT")]
    first: String,
    /// What the first is compared with
    #[arg(value_name = "VM|SNAPSHOT")]
    second: Option<String>,
    /// Compare files; without any of these three, all of them
    #[arg(long)]
    files: bool,
    /// Compare packages: of dpkg, and what pip installed for all
    #[arg(long)]
    packages: bool,
    /// Compare processes, by command line and user
    #[arg(long)]
    processes: bool,
    /// Print how many differ, not which
    #[arg(long)]
    stat: bool,
    /// Exit with 1 if anything differs
    #[arg(long)]
    exit_code: bool,
    /// Most differences of each kind to print; the others are counted
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULT_DIFFERENCES, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DIFFERENCES)))]
    limit: u32,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    let (from, to) = match args.second {
        Some(second) => (Some(args.first), second),
        None => (None, args.first),
    };
    let asked = [
        (args.files, DiffKind::Files),
        (args.packages, DiffKind::Packages),
        (args.processes, DiffKind::Processes),
    ];
    let kinds = asked.into_iter().filter_map(|(asked, kind)| asked.then_some(kind)).collect();
    let request = DiffRequest { from, to, kinds, limit: Some(args.limit) };
    let progress = context.printer.progress("comparing");
    let diff = progress.during(client.diff(&request)).await?;
    context.printer.answer(&diff, || match args.stat {
        true => differences::counts(&diff),
        false => differences::text(&diff, &context.printer),
    })?;
    for note in differences::notes(&diff, args.stat) {
        context.printer.note(&note);
    }
    Ok(match args.exit_code && diff.differs {
        true => Status::Own(ExitCode::CheckFailed),
        false => Status::DONE,
    })
}
