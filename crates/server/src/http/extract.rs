//! Reading requests: whatever is wrong with one is said in the one error shape, with the field's name.

use super::{error::ApiError, key_ends::KeyEnds};
use axum::{
    body::Body,
    extract::{
        FromRequest, FromRequestParts, Path, Request,
        ws::{WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, Uri, header, request::Parts},
    response::Response,
};
use futures::StreamExt;
use offshoot_api::v1::{InvalidField, MAX_FRAME, MAX_JSON};
use offshoot_types::{ErrorCode, Failure, VmRef};
use serde::de::DeserializeOwned;
use std::{fmt::Display, pin::pin, str::FromStr, time::Duration};
use tracing::Instrument;

/// How long a caller may take to send a body that is read before it is answered.
pub const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// How much of a body is read in all, kept or not.
const MAX_DISCARDED: usize = 16 * MAX_JSON;

/// A JSON body. An empty one is `{}`: every option has a default somewhere.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        // Clients of other wires say what they like.
        if request.uri().path().starts_with("/v1/") {
            is_json(request.headers())?;
        }
        let bytes = read_json(request.into_body()).await?;
        parse_json(if bytes.is_empty() { b"{}" } else { &bytes }).map(Self).map_err(Into::into)
    }
}

/// A body that does not say what it is, is taken for what it has to be.
fn is_json(headers: &HeaderMap) -> Result<(), Failure> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    let kind = text.split(';').next().unwrap_or_default().trim();
    if kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json")) {
        return Ok(());
    }
    let message = format!("the request's body is `{kind:.80}`, and this route reads JSON");
    Err(Failure::new(ErrorCode::UnsupportedMediaType, message).hint("send `Content-Type: application/json`"))
}

pub async fn read_json(body: Body) -> Result<Vec<u8>, Failure> {
    read_body(body, MAX_JSON).await.map_err(Into::into)
}

/// Why a body was not read.
#[derive(Debug)]
pub enum Unread {
    /// There is more of it than so many bytes.
    TooLarge(usize),
    BrokenOff(axum::Error),
    Late,
}

impl From<Unread> for Failure {
    fn from(unread: Unread) -> Self {
        let invalid = |message: String| Self::new(ErrorCode::InvalidArgument, message);
        match unread {
            Unread::TooLarge(most) => {
                Self::new(ErrorCode::TooLarge, format!("the request's body is above {most} bytes"))
                    .hint("files of any size are streamed: `PUT /v1/vms/{vm}/files`")
            }
            Unread::BrokenOff(error) => invalid("the request's body is incomplete".into()).caused_by(&error),
            Unread::Late => invalid(format!("the request's body did not arrive within {BODY_DEADLINE:?}")),
        }
    }
}

/// The whole of a body that is small and comes soon.
pub async fn read_body(body: Body, most: usize) -> Result<Vec<u8>, Unread> {
    match tokio::time::timeout(BODY_DEADLINE, collect(body, most)).await {
        Ok(Ok(bytes)) if bytes.len() <= most => Ok(bytes),
        Ok(Ok(_)) => Err(Unread::TooLarge(most)),
        Ok(Err(error)) => Err(Unread::BrokenOff(error)),
        Err(_) => Err(Unread::Late),
    }
}

/// At most one byte more than the limit is kept. What follows is read and dropped for a while: a caller that is
/// still sending when we answer and close would see a broken pipe instead of the answer.
async fn collect(body: Body, most: usize) -> Result<Vec<u8>, axum::Error> {
    let mut chunks = body.into_data_stream();
    let mut kept = Vec::new();
    let mut seen = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        seen += chunk.len();
        let room = (most + 1).saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if seen > MAX_DISCARDED {
            break;
        }
    }
    Ok(kept)
}

/// Parses strictly; the error names the path to the field.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let invalid = |field: String, problem: String| match field.as_str() {
        "." | "" => Failure::new(ErrorCode::InvalidArgument, format!("invalid request: {problem}")),
        _ => InvalidField::new(field, problem).into(),
    };
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| invalid(error.path().to_string(), error.inner().to_string()))?;
    deserializer.end().map_err(|error| invalid(String::new(), error.to_string()))?;
    Ok(value)
}

/// The query string.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> Query<T> {
    pub fn of(uri: &Uri) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::try_from_uri(uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|rejection| Failure::new(ErrorCode::InvalidArgument, rejection.body_text()).into())
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::of(&parts.uri)
    }
}

/// `{vm}` of the path.
#[derive(Debug)]
pub struct Vm(pub VmRef);

