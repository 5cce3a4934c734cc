//! `snapshot export` and `snapshot import`: one file, or a pipe.

use crate::{
    change,
    context::Context,
    exit_code::Status,
    failure::{Result, file, usage},
    printer::Stream,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use offshoot_api::{Client, v1::ImportQuery};
use offshoot_types::{SnapshotRef, VmName};
use serde::Serialize;
use std::{
    io,
    path::{Path, PathBuf},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// Read at once.
const CHUNK: usize = 256 << 10;

const EXPORTS: &str = "Examples:
  offshoot snapshot export web@before web.snap
  offshoot snapshot export web@before - | ssh other offshoot snapshot import -

The file holds all memory and files of the VM, secrets included. It is compressed and not encrypted. Pass the hash that is
printed to `import --expect` by another way than the file.";

const IMPORTS: &str = "Examples:
  offshoot snapshot import web.snap
  offshoot snapshot import web.snap --name web2 --expect 5f0c...
  offshoot snapshot import web.snap --disk-only

The VM is made suspended: `offshoot start` continues it, `offshoot fork` copies it. A memory goes on only with the same
program, processor and clock as where it was saved; a disk anywhere that has the image.";

/// Write a snapshot with all it needs to a file, and print its hash
#[derive(Debug, clap::Args)]
#[command(after_help = EXPORTS)]
pub struct Export {
    #[arg(value_name = "SNAPSHOT")]
    snapshot: SnapshotRef,
    /// Must not exist; `-` is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Make a VM of an exported snapshot, and print its name
#[derive(Debug, clap::Args)]
#[command(after_help = IMPORTS)]
pub struct Import {
    /// `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Name of the VM [default: as it was called, or the next free name after that]
    #[arg(long, value_name = "NAME")]
    name: Option<VmName>,
    /// Refuse anything but what has this hash
    #[arg(long, value_name = "HASH")]
    expect: Option<String>,
    /// Leave the memory out: the VM boots from the disk
    #[arg(long)]
    disk_only: bool,
}

/// What `export --json` says.
#[derive(Debug, Serialize)]
struct Exported<'a> {
    file: &'a Path,
    bytes: u64,
    hash: &'a str,
}

fn is_pipe(path: &Path) -> bool {
    path == Path::new("-")
}

impl Export {
    pub async fn run(self, context: &Context, client: &Client) -> Result<Status> {
        if is_pipe(&self.file) {
            return self.pipe(context, client).await;
        }
        let path = &self.file;
        let failed = |error: io::Error| file("write", path, error);
        let mut export = client.export_snapshot(&self.snapshot).await?;
        let created = tokio::fs::File::options().write(true).create_new(true).mode(0o600).open(path).await;
        let mut to = created.map_err(|error| file("create", path, error))?;
        let progress = context.printer.progress(format!("writing `{}`", path.display()));
        let written = async {
            let mut bytes = 0;
            while let Some(chunk) = export.content.next().await {
                let chunk = chunk?;
                to.write_all(&chunk).await.map_err(failed)?;
                bytes += chunk.len() as u64;
            }
            to.sync_all().await.map_err(failed)?;
            Result::Ok(bytes)
        };
        let bytes = match progress.during(written).await {
            Ok(bytes) => bytes,
            Err(stop) => {
                // Half of it is nothing, and an import would say so.
                let _ = tokio::fs::remove_file(path).await;
                return Err(stop);
            }
        };
        let hash = export.hash.as_str();
        context.printer.answer(&Exported { file: path, bytes, hash }, || format!("{hash}\n"))?;
        Ok(Status::DONE)
    }

    async fn pipe(self, context: &Context, client: &Client) -> Result<Status> {
        if context.printer.is_json() {
            return Err(usage("standard output takes the snapshot, so `--json` has no place there")
                .hint("export to a file")
                .into());
        }
        let mut export = client.export_snapshot(&self.snapshot).await?;
        while let Some(chunk) = export.content.next().await {
            context.printer.stream(Stream::Stdout, &chunk?).await?;
        }
        context.printer.note(&format!("hash: {}", export.hash));
        Ok(Status::DONE)
    }
}

impl Import {
    pub async fn run(self, context: &Context, client: &Client) -> Result<Status> {
        let options =
            ImportQuery { name: self.name.map(String::from), expect: self.expect, disk_only: self.disk_only };
        let from: Box<dyn AsyncRead + Send + Unpin> = if is_pipe(&self.file) {
            Box::new(tokio::io::stdin())
        } else {
            let opened = tokio::fs::File::open(&self.file).await;
            Box::new(opened.map_err(|error| file("open", &self.file, error))?)
        };
        let what = format!("import of `{}`", self.file.display());
        let imported =
            change::answered(context, &what, client.import_snapshot(&options, content(from))).await?;
        context.printer.answer(&imported, || format!("{}\n", imported.name))?;
        if !context.printer.is_json() {
            context.printer.note(&format!("hash: {}", imported.hash));
            if options.expect.is_none() {
                context.printer.note("whoever handed the file over vouches for it: compare the hash");
            }
        }
        Ok(Status::DONE)
    }
}

fn content(
    from: Box<dyn AsyncRead + Send + Unpin>,
) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold(from, |mut from| async move {
        let mut buffer = Vec::with_capacity(CHUNK);
        let count = from.read_buf(&mut buffer).await?;
        Ok((count > 0).then(|| (Bytes::from(buffer), from)))
    })
}
