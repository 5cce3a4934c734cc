use crate::{change, context::Context, duration::Span, exit_code::Status, failure::Result, view::Table};
use clap::Subcommand;
use offshoot_api::v1::{CreateKey, Key};
use offshoot_types::KeyId;
use serde::Serialize;

const EXAMPLES: &str = "Examples:
  offshoot key create ci --scope vms:read --scope vms:write --scope exec --max-vms 4
  offshoot key create --vm-prefix ci- --ttl 8h --rate 50 --json
  offshoot key list
  offshoot key rm 01a1fe7c-2c8e-7496-a268-c6ab187a9c91

A key is for whoever reaches the daemon over TCP (`offshoot serve --listen`). It is shown once: only its hash is kept.";

/// Make, list and remove API keys
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key, and print it
    Create(Create),
    /// List keys, without what they are
    #[command(visible_alias = "ls")]
    List,
    /// Remove a key, and those that were made with it
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(value_name = "ID")]
        key: KeyId,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// What to call it [default: `key-` and digits]
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// What it is good for: vms:read, vms:write, exec, files, snapshots, images, keys, daemon, or `*`; may be repeated
    /// [default: all]
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',')]
    scopes: Vec<String>,
    /// Good for VMs whose names begin so, and no others
    #[arg(long, value_name = "PREFIX")]
    vm_prefix: Option<String>,
    /// Makes VMs on this provider only
    #[arg(long, value_name = "PROVIDER")]
    provider: Option<String>,
    /// VMs that exist at once of those made with it
    #[arg(long, value_name = "N")]
    max_vms: Option<u32>,
    /// Ends after this long, such as `8h`
    #[arg(long, value_name = "DURATION")]
    ttl: Option<Span>,
    /// Requests a second, in bursts of as many
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
}

/// `key create --json`.
#[derive(Debug, Serialize)]
struct Created {
    id: KeyId,
    key: String,
}

/// `key rm --json`.
#[derive(Debug, Serialize)]
struct Removed {
    removed: Vec<KeyId>,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    match args.action {
        Action::Create(create) => {
            let request = CreateKey {
                name: create.name,
                scopes: (!create.scopes.is_empty()).then_some(create.scopes),
                vm_prefix: create.vm_prefix,
                provider: create.provider,
                max_vms: create.max_vms,
                rate: create.rate,
                ttl_ms: create.ttl.map(|ttl| u64::try_from(ttl.0.as_millis()).unwrap_or(u64::MAX)),
            };
            let made = change::answered(context, "a new key", client.create_key(&request)).await?;
            let created = Created { id: made.details.id, key: made.key };
            context.printer.answer(&created, || created.key.clone())?;
            context
                .printer
                .note(&format!("key {} `{}`: it is not shown again", created.id, made.details.name));
        }
        Action::List => {
            let list = context.abandonable("the list", async { Ok(client.keys().await?) }).await?;
            if list.keys.is_empty() && !context.printer.is_json() {
                context.printer.note("no keys; `offshoot key create` makes one");
                return Ok(Status::DONE);
            }
            context.printer.answer(&list, || table(&list.keys))?;
        }
        Action::Rm { key } => {
            let what = format!("removal of key {key}");
            let removed = change::answered(context, &what, client.remove_key(key)).await?.removed;
            let lines: Vec<String> = removed.iter().map(ToString::to_string).collect();
            context.printer.answer(&Removed { removed }, || lines.join("\n"))?;
        }
    }
    Ok(Status::DONE)
}

fn table(keys: &[Key]) -> String {
    let mut table = Table::new(&["ID", "NAME", "SCOPES", "VMS", "PROVIDER", "RATE", "EXPIRES"]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for key in keys {
        let prefix = key.vm_prefix.as_ref().map(|prefix| format!("{prefix}*"));
        let most = key.max_vms.map(|most| format!("at most {most}"));
        let vms: Vec<String> = prefix.into_iter().chain(most).collect();
        table.row([
            key.id.to_string(),
            key.name.clone(),
            key.scopes.join(","),
            or_dash((!vms.is_empty()).then(|| vms.join(", "))),
            or_dash(key.provider.clone()),
            or_dash(key.rate.map(|rate| format!("{rate}/s"))),
            or_dash(key.expires.map(|at| at.strftime("%Y-%m-%d %H:%M UTC").to_string())),
        ]);
    }
    table.render()
}
