//! How a caller names an image: by tag (resolved once, then pinned) or by digest.

use crate::{ImageDigest, InvalidName, VmName};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ImageRef {
    Tag(String),
    Digest(ImageDigest),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image: use a tag such as `base`, or `sha256:` and 64 hex digits")]
pub struct InvalidImageRef {
    pub text: String,
}

impl FromStr for ImageRef {
    type Err = InvalidImageRef;
    fn from_str(text: &str) -> Result<Self, InvalidImageRef> {
        let invalid = || InvalidImageRef { text: text.into() };
        if text.starts_with("sha256:") {
            return text.parse().map(Self::Digest).map_err(|_| invalid());
        }
        // A tag obeys the rules of a VM name, so it is injective to a path too.
        let tag: VmName = text.parse().map_err(|_: InvalidName| invalid())?;
        Ok(Self::Tag(tag.into()))
    }
}
impl TryFrom<String> for ImageRef {
    type Error = InvalidImageRef;
    fn try_from(text: String) -> Result<Self, InvalidImageRef> {
        text.parse()
    }
}
impl From<ImageRef> for String {
    fn from(image: ImageRef) -> String {
        image.to_string()
    }
}
impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}
