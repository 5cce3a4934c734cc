//! What the wire says of a sandbox beyond its metadata, as labels of the VM. Their names are no metadata's.

use super::error::{Refused, invalid};
use offshoot_types::Labels;

/// What all names of such labels begin with.
const OURS: &str = "e2b/";
/// What it was made from, in the words of whoever made it.
pub const TEMPLATE: &str = "e2b/template";
/// The network rules in words: `allow` or `deny`, as asked for.
pub const INTERNET: &str = "e2b/internet";
/// `private`: ports of programs in it are for those with a traffic token.
pub const TRAFFIC: &str = "e2b/traffic";

/// Metadata as labels.
pub fn of_metadata(metadata: Labels) -> Result<Labels, Refused> {
    match metadata.keys().find(|key| key.starts_with(OURS)) {
        Some(key) => {
            Err(invalid("metadata", format!("`{key:.40}`: names that begin with `{OURS}` are taken")))
        }
        None => Ok(metadata),
    }
}

/// Labels as metadata.
pub fn metadata(labels: &Labels) -> Labels {
    labels
        .iter()
        .filter(|(key, _)| !key.starts_with(OURS))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Whether it was made over the wire, whose ids cannot be guessed.
pub fn is_made_here(labels: &Labels) -> bool {
    labels.contains_key(TEMPLATE)
}

/// Whether programs in it may be talked to without a token, by those on this host who know its id: so it was made over the
/// wire, whose ids cannot be guessed, and nothing else was asked for.
pub fn is_open(labels: &Labels) -> bool {
    is_made_here(labels) && !labels.contains_key(TRAFFIC)
}
