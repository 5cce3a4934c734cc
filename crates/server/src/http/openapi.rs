//! The OpenAPI document: what only the document says, and the document as text.

use offshoot_api::v1;
use utoipa::{
    OpenApi,
    openapi::{Info, License, OpenApi as Document},
};

/// Types that are spoken on WebSockets, which no route names as a body, and the error every route may answer.
#[derive(OpenApi)]
#[openapi(components(schemas(
    v1::ErrorBody,
    v1::ExecRequest,
    v1::RunRequest,
    v1::ClientMessage,
    v1::ServerMessage,
    v1::TryRequest,
    v1::TryInput,
    v1::TryMessage,
    v1::RaceRequest,
    v1::RaceMessage,
    v1::CodeRequest,
    v1::CodeInput,
    v1::CodeMessage,
)))]
struct Spoken;

/// The document without its routes.
pub fn frame() -> Document {
    let mut document = Spoken::openapi();
    let mut info = Info::new("Offshoot", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Micro-VMs for agents: create, run, read, write, snapshot, fork, roll back, destroy. Served on a Unix \
         socket to the user who owns it, and over TCP, if it was told to listen, to whoever has an API key, sent as \
         `Authorization: Bearer KEY` or `X-API-Key: KEY`. Every error is an `ErrorBody`; every response carries its \
         `x-request-id`. A request made from within an open transaction carries the transaction's id in the \
         header `offshoot-transaction`."
            .into(),
    );
    info.license = Some(License::new("Apache-2.0"));
    document.info = info;
    document
}

pub fn document() -> Document {
    let (_, document) = super::routes().merge(super::open_routes()).split_for_parts();
    document
}

/// The document as it is served and checked in: pretty-printed, with a final newline.
pub fn openapi_json() -> String {
    let mut text = serde_json::to_string_pretty(&document()).expect("the document is plain data");
    text.push('\n');
    text
}
