//! Snapshots as streams of bytes: out of this state directory, and into it.
//!
//! ```text
//! export: blocking thread --(write)--> channel --> body of the response       an error breaks the body
//! import: body of the request --> channel --(read)--> blocking thread         a caller that stalls is given up
//! ```

use super::{
    error::{ApiError, BranchErrors},
    extract::{Query, SnapshotPath},
    request::Call,
    view,
};
use crate::tasks::TaskKind;
use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::{Buf, Bytes};
use futures::{StreamExt, stream};
use offshoot_api::v1::{EXPORT_HASH_HEADER, ImportQuery, Imported, InvalidField};
use offshoot_engine::ImportOptions;
use offshoot_types::{Command, ErrorCode, Failure};
use std::{
    io::{self, BufWriter, Read, Write},
    time::Duration,
};
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};

/// How long a body may stand still: a file half written waits for it.
const STALLED: Duration = Duration::from_secs(60);
/// How long a refused body is still read.
const DRAIN: Duration = Duration::from_secs(10);
/// Pieces on their way.
const AHEAD: usize = 4;
const PIECE: usize = 256 << 10;

/// A snapshot with all it needs, as one file. The header `x-offshoot-hash` holds the hash of all of it.
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}/export", tag = "snapshots", operation_id = "export_snapshot",
    params(("snapshot" = String, Path, description = "`VM@NAME` or id")),
    responses((status = 200, description = "The file; a body that breaks off is none", content_type = "application/octet-stream",
        headers(("x-offshoot-hash" = String, description = "64 hex digits"))), BranchErrors))]
pub async fn export(call: Call, SnapshotPath(snapshot): SnapshotPath) -> Result<Response, ApiError> {
    let permit = call.permit(Command::ExportSnapshot { snapshot }).await?;
    let export = call.until_cut(call.engine.export_snapshot(permit)).await?;
    let hash = HeaderValue::from_str(&export.hash().to_string()).map_err(|error| {
        Failure::new(ErrorCode::Internal, "a hash does not fit a header").caused_by(&error)
    })?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    call.app.tasks.spawn(TaskKind::Export, async move {
        let failed = sender.clone();
        let written = spawn_blocking(move || export.write(BufWriter::with_capacity(PIECE, Outgoing(sender))));
        let failure = match written.await {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure,
            Err(error) => Failure::new(ErrorCode::Internal, "the export ended early").caused_by(&error),
        };
        tracing::warn!(code = %failure.code, message = failure.message, cause = failure.cause, "export broke off");
        // Whoever does not read any more needs no end.
        let _ = failed.send(Err(failure)).await;
    });
    let pieces = stream::unfold(receiver, |mut receiver: mpsc::Receiver<Result<Bytes, Failure>>| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let mut response = Body::from_stream(pieces).into_response();
    response.headers_mut().insert(EXPORT_HASH_HEADER, hash);
    let octets = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, octets);
    Ok(response)
}

/// Make a VM of an exported snapshot: all of it is checked before the VM is there.
#[utoipa::path(put, path = "/v1/snapshots/import", tag = "snapshots", operation_id = "import_snapshot",
    params(ImportQuery), request_body(content_type = "application/octet-stream", description = "The file"),
    responses((status = 200, body = Imported), BranchErrors))]
pub async fn import(
    call: Call,
    Query(query): Query<ImportQuery>,
    body: Body,
) -> Result<axum::Json<Imported>, ApiError> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    // Also when it is refused at once: see `pump`.
    call.app.tasks.spawn(TaskKind::Import, pump(body.into_data_stream(), sender));
    let ImportQuery { name, expect, disk_only } = query;
    let name = name.map(|name| name.parse().map_err(|error| InvalidField::new("name", error))).transpose()?;
    let expect = expect.map(|hash| hash.parse().map_err(|error| InvalidField::new("expect", error)));
    let options = ImportOptions { expect: expect.transpose()?, disk_only };
    let permit = call.permit(Command::ImportSnapshot { name }).await?;
    let incoming = Incoming { receiver, piece: Bytes::new() };
    let imported = call.until_cut(call.engine.import_snapshot(permit, options, incoming)).await?;
    Ok(axum::Json(Imported {
        vm: imported.vm,
        name: imported.name,
        snapshot: view::snapshot(imported.snapshot),
        hash: imported.hash.to_string(),
    }))
}

/// Hands the body on. When nobody takes it any more it is read on for a while: a connection closed in the face of a
/// caller that still sends would cost it the answer.
async fn pump(mut body: BodyDataStream, sender: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let piece = match timeout(STALLED, body.next()).await {
            Ok(Some(Ok(piece))) => Ok(piece),
            Ok(Some(Err(error))) => Err(io::Error::other(error)),
            Ok(None) => return,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("it stood still for {STALLED:?}"))),
        };
        let broken = piece.is_err();
        if sender.send(piece).await.is_err() {
            break;
        }
        if broken {
            return;
        }
    }
    let drained = async { while let Some(Ok(_)) = body.next().await {} };
    let _drained_or_not = timeout(DRAIN, drained).await;
}

struct Outgoing(mpsc::Sender<Result<Bytes, Failure>>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Incoming {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
