//! How every failure leaves: one type for handlers, one place that writes the body.
//!
//! ```text
//! handler: Err(ApiError) --IntoResponse--> status + the failure, not yet words
//!                        --request::surround--> ErrorBody with the request id, as JSON; of another wire, as that has it
//! ```

use crate::{e2b, terraphim};
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use offshoot_api::v1::ErrorBody;
use offshoot_types::{ErrorCode, Failure, RequestId};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::{
    ToSchema,
    openapi::{ContentBuilder, Ref, RefOr, Response as ResponseDoc, ResponseBuilder, extensions::Extensions},
};

/// What a handler fails with. Anything that knows how to be a [`Failure`] becomes one by `?`.
#[derive(Debug)]
pub struct ApiError(Failure);

impl<F: Into<Failure>> From<F> for ApiError {
    fn from(failure: F) -> Self {
        Self(failure.into())
    }
}

impl ApiError {
    /// Why a response is one of failure, before it has its words.
    pub fn failure_of(response: &Response) -> Option<&Failure> {
        response.extensions().get().map(|Unwritten(failure)| failure)
    }
    pub fn into_failure(self) -> Failure {
        self.0
    }
}

/// A failure on its way through the layers; [`write_body`] turns it into bytes.
#[derive(Debug, Clone)]
struct Unwritten(Failure);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = status_of(self.0.code).into_response();
        if let Some(seconds) = retry_after(self.0.code) {
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response.extensions_mut().insert(Unwritten(self.0));
        response
    }
}

/// When to ask again, in seconds: a key's rate is one of seconds, and so is the pace at which what is under way ends.
fn retry_after(code: ErrorCode) -> Option<HeaderValue> {
    matches!(code, ErrorCode::RateLimited | ErrorCode::NoResource).then(|| HeaderValue::from_static("1"))
}

/// Every code has a status between 400 and 599, as a test of `offshoot-types` checks.
fn status_of(code: ErrorCode) -> StatusCode {
    StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// How failures are written: by whose wire was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Native,
    E2bControl,
    Terraphim,
}

impl Shape {
    pub fn of(path: &str) -> Self {
        match path {
            path if e2b::is_of_control(path) => Self::E2bControl,
            path if terraphim::is_of_wire(path) => Self::Terraphim,
            _ => Self::Native,
        }
    }
}

/// The body that our own clients read, with what clients of Terraphim read beside it.
#[derive(Debug, Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    body: ErrorBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Gives a failed response its body, and says what failed.
pub fn write_body(response: &mut Response, request: RequestId, shape: Shape) -> Option<Failure> {
    let Unwritten(failure) = response.extensions_mut().remove()?;
    if shape == Shape::E2bControl {
        *response = e2b::refusal(failure.clone());
        return Some(failure);
    }
    let error = (shape == Shape::Terraphim).then_some(failure.message.as_str());
    let body = Told { body: ErrorBody::new(failure.clone(), request), error };
    let json = serde_json::to_vec(&body).expect("an error body holds only strings and a bool");
    *response.body_mut() = json.into();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    Some(failure)
}

/// Where the document lists the codes of a status.
const CODES: &str = "x-error-codes";

/// Responses of the codes given, grouped by status, for the OpenAPI document.
pub fn document(codes: &[ErrorCode]) -> BTreeMap<String, RefOr<ResponseDoc>> {
    let mut by_status: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.http_status()).or_default().push(code.as_str());
    }
    let response = |codes: Vec<&str>| {
        let schema = Ref::from_schema_name(ErrorBody::name());
        let quoted: Vec<String> = codes.iter().map(|code| format!("`{code}`")).collect();
        ResponseBuilder::new()
            .description(quoted.join(", "))
            .content("application/json", ContentBuilder::new().schema(Some(schema)).build())
            .extensions(Some(Extensions::builder().add(CODES, codes).build()))
            .build()
    };
    by_status.into_iter().map(|(status, codes)| (status.to_string(), RefOr::T(response(codes)))).collect()
}

/// The codes that a documented response names.
pub fn documented(response: &ResponseDoc) -> impl Iterator<Item = &str> {
    let codes = response.extensions.as_ref().and_then(|extensions| extensions.get(CODES));
    codes.and_then(serde_json::Value::as_array).into_iter().flatten().filter_map(serde_json::Value::as_str)
}

/// Names a set of error codes for use in `#[utoipa::path(responses(..))]`. What any request can meet comes with
/// every set: it may be malformed, or refused, or find a defect of ours.
macro_rules! error_sets {
    ($($(#[$doc:meta])* $name:ident: [$($code:ident),*];)*) => {$(
        $(#[$doc])*
        pub struct $name;
        impl utoipa::IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<ResponseDoc>> {
                use ErrorCode::*;
                document(&[InvalidArgument, Unauthenticated, RateLimited, Denied, Internal, $($code),*])
            }
        }
    )*};
}

error_sets! {
    /// Reads that name nothing which may be missing.
    ReadErrors: [];
    /// Reads of one VM, operation, image or exec.
    LookupErrors: [NotFound];
    /// Defining a VM.
    CreateErrors: [ExecFailed, NotFound, AlreadyExists, NoResource, Unavailable, Image, Backend, Guest, Timeout, Unsupported, Interrupted];
    /// Moving a VM.
    ChangeErrors: [NotFound, WrongState, StaleGeneration, Busy, InTransaction, InUse, Snapshot, Thaw, NoResource, Unavailable, Image, Backend, Guest, Timeout, Unsupported, Interrupted];
    /// Changing how a VM behaves.
    SettingErrors: [NotFound, StaleGeneration, InTransaction, NoResource, Unavailable, Interrupted];
    /// Keeping states, and going on from them.
    BranchErrors: [ExecFailed, NotFound, AlreadyExists, WrongState, StaleGeneration, Busy, InTransaction, InUse, Snapshot, Thaw, NoResource, Unavailable, Image, Backend, Guest, Timeout, Unsupported, Interrupted];
    /// Anything the guest answers.
    GuestErrors: [ExecFailed, NotFound, AlreadyExists, WrongState, StaleGeneration, Busy, InTransaction, NoResource, Unavailable, Guest, Timeout, Unsupported, Interrupted];
    /// Waiting for a state.
    WaitErrors: [NotFound, WrongState];
    /// Images.
    ImageErrors: [NotFound, WrongState, Image, Unavailable, NoResource, Interrupted];
    /// Making and removing keys.
    KeyErrors: [NotFound, AlreadyExists, Unavailable, NoResource, Interrupted];
    /// Ending the daemon.
    StopErrors: [Busy];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_share_a_status_share_a_response() {
        let documented = document(&[ErrorCode::WrongState, ErrorCode::Busy, ErrorCode::NotFound]);
        assert_eq!(documented.keys().collect::<Vec<_>>(), ["404", "409"]);
    }
}