impl<S: Send + Sync> FromRequestParts<S> for Vm {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Ok(Self(path_parameter(parts, state, "vm").await?))
    }
}

/// One parameter of the path, as a domain type.
pub async fn path_parameter<T, S>(parts: &mut Parts, state: &S, name: &'static str) -> Result<T, ApiError>
where
    T: FromStr,
    T::Err: Display,
    S: Send + Sync,
{
    let invalid = |problem: String| ApiError::from(InvalidField::new(name, problem));
    let Path(parameters) = Path::<Vec<(String, String)>>::from_request_parts(parts, state)
        .await
        .map_err(|rejection| invalid(rejection.body_text()))?;
    let text = parameters.into_iter().find(|(key, _)| key == name).map(|(_, value)| value);
    text.unwrap_or_default().parse().map_err(|error: T::Err| invalid(error.to_string()))
}

macro_rules! path_extractor {
    ($($(#[$doc:meta])* $name:ident($parameter:literal: $type:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(pub $type);
        impl<S: Send + Sync> FromRequestParts<S> for $name {
            type Rejection = ApiError;
            async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
                Ok(Self(path_parameter(parts, state, $parameter).await?))
            }
        }
    )*};
}
path_extractor! {
    /// `{exec}` of the path.
    Exec("exec": offshoot_types::ExecId);
    /// `{id}` of the path.
    OperationPath("id": offshoot_types::OperationId);
    /// `{snapshot}` of the path.
    SnapshotPath("snapshot": offshoot_types::SnapshotRef);
    /// `{transaction}` of the path.
    TransactionPath("transaction": offshoot_types::TransactionId);
    /// `{context}` of the path.
    ContextPath("context": offshoot_types::ContextName);
    /// `{key}` of the path.
    KeyPath("key": offshoot_types::KeyId);
    /// `{image}` of the path.
    ImagePath("image": offshoot_types::ImageRef);
}

/// An upgrade to a WebSocket whose frames and buffers are bounded.
#[derive(Debug)]
pub struct Upgrade(WebSocketUpgrade, Option<KeyEnds>);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let upgrade = WebSocketUpgrade::from_request_parts(parts, state).await.map_err(|rejection| {
            Failure::new(ErrorCode::InvalidArgument, "this route is a WebSocket")
                .caused_by(&rejection)
                .hint("ask for an upgrade: `Connection: Upgrade`, `Upgrade: websocket`")
        })?;
        let largest = MAX_JSON.max(MAX_FRAME);
        let ends = parts.extensions.get().cloned();
        Ok(Self(
            upgrade
                .read_buffer_size(64 * 1024)
                .write_buffer_size(0)
                // One message more than the sink ever holds; beyond it a send fails instead of piling up.
                .max_write_buffer_size(2 * largest)
                .max_message_size(largest)
                .max_frame_size(largest),
            ends,
        ))
    }
}

impl Upgrade {
    /// One whose messages to the caller may be as large as this.
    pub fn saying_up_to(self, largest: usize) -> Self {
        Self(self.0.max_write_buffer_size(2 * largest), self.1)
    }

    pub fn serve<F, T>(self, session: F) -> Response
    where
        F: FnOnce(WebSocket) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        // The session's log lines belong to the request that asked for it.
        let span = tracing::Span::current();
        let Self(upgrade, ends) = self;
        upgrade.on_upgrade(move |socket| {
            let session = session(socket);
            async move {
                match ends {
                    // As for a caller who leaves.
                    Some(ends) => drop(futures::future::select(pin!(session), ends.reached()).await),
                    None => session.await,
                }
            }
            .instrument(span)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_api::v1::{CreateVm, RunRequest};

    #[test]
    fn a_field_of_the_wrong_type_or_name_is_named() {
        let message = |json: &str| parse_json::<CreateVm>(json.as_bytes()).unwrap_err().message;
        assert!(
            message(r#"{"name":"a","cpus":"two"}"#).starts_with("invalid `cpus`"),
            "{}",
            message(r#"{"name":"a","cpus":"two"}"#)
        );
        assert!(message(r#"{"name":"a","colour":1}"#).contains("colour"));
        assert!(message(r#"{}"#).contains("name"));
        assert!(message(r#"{"name":"a"} x"#).starts_with("invalid request"));
        let nested = parse_json::<RunRequest>(br#"{"exec":{"limits":{"timeout_ms":-1}}}"#).unwrap_err();
        assert!(nested.message.starts_with("invalid `exec.limits.timeout_ms`"), "{}", nested.message);
    }
}
