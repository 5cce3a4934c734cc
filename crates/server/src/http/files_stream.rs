//! The contents of files: streamed, any size, one chunk in memory.

use super::{
    error::{ApiError, GuestErrors},
    extract::{Query, Vm},
    files::wire_stat,
    request::Call,
};
use crate::tasks::TaskKind;
use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use offshoot_api::v1::{self, FILE_STAT_HEADER, ReadQuery, WriteQuery, absolute_path};
use offshoot_engine::{GuestAccess, guest_failure};
use offshoot_guest_proto::client::{FileReader, FileWriter};
use offshoot_types::{Command, ErrorCode, Failure, FileAccess, VmName, VmRef};
use std::time::Duration;
use tokio::time::timeout;

/// How long an upload may stand still: it holds a temporary file in the guest.
const STALLED: Duration = Duration::from_secs(60);
/// How long a refused upload is still read.
const DRAIN: Duration = Duration::from_secs(10);

/// Read a file, or a range of it. The file's metadata are in the header `x-offshoot-file-stat`.
#[utoipa::path(get, path = "/v1/vms/{vm}/files", tag = "files", operation_id = "read_file",
    params(("vm" = String, Path, description = "Name or id"), ReadQuery),
    responses((status = 200, description = "The bytes", content_type = "application/octet-stream",
        headers(("x-offshoot-file-stat" = String, description = "`FileStat` as JSON"))), GuestErrors))]
pub async fn read(call: Call, Vm(vm): Vm, Query(query): Query<ReadQuery>) -> Result<Response, ApiError> {
    absolute_path("path", &query.path)?;
    let user = query.user()?;
    let command = Command::Files { vm, access: FileAccess::Read, path: query.path.clone() };
    let name = call.named(&command);
    let guest = call.engine.guest(call.permit(command).await?).await?;
    let opened = guest.client().files(user).read(query.path, query.offset, query.length).await;
    let reader = match opened.map_err(|error| guest_failure(&name, &error)) {
        Ok(reader) => reader,
        Err(failure) => {
            guest.complete(Err(failure.clone())).await;
            return Err(failure.into());
        }
    };
    let stat = serde_json::to_string(&wire_stat(reader.stat().clone())).expect("metadata are plain data");
    // Bytes above 0x7f are allowed in a header's value, control characters are escaped by JSON.
    let stat = HeaderValue::from_bytes(stat.as_bytes()).map_err(|error| {
        Failure::new(ErrorCode::Internal, "metadata do not fit a header").caused_by(&error)
    })?;
    let mut response = Body::from_stream(contents(name, guest, reader)).into_response();
    response.headers_mut().insert(FILE_STAT_HEADER, stat);
    let octets = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, octets);
    Ok(response)
}

/// The file as it comes; a guest that gives up half-way breaks the body, so that nobody takes it for the whole.
fn contents(
    name: VmName,
    guest: GuestAccess,
    reader: FileReader,
) -> impl futures::Stream<Item = Result<Bytes, Failure>> + Send {
    stream::unfold(Some((name, guest, reader)), |open| async {
        let (name, guest, mut reader) = open?;
        match reader.next().await.map_err(|error| guest_failure(&name, &error)) {
            Ok(Some(bytes)) => Some((Ok(bytes), Some((name, guest, reader)))),
            Ok(None) => {
                guest.complete(Ok(())).await;
                None
            }
            Err(failure) => {
                guest.complete(Err(failure.clone())).await;
                Some((Err(failure), None))
            }
        }
    })
}

/// Write a file: the body, renamed into place once it has arrived in full.
#[utoipa::path(put, path = "/v1/vms/{vm}/files", tag = "files", operation_id = "write_file",
    params(("vm" = String, Path, description = "Name or id"), WriteQuery),
    request_body(content_type = "application/octet-stream", description = "The bytes"),
    responses((status = 200, body = v1::FileStat), GuestErrors))]
pub async fn write(
    call: Call,
    Vm(vm): Vm,
    Query(query): Query<WriteQuery>,
    body: Body,
) -> Result<axum::Json<v1::FileStat>, ApiError> {
    let mut body = body.into_data_stream();
    let written = store(&call, vm, query, &mut body).await;
    if written.is_err() {
        drain(&call, body);
    }
    Ok(axum::Json(written?))
}

async fn store(
    call: &Call,
    vm: VmRef,
    query: WriteQuery,
    body: &mut BodyDataStream,
) -> Result<v1::FileStat, Failure> {
    query.check()?;
    let user = query.user()?;
    let WriteQuery { path, mode, make_parents, exclusive, .. } = query;
    let command = Command::Files { vm, access: FileAccess::Write, path: path.clone() };
    let name = call.named(&command);
    let guest = call.engine.guest(call.permit(command).await?).await?;
    let written = async {
        let files = guest.client().files(user);
        let opened = files.write(path, mode, make_parents, exclusive).await;
        let writer = opened.map_err(|error| guest_failure(&name, &error))?;
        fill(&name, writer, body).await
    };
    let written = written.await;
    guest.complete(written.as_ref().map(drop).map_err(Clone::clone)).await;
    written
}

/// Reads on behind the answer: a connection closed in the face of a caller that still sends would cost it the
/// answer. Bounded, for callers that do not stop when they are told no.
pub fn drain(call: &Call, mut body: BodyDataStream) {
    let drained = async move { while let Some(Ok(_)) = body.next().await {} };
    call.app.tasks.spawn(TaskKind::Drain, async {
        let _drained_or_not = timeout(DRAIN, drained).await;
    });
}

/// Dropping the writer before its end leaves the old file.
async fn fill(
    name: &VmName,
    mut writer: FileWriter,
    body: &mut BodyDataStream,
) -> Result<v1::FileStat, Failure> {
    let failed = |error| guest_failure(name, &error);
    loop {
        match timeout(STALLED, body.next()).await {
            Ok(Some(Ok(bytes))) => writer.send(&bytes).await.map_err(failed)?,
            Ok(None) => return writer.finish().await.map(wire_stat).map_err(failed),
            Ok(Some(Err(error))) => {
                return Err(Failure::new(ErrorCode::Interrupted, "the upload broke off").caused_by(&error));
            }
            Err(_) => {
                let message = format!("the upload stood still for {STALLED:?}");
                return Err(Failure::new(ErrorCode::Timeout, message));
            }
        }
    }
}
