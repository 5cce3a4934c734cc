//! Files inside a VM.

use super::{ByteStream, Client, ClientError, connection::query};
use crate::v1::{
    DirectoryList, FILE_STAT_HEADER, FileStat, ListQuery, MakeDirectory, ReadQuery, RemoveFile, RenameFile,
    SetMode, StatQuery, Symlink, WriteQuery,
};
use bytes::Bytes;
use futures::Stream;
use http::Method;
use offshoot_types::VmRef;
use serde::Serialize;
use std::io;

/// A file on its way out of a VM.
#[derive(Debug)]
pub struct FileDownload {
    /// As of the moment it was opened.
    pub stat: FileStat,
    /// Ends in an error if the guest gave up half-way.
    pub content: ByteStream,
}

impl Client {
    pub async fn read_file(&self, vm: &VmRef, read: &ReadQuery) -> Result<FileDownload, ClientError> {
        let (headers, content) = self.stream_with_headers(&query(&files(vm, ""), read)).await?;
        let stat = headers
            .get(FILE_STAT_HEADER)
            .and_then(|value| serde_json::from_slice(value.as_bytes()).ok())
            .ok_or_else(|| ClientError::protocol("download", "the file's metadata is missing"))?;
        Ok(FileDownload { stat, content })
    }

    /// Replaces the file in one step, once all of `content` has arrived; else leaves the old one.
    pub async fn write_file(
        &self,
        vm: &VmRef,
        write: &WriteQuery,
        content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<FileStat, ClientError> {
        self.upload(&query(&files(vm, ""), write), content).await
    }

    pub async fn stat_file(&self, vm: &VmRef, stat: &StatQuery) -> Result<FileStat, ClientError> {
        self.get(&query(&files(vm, "/stat"), stat)).await
    }

    pub async fn list_directory(&self, vm: &VmRef, list: &ListQuery) -> Result<DirectoryList, ClientError> {
        self.get(&query(&files(vm, "/list"), list)).await
    }

    pub async fn make_directory(&self, vm: &VmRef, request: &MakeDirectory) -> Result<(), ClientError> {
        self.file_change(vm, "/mkdir", request).await
    }

    pub async fn rename_file(&self, vm: &VmRef, request: &RenameFile) -> Result<(), ClientError> {
        self.file_change(vm, "/rename", request).await
    }

    pub async fn remove_file(&self, vm: &VmRef, request: &RemoveFile) -> Result<(), ClientError> {
        self.file_change(vm, "/remove", request).await
    }

    pub async fn symlink(&self, vm: &VmRef, request: &Symlink) -> Result<(), ClientError> {
        self.file_change(vm, "/symlink", request).await
    }

    pub async fn set_mode(&self, vm: &VmRef, request: &SetMode) -> Result<(), ClientError> {
        self.file_change(vm, "/chmod", request).await
    }

    async fn file_change(&self, vm: &VmRef, verb: &str, request: &impl Serialize) -> Result<(), ClientError> {
        self.empty(Method::POST, &files(vm, verb), Some(request)).await
    }
}

fn files(vm: &VmRef, verb: &str) -> String {
    format!("/v1/vms/{vm}/files{verb}")
}
