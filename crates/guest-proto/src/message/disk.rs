//! What a guest has written, where its disk is its memory: carried out before it ends, and back in at its next start.

use serde::{Deserialize, Serialize};

/// The tree travels as [`super::FileChunk`]s that only agents read: the host keeps them as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum DiskRequest {
    /// Programs must stand still. Answer: [`super::Reply<DiskUse>`]; then the host says `End` (go on) or `Failed` (leave
    /// everything as it is). After `End` programs are ended as before powering off, and the tree follows, its last chunk
    /// being `End`. Whatever becomes of it, nothing new runs until `Unfreeze`.
    Keep,
    /// Before anything else runs. Answer: `Reply<()>` (ready); then the host sends the chunks of an earlier `Keep`;
    /// answer: `Reply<()>` once all of it is in place. After a failure the disk is half of it.
    PutBack,
}

/// What there is to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskUse {
    /// Memory that files take.
    pub bytes: u64,
}
