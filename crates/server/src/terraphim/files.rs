//! `upload` and `download`: one file of a VM, as bytes, by `?path=`. They belong to the user that code runs as.

use super::{Asker, settings::USER, vms::vm_ref};
use crate::http::{ApiError, Query};
use axum::{
    Json,
    body::Body,
    extract::Path,
    http::header,
    response::{IntoResponse, Response},
};
use futures::TryStreamExt;
use offshoot_api::{
    ClientError,
    v1::{ReadQuery, WriteQuery},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    path: String,
}

pub async fn upload(
    asker: Asker,
    Path(vm): Path<String>,
    Query(Which { path }): Query<Which>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let write = WriteQuery {
        path: path.clone(),
        make_parents: true,
        user: Some(USER.into()),
        ..WriteQuery::default()
    };
    let content = body.into_data_stream().map_err(io::Error::other);
    let stat =
        asker.client.write_file(&vm_ref(&vm)?, &write, content).await.map_err(ClientError::into_failure)?;
    Ok(Json(json!({ "path": path, "size": stat.size, "success": true })))
}

pub async fn download(
    asker: Asker,
    Path(vm): Path<String>,
    Query(Which { path }): Query<Which>,
) -> Result<Response, ApiError> {
    let read = ReadQuery { path, user: Some(USER.into()), ..ReadQuery::default() };
    let file = asker.client.read_file(&vm_ref(&vm)?, &read).await.map_err(ClientError::into_failure)?;
    let kind = (header::CONTENT_TYPE, "application/octet-stream");
    Ok(([kind], Body::from_stream(file.content)).into_response())
}
