use crate::{
    context::Context,
    exit_code::Status,
    failure::{Result, usage},
    forward::{self, Door, Mapping, Reach},
};
use offshoot_api::v1::{CreatePreview, Preview};
use offshoot_types::{VmName, VmRef};
use serde::Serialize;
use std::net::SocketAddr;

const EXAMPLES: &str = "Examples:
  offshoot port web 8000
  offshoot port web 8000:8080 5432:0
  offshoot port web 8000:127.0.0.2:80
  offshoot port web 8000 --preview --path /admin

A mapping is PORT, PORT:HOST_PORT or PORT:ADDRESS:HOST_PORT; host port 0 is any that is free. Up to 200 \
connections are open at once, further ones wait. It ends with Ctrl-C, and by itself when the VM is stopped, \
destroyed or rolled back: a connection belongs to the state it was made to, and a fork has none of them. A VM \
that is suspended goes on with the first connection, if requests continue it (`offshoot life --wake`). Whoever \
can connect to the port of this host reaches the program, and nobody is asked for a password.

With --preview it prints a link for a browser instead, by way of the daemon's own port (`offshoot serve --listen`): good \
for five minutes and this program alone, it sets a cookie that lasts for twelve hours.

With --json the answer is one line; why it ended, if it did by itself, is a document of its own.";

/// Reach programs in a VM by ports of this host
///
/// Listens on this host until Ctrl-C, and takes each connection to the program that listens in the VM.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
    /// Port in the VM, and where to listen here if not at the same port of 127.0.0.1
    #[arg(value_name = "PORT[:[ADDRESS:]HOST_PORT]", required = true)]
    ports: Vec<Mapping>,
    /// Let ADDRESS be one that other hosts can reach
    #[arg(long)]
    allow_remote: bool,
    /// Print a link to it for a browser, and listen nowhere
    #[arg(long, conflicts_with = "allow_remote")]
    preview: bool,
    /// What to look at first [default: /]
    #[arg(long, value_name = "PATH", requires = "preview")]
    path: Option<String>,
    /// Where browsers find the daemon, such as https://preview.example.com, if not by its port of this host
    #[arg(long, value_name = "URL", requires = "preview")]
    origin: Option<String>,
}

/// `port --json`: where it listens.
#[derive(Debug, Serialize)]
struct Listening<'a> {
    vm: &'a VmName,
    ports: Vec<ListeningPort>,
}

#[derive(Debug, Serialize)]
struct ListeningPort {
    /// In the VM.
    port: u16,
    /// On this host.
    address: SocketAddr,
}

/// `port --preview --json`.
#[derive(Debug, Serialize)]
struct Previews {
    previews: Vec<Preview>,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    if args.preview {
        return preview(context, args).await;
    }
    let reach = if args.allow_remote { Reach::Anywhere } else { Reach::ThisHost };
    args.ports.iter().try_for_each(|mapping| mapping.allowed(reach))?;
    let client = context.client().await?;
    let watch = forward::Watch::begin(&client, &args.vm).await?;
    let mut doors = Vec::new();
    for mapping in &args.ports {
        doors.push(Door::open(*mapping, watch.name()).await?);
    }
    let ports = doors.iter().map(|door| ListeningPort { port: door.port(), address: door.address() });
    let listening = Listening { vm: watch.name(), ports: ports.collect() };
    match context.printer.is_json() {
        true => context.printer.document_line(&listening)?,
        false => listening.ports.iter().try_for_each(|one| {
            context.printer.data(&format!("{} -> {}:{}", one.address, watch.name(), one.port))
        })?,
    }
    let ended = forward::serve(&client, &context.printer, &doors, &watch).await?;
    Err(ended.into())
}

async fn preview(context: &Context, args: Args) -> Result<Status> {
    if let Some(mapping) = args.ports.iter().find(|mapping| !mapping.host_is_implied()) {
        return Err(usage(format!("a preview of port {} is found at the daemon's own port", mapping.port))
            .hint("leave out what follows the colon")
            .into());
    }
    let client = context.client().await?;
    let mut previews = Vec::new();
    for Mapping { port, .. } in args.ports {
        let request =
            CreatePreview { port: port.into(), path: args.path.clone(), origin: args.origin.clone() };
        previews.push(client.preview(&args.vm, &request).await?);
    }
    let made = Previews { previews };
    context
        .printer
        .answer(&made, || made.previews.iter().map(|preview| format!("{}\n", preview.url)).collect())?;
    Ok(Status::DONE)
}
