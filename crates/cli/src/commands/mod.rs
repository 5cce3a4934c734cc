//! The verbs, one file each: options, help, and what is done.

pub mod completion;
pub mod cp;
pub mod create;
pub mod daemon;
pub mod destroy;
pub mod doctor;
pub mod exec;
pub mod image;
pub mod keeper;
pub mod list;
pub mod logs;
pub mod pause;
pub mod restart;
pub mod resume;
pub mod run;
pub mod serve;
pub mod shell;
pub mod start;
pub mod status;
pub mod stop;
pub mod wait;

use crate::{cli::Verb, context::Context, exit_code::Status, failure::Result};

/// Does what was asked. `serve` and `keeper` never come here: they are processes of another kind.
pub async fn perform(context: &Context, verb: Verb) -> Result<Status> {
    match verb {
        Verb::Run(args) => run::run(context, args).await,
        Verb::Exec(args) => exec::run(context, args).await,
        Verb::Shell(args) => shell::run(context, args).await,
        Verb::Create(args) => create::run(context, args).await,
        Verb::Start(args) => start::run(context, args).await,
        Verb::Stop(args) => stop::run(context, args).await,
        Verb::Restart(args) => restart::run(context, args).await,
        Verb::Pause(args) => pause::run(context, args).await,
        Verb::Resume(args) => resume::run(context, args).await,
        Verb::Destroy(args) => destroy::run(context, args).await,
        Verb::Image(args) => image::run(context, args).await,
        Verb::List(args) => context.abandonable("the list", list::run(context, args)).await,
        Verb::Status(args) => context.abandonable("the status", status::run(context, args)).await,
        Verb::Cp(args) => context.abandonable("the copy", cp::run(context, args)).await,
        Verb::Logs(args) => context.abandonable("the log", logs::run(context, args)).await,
        Verb::Wait(args) => wait::run(context, args).await,
        Verb::Daemon(args) => context.abandonable("the daemon's answer", daemon::run(context, args)).await,
        Verb::Doctor(args) => context.abandonable("the checks", doctor::run(context, args)).await,
        Verb::Completion(args) => completion::run(context, &args),
        Verb::Serve(_) | Verb::Keeper(_) => unreachable!("dispatched before there is a runtime"),
    }
}
