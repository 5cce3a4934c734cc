use crate::{
    change::{self, Undo},
    context::Context,
    exit_code::Status,
    failure::Result,
    options::VmOptions,
};
use offshoot_api::v1::CreateVm;
use offshoot_types::VmName;

const EXAMPLES: &str = "Examples:
  offshoot create web
  offshoot create web --start --memory 512M --cpus 2
  offshoot create build --image full --label team=core
  offshoot create agent --start --snapshot-policy before-risky --auto-rollback
  offshoot create sandbox --start --idle-suspend 10m --lifetime 8h";

/// Define a VM; it is stopped unless --start
///
/// Prints its name. Interrupted, nothing of it is left.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the new VM: 1 to 63 of a-z, 0-9, `-` and `_`
    #[arg(value_name = "NAME")]
    name: VmName,
    /// Boot it too
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    vm: VmOptions,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    let settings = args.vm.settings();
    let request = CreateVm {
        name: args.name.to_string(),
        image: settings.image,
        provider: settings.provider,
        isolation: settings.isolation,
        memory_mib: settings.memory_mib,
        cpus: settings.cpus,
        disk_mib: settings.disk_mib,
        labels: settings.labels,
        env: Default::default(),
        snapshot_policy: settings.snapshot_policy,
        life: settings.life,
        start: args.start,
        wait: Some(false),
    };
    let what = format!("creation of `{}`", args.name);
    let changed =
        change::see_through(context, &client, &what, Undo::Destroy, client.create(&request)).await?;
    context.printer.answer(&changed, || args.name.to_string())?;
    Ok(Status::DONE)
}
