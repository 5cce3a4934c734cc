//! Carrying what a guest has written out of its memory, and back in. To the host it is bytes: how many, is for the caller to
//! bound.

use super::{
    ClientError,
    call::{Call, Context},
    files::{Incoming, Outgoing},
};
use crate::message::{DiskRequest, DiskUse, FileChunk, GuestError, GuestErrorKind, HostOpen};
use bytes::Bytes;

/// A guest that waits for the word to go on. Dropped, it leaves everything as it is.
#[derive(Debug)]
pub struct DiskOffer {
    call: Call,
    used: DiskUse,
}

impl DiskOffer {
    /// By the guest's own account.
    pub fn used(&self) -> DiskUse {
        self.used
    }

    /// Has the guest end its programs and send the tree, of which more than `limit` bytes are a breach.
    pub async fn accept(mut self, limit: u64) -> Result<DiskReader, ClientError> {
        self.call.send(&FileChunk::End).await?;
        Ok(DiskReader(Incoming::new(self.call, Some(limit))))
    }

    /// Tells the guest that it goes on as it was.
    pub async fn decline(mut self) -> Result<(), ClientError> {
        let message = "the host cannot take it".to_owned();
        self.call.send(&FileChunk::Failed(GuestError { kind: GuestErrorKind::Other, message })).await
    }
}

/// The tree, as the guest sends it.
#[derive(Debug)]
pub struct DiskReader(Incoming);

impl DiskReader {
    /// The next bytes; `None` once all of it has come.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.0.next().await
    }
}

/// A tree on its way back in.
#[derive(Debug)]
pub struct DiskWriter(Outgoing);

impl DiskWriter {
    /// Not cancel-safe: after a cancelled call every further one fails.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.0.send(bytes).await
    }

    /// Returns once all of it is in place.
    pub async fn finish(self) -> Result<(), ClientError> {
        self.0.finish().await
    }
}

pub(super) async fn keep(context: Context) -> Result<DiskOffer, ClientError> {
    let mut call = Call::open(context, &HostOpen::Disk(DiskRequest::Keep)).await?;
    let used = call.reply::<DiskUse>().await?;
    Ok(DiskOffer { call, used })
}

pub(super) async fn put_back(context: Context) -> Result<DiskWriter, ClientError> {
    let mut call = Call::open(context, &HostOpen::Disk(DiskRequest::PutBack)).await?;
    call.reply::<()>().await?;
    Ok(DiskWriter(Outgoing { call }))
}
