//! Faults on purpose, for tests of what the rest of the system does about them.

use crate::{Store, StoreError};

/// Makes the disk look full once the record has `pages` pages, or lifts that again with `None`.
pub async fn limit_pages(store: &Store, pages: Option<u32>) -> Result<(), StoreError> {
    store.transaction(move |tx| tx.limit_pages(pages)).await
}

/// How many pages the record has now.
pub async fn page_count(store: &Store) -> Result<u32, StoreError> {
    store.read(|view| view.page_count()).await
}

/// Makes the disk refuse to sync what is written from now on.
pub async fn fail_syncs(store: &Store) -> Result<(), StoreError> {
    store.fail_syncs().await
}
