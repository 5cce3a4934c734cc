//! Columns to domain values and back.

use jiff::Timestamp;
use rusqlite::{Error, Row, types::Type};
use serde::{Serialize, de::DeserializeOwned};
use std::str::FromStr;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn wrong(row: &Row<'_>, column: &str, kind: Type, failure: impl Into<Failure>) -> Error {
    let index = row.as_ref().column_index(column).unwrap_or(usize::MAX);
    Error::FromSqlConversionFailure(index, kind, failure.into())
}

/// A column that holds the text form of `T`.
pub(crate) fn parsed<T>(row: &Row<'_>, column: &str) -> Result<T, Error>
where
    T: FromStr<Err: Into<Failure>>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|failure: T::Err| wrong(row, column, Type::Text, failure))
}

pub(crate) fn parsed_option<T>(row: &Row<'_>, column: &str) -> Result<Option<T>, Error>
where
    T: FromStr<Err: Into<Failure>>,
{
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(|failure: T::Err| wrong(row, column, Type::Text, failure)))
        .transpose()
}

/// A column that holds `T` as JSON.
pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> Result<T, Error> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|failure| wrong(row, column, Type::Text, failure))
}

pub(crate) fn json_option<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> Result<Option<T>, Error> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(|failure| wrong(row, column, Type::Text, failure)))
        .transpose()
}

/// A column that holds the name of a unit variant, as serde writes it.
pub(crate) fn named<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> Result<T, Error> {
    let text: String = row.get(column)?;
    T::deserialize(serde::de::value::StringDeserializer::<serde::de::value::Error>::new(text))
        .map_err(|failure| wrong(row, column, Type::Text, failure))
}

pub(crate) fn time(row: &Row<'_>, column: &str) -> Result<Timestamp, Error> {
    let micros: i64 = row.get(column)?;
    Timestamp::from_microsecond(micros).map_err(|failure| wrong(row, column, Type::Integer, failure))
}

pub(crate) fn time_option(row: &Row<'_>, column: &str) -> Result<Option<Timestamp>, Error> {
    let micros: Option<i64> = row.get(column)?;
    micros
        .map(|micros| {
            Timestamp::from_microsecond(micros).map_err(|failure| wrong(row, column, Type::Integer, failure))
        })
        .transpose()
}

pub(crate) fn hash(row: &Row<'_>, column: &str) -> Result<[u8; 32], Error> {
    row.get(column)
}

pub(crate) fn to_json<T: Serialize + ?Sized>(value: &T) -> String {
    // Domain types have string keys and no fallible `Serialize`, the two ways in which this can fail.
    serde_json::to_string(value).expect("domain values serialise")
}

/// The name of a unit variant, as serde writes it.
pub(crate) fn to_name<T: Serialize>(value: &T) -> String {
    to_json(value).trim_matches('"').to_owned()
}
