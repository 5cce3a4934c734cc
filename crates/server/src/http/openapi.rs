//! The OpenAPI document: what only the document says, and the document as text.

use super::{error, once};
use axum::http::Method;
use offshoot_api::v1::{self, MAX_IDEMPOTENCY_KEY, REPLAYED_HEADER, REQUEST_ID_HEADER};
use offshoot_types::ErrorCode;
use std::collections::BTreeSet;
use utoipa::{
    OpenApi,
    openapi::{
        Content, HeaderBuilder, Info, License, ObjectBuilder, OpenApi as Document, RefOr, Required, Schema,
        SchemaFormat, Type,
        path::{Operation, ParameterBuilder, ParameterIn, PathItem},
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
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
         header `offshoot-transaction`. A request may say in the header `offshoot-agent` on whose behalf it is \
         made, for the history."
            .into(),
    );
    info.license = Some(License::new("Apache-2.0"));
    document.info = info;
    document
}

pub fn document() -> Document {
    let (_, mut document) = super::routes().merge(super::open_routes()).split_for_parts();
    name_keys(&mut document);
    let optional = all_optional(&document);
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations_of(item) {
            let heeds = once::heeds(&method, path);
            if heeds {
                takes_key(operation);
            }
            if let Some(RefOr::T(body)) = &mut operation.request_body
                && body
                    .content
                    .values()
                    .any(|content| names(content).is_some_and(|name| optional.contains(name)))
            {
                // An empty body is `{}`.
                body.required = Some(Required::False);
            }
            complete(operation, heeds);
        }
    }
    document
}

/// Schemas that nothing satisfies as well as something.
fn all_optional(document: &Document) -> BTreeSet<String> {
    let schemas = document.components.iter().flat_map(|components| &components.schemas);
    let optional = schemas.filter(
        |(_, schema)| matches!(schema, RefOr::T(Schema::Object(object)) if object.required.is_empty()),
    );
    optional.map(|(name, _)| name.clone()).collect()
}

/// The schema of the document that a body refers to.
fn names(content: &RefOr<Content>) -> Option<&str> {
    let RefOr::T(Content { schema: Some(RefOr::Ref(reference)), .. }) = content else { return None };
    reference.ref_location.strip_prefix("#/components/schemas/")
}

/// Either header says who asks. Routes for whom nobody has to be known say so themselves.
fn name_keys(document: &mut Document) {
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let header = ApiKeyValue::new("X-API-Key");
    let components = document.components.get_or_insert_default();
    for (name, scheme) in
        [("bearer", SecurityScheme::Http(bearer)), ("key", SecurityScheme::ApiKey(ApiKey::Header(header)))]
    {
        components.security_schemes.insert(name.into(), scheme.into());
        let required = SecurityRequirement::new(name, [] as [&str; 0]);
        document.security.get_or_insert_default().push(required);
    }
}

fn operations_of(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    let all = [
        (Method::GET, get),
        (Method::PUT, put),
        (Method::POST, post),
        (Method::DELETE, delete),
        (Method::PATCH, patch),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// The header by which an operation is carried out once, and what that may answer.
fn takes_key(operation: &mut Operation) {
    let key = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(MAX_IDEMPOTENCY_KEY))
        .pattern(Some("^[!-~]+$"));
    let parameter = ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Carries this request out once, however often it is sent with the same key within 24 hours",
        ))
        .schema(Some(Schema::Object(key.build())));
    operation.parameters.get_or_insert_default().push(RefOr::T(parameter.build()));
    use ErrorCode::{AlreadyDone, Busy, KeyReused, NoResource, OutcomeUnknown, Unavailable};
    add_errors(operation, &[AlreadyDone, Busy, KeyReused, NoResource, OutcomeUnknown, Unavailable]);
}

/// Adds what holds for every operation of its kind, so that no handler has to say it.
fn complete(operation: &mut Operation, replays: bool) {
    if operation.request_body.is_some() {
        add_errors(operation, &[ErrorCode::TooLarge, ErrorCode::UnsupportedMediaType]);
    }
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        let mut add = |name: &str, description: &str, schema: ObjectBuilder| {
            let schema = Schema::Object(schema.build());
            let header = HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build();
            response.headers.insert(name.into(), header.into());
        };
        if status != "101" {
            let uuid = SchemaFormat::Custom("uuid".into());
            let schema = ObjectBuilder::new().schema_type(Type::String).format(Some(uuid));
            add(REQUEST_ID_HEADER, "Names this request in the daemon's log", schema);
        }
        if replays && status.starts_with('2') {
            let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["true"]));
            add(
                REPLAYED_HEADER,
                "There where a request with the same idempotency key was answered so before",
                schema,
            );
        }
        if status == "429" {
            let schema = ObjectBuilder::new().schema_type(Type::Integer);
            add("retry-after", "Seconds to wait before it is repeated", schema);
        }
    }
}

/// Adds codes to those an operation documents already.
fn add_errors(operation: &mut Operation, more: &[ErrorCode]) {
    let responses = &mut operation.responses.responses;
    let said = |code: &ErrorCode| match responses.get(&code.http_status().to_string()) {
        Some(RefOr::T(response)) => error::documented(response).any(|said| said == code.as_str()),
        _ => false,
    };
    let all = ErrorCode::ALL.iter().filter(|code| more.contains(code) || said(code));
    let all: Vec<ErrorCode> = all.copied().collect();
    responses.extend(error::document(&all));
}

/// The document as it is served and checked in: pretty-printed, with a final newline.
pub fn openapi_json() -> String {
    let mut text = serde_json::to_string_pretty(&document()).expect("the document is plain data");
    text.push('\n');
    text
}
