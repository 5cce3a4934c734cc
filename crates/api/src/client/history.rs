//! What was run in VMs.

use super::{ByteStream, Client, ClientError, connection::query};
use crate::v1::{HistoryEntry, HistoryList, HistoryQuery, Replay, ReplayRequest, Stream, StreamQuery};
use http::Method;
use offshoot_types::{OperationId, VmRef};

impl Client {
    /// Of all VMs, the destroyed ones included, newest first.
    pub async fn history(&self, which: &HistoryQuery) -> Result<HistoryList, ClientError> {
        self.get(&query("/v1/history", which)).await
    }

    /// Of one VM; of one that is destroyed by its id.
    pub async fn history_of(&self, vm: &VmRef, which: &HistoryQuery) -> Result<HistoryList, ClientError> {
        self.get(&query(&format!("/v1/vms/{vm}/history"), which)).await
    }

    /// One of them, with both ends of what it said.
    pub async fn history_entry(&self, id: OperationId) -> Result<HistoryEntry, ClientError> {
        self.get(&format!("/v1/history/{id}")).await
    }

    /// What is kept of a stream, from its beginning.
    pub async fn history_stream(
        &self,
        id: OperationId,
        stream: Stream,
        which: StreamQuery,
    ) -> Result<ByteStream, ClientError> {
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        self.stream(&query(&format!("/v1/history/{id}/{name}"), &which)).await
    }

    /// Runs it again in a fork of the state from before it. Returns once it has ended.
    pub async fn replay(&self, id: OperationId, request: &ReplayRequest) -> Result<Replay, ClientError> {
        self.json(Method::POST, &format!("/v1/history/{id}/replay"), Some(request)).await
    }
}
