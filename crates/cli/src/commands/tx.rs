use crate::{
    branches, change,
    context::Context,
    duration::Span,
    exit_code::Status,
    failure::{Result, usage},
    view,
};
use clap::Subcommand;
use jiff::Timestamp;
use offshoot_api::{
    Client,
    v1::{BeginTransaction, Transaction},
};
use offshoot_types::{TransactionId, VmRef};

const EXAMPLES: &str = "Examples:
  export OFFSHOOT_TRANSACTION=$(offshoot tx begin web --deadline 5m)
  offshoot exec web -- make install
  offshoot tx commit web
  offshoot tx rollback web

An open transaction owns its VM: other changes are refused unless they name it, by --transaction or \
OFFSHOOT_TRANSACTION; reads pass. Begun from within one, another is a savepoint of it. `undo` takes back a commit.";

/// Begin a transaction on a VM, commit it or roll it back
///
/// For a single command there is `offshoot try`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, visible_alias = "transaction", subcommand_required = true, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Take a snapshot and begin a transaction; prints its id
    Begin {
        #[arg(value_name = "VM")]
        vm: VmRef,
        /// It is rolled back after this long
        #[arg(long, value_name = "DURATION", default_value = "10m")]
        deadline: Span,
    },
    /// Keep what was done in it
    Commit {
        #[arg(value_name = "VM")]
        vm: VmRef,
        /// [default: that of --transaction or OFFSHOOT_TRANSACTION]
        #[arg(value_name = "ID")]
        id: Option<TransactionId>,
    },
    /// Take back what was done in it
    Rollback {
        #[arg(value_name = "VM")]
        vm: VmRef,
        /// [default: that of --transaction or OFFSHOOT_TRANSACTION]
        #[arg(value_name = "ID")]
        id: Option<TransactionId>,
    },
    /// List the open transactions of a VM, outermost first
    #[command(visible_alias = "ls")]
    List {
        #[arg(value_name = "VM")]
        vm: VmRef,
    },
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    match args.action {
        Action::Begin { vm, deadline } => begin(context, &vm, deadline).await?,
        Action::Commit { vm, id } => {
            let id = which(context, id)?;
            let client = context.client().await?.within(id);
            let what = format!("commit of `{vm}`");
            told(context, &change::answered(context, &what, client.commit(&vm, id)).await?)?;
        }
        Action::Rollback { vm, id } => {
            let id = which(context, id)?;
            let client = context.client().await?.within(id);
            let what = format!("rollback of `{vm}`");
            told(context, &change::answered(context, &what, client.rollback_transaction(&vm, id)).await?)?;
        }
        Action::List { vm } => {
            let client = context.client().await?;
            context.abandonable("the list", list(context, &client, &vm)).await?;
        }
    }
    Ok(Status::DONE)
}

async fn begin(context: &Context, vm: &VmRef, deadline: Span) -> Result {
    let client = context.client().await?;
    let request = BeginTransaction { parent: context.transaction, deadline_ms: Some(deadline.millis()) };
    let what = format!("beginning a transaction on `{vm}`");
    let begun = change::answered(context, &what, client.begin(vm, &request)).await?;
    context.printer.answer(&begun, || begun.id.to_string())
}

fn which(context: &Context, id: Option<TransactionId>) -> Result<TransactionId> {
    id.or(context.transaction).ok_or_else(|| {
        usage("which transaction is missing")
            .hint("give its id, or set OFFSHOOT_TRANSACTION; `offshoot tx list NAME` shows the open ones")
            .into()
    })
}

fn told(context: &Context, ended: &Transaction) -> Result {
    if let Some(end) = &ended.end {
        context.printer.note(&view::ended(end));
    }
    context.printer.answer(ended, || ended.id.to_string())
}

async fn list(context: &Context, client: &Client, vm: &VmRef) -> Result {
    let list = client.transactions(vm).await?;
    if list.transactions.is_empty() && !context.printer.is_json() {
        context.printer.note("no open transaction");
        return Ok(());
    }
    context.printer.answer(&list, || branches::transactions(&list.transactions, Timestamp::now()))
}
