//! The verbs, one file each: options, help, and what is done.

pub mod completion;
pub mod context;
pub mod cp;
pub mod create;
pub mod daemon;
pub mod destroy;
pub mod diff;
pub mod doctor;
pub mod exec;
pub mod fork;
pub mod history;
pub mod image;
pub mod keeper;
pub mod key;
pub mod life;
pub mod list;
pub mod logs;
pub mod mcp;
pub mod pause;
pub mod port;
pub mod race;
pub mod repl;
pub mod restart;
pub mod resume;
pub mod rollback;
pub mod run;
pub mod serve;
pub mod shell;
pub mod snapshot;
pub mod start;
pub mod status;
pub mod stop;
pub mod suspend;
pub mod r#try;
pub mod tx;
pub mod undo;
pub mod wait;

use crate::{cli::Verb, context::Context, exit_code::Status, failure::Result};

/// Does what was asked. `serve` and `keeper` never come here: they are processes of another kind.
pub async fn perform(context: &Context, verb: Verb) -> Result<Status> {
    match verb {
        Verb::Run(args) => run::run(context, args).await,
        Verb::Exec(args) => exec::run(context, args).await,
        Verb::Repl(args) => repl::run(context, args).await,
        Verb::Shell(args) => shell::run(context, args).await,
        Verb::Create(args) => create::run(context, args).await,
        Verb::Start(args) => start::run(context, args).await,
        Verb::Stop(args) => stop::run(context, args).await,
        Verb::Restart(args) => restart::run(context, args).await,
        Verb::Pause(args) => pause::run(context, args).await,
        Verb::Resume(args) => resume::run(context, args).await,
        Verb::Life(args) => life::run(context, args).await,
        Verb::Suspend(args) => suspend::run(context, args).await,
        Verb::Destroy(args) => destroy::run(context, args).await,
        Verb::Snapshot(args) => snapshot::run(context, args).await,
        Verb::Fork(args) => fork::run(context, args).await,
        Verb::Diff(args) => context.abandonable("the comparison", diff::run(context, args)).await,
        Verb::Rollback(args) => rollback::run(context, args).await,
        Verb::Undo(args) => undo::run(context, args).await,
        Verb::Try(args) => r#try::run(context, args).await,
        Verb::Tx(args) => tx::run(context, args).await,
        Verb::Race(args) => race::run(context, args).await,
        Verb::Context(args) => context::run(context, args).await,
        Verb::Image(args) => image::run(context, args).await,
        Verb::Key(args) => key::run(context, args).await,
        Verb::Mcp(args) => mcp::run(context, args).await,
        Verb::List(args) => context.abandonable("the list", list::run(context, args)).await,
        Verb::Status(args) => context.abandonable("the status", status::run(context, args)).await,
        Verb::Cp(args) => context.abandonable("the copy", cp::run(context, args)).await,
        Verb::Port(args) => context.abandonable("the forwarding", port::run(context, args)).await,
        Verb::History(args) => history::run(context, args).await,
        Verb::Logs(args) => context.abandonable("the log", logs::run(context, args)).await,
        Verb::Wait(args) => wait::run(context, args).await,
        Verb::Daemon(args) => context.abandonable("the daemon's answer", daemon::run(context, args)).await,
        Verb::Doctor(args) => context.abandonable("the checks", doctor::run(context, args)).await,
        Verb::Completion(args) => completion::run(context, &args),
        Verb::Serve(_) | Verb::Keeper(_) => unreachable!("dispatched before there is a runtime"),
    }
}
