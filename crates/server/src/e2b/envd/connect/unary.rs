//! Calls of one message each way.

use super::{Code, ConnectError, MAX_MESSAGE};
use crate::http::{App, read_body};
use axum::{
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, HeaderName, header, request::Parts},
};
use serde::de::DeserializeOwned;
use std::time::Duration;

const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");

/// The message of a call.
#[derive(Debug)]
pub struct Unary<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Unary<T> {
    type Rejection = ConnectError;
    async fn from_request(request: Request, _: &App) -> Result<Self, ConnectError> {
        check_content(request.headers(), "application/json")?;
        parse(&read_body(request.into_body(), MAX_MESSAGE).await?).map(Self)
    }
}

pub fn parse<T: DeserializeOwned>(message: &[u8]) -> Result<T, ConnectError> {
    // No message at all is one without fields.
    let message = if message.is_empty() { b"{}" } else { message };
    let mut json = serde_json::Deserializer::from_slice(message);
    let message = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let at = error.path().to_string();
        ConnectError::invalid(format!("`{at}`: {}", error.into_inner()))
    })?;
    json.end().map_err(|error| ConnectError::invalid(format!("behind the message: {error}")))?;
    Ok(message)
}

pub fn check_content(headers: &HeaderMap, wanted: &str) -> Result<(), ConnectError> {
    let said = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content = said(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    if !content.eq_ignore_ascii_case(wanted) {
        let problem = format!("content of type {content:?}; only the JSON codec ({wanted}) is understood");
        return Err(ConnectError::new(Code::Unimplemented, problem));
    }
    match said(header::CONTENT_ENCODING) {
        "" | "identity" => Ok(()),
        other => Err(ConnectError::new(
            Code::Unimplemented,
            format!("content encoded as {other:?} is not understood"),
        )),
    }
}

/// How long a call may take, if its caller said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub Option<Duration>);

impl Deadline {
    pub fn of(headers: &HeaderMap) -> Result<Self, ConnectError> {
        let Some(value) = headers.get(TIMEOUT) else { return Ok(Self(None)) };
        let parsed = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
        match parsed {
            // None, as the clients mean it.
            Some(0) => Ok(Self(None)),
            Some(milliseconds) => Ok(Self(Some(Duration::from_millis(milliseconds)))),
            None => {
                Err(ConnectError::invalid("the header Connect-Timeout-Ms is not a number of milliseconds"))
            }
        }
    }

    /// `work`, or the error that it took too long.
    pub async fn bound<T>(
        self,
        work: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        match self.0 {
            None => work.await,
            Some(limit) => {
                let late = || ConnectError::new(Code::DeadlineExceeded, format!("not done within {limit:?}"));
                tokio::time::timeout(limit, work).await.unwrap_or_else(|_elapsed| Err(late()))
            }
        }
    }
}

impl FromRequestParts<App> for Deadline {
    type Rejection = ConnectError;
    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ConnectError> {
        Self::of(&parts.headers)
    }
}
