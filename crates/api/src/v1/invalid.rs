//! Why a request was refused before anyone looked at the world.

use offshoot_types::{ErrorCode, Failure};
use std::fmt;

/// One field of a request holds a value that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid `{field}`: {problem}")]
pub struct InvalidField {
    /// As written in the request, dots between levels: `exec.argv`.
    pub field: String,
    pub problem: String,
}

impl InvalidField {
    pub fn new(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self { field: field.into(), problem: problem.to_string() }
    }

    /// The same complaint about a request that holds this one as `parent`.
    pub fn within(mut self, parent: &str) -> Self {
        self.field = format!("{parent}.{}", self.field);
        self
    }
}

impl From<InvalidField> for Failure {
    fn from(invalid: InvalidField) -> Self {
        Failure::new(ErrorCode::InvalidArgument, invalid.to_string())
    }
}

/// Parses `text` as the domain type of `field`.
pub(super) fn parse<T>(field: &str, text: &str) -> Result<T, InvalidField>
where
    T: std::str::FromStr,
    T::Err: fmt::Display,
{
    text.parse().map_err(|error: T::Err| InvalidField::new(field, error))
}
