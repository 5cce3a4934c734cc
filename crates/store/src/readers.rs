//! Read-only connections. In WAL mode each sees the last commit and waits for no writer.

use crate::{OpenError, StoreError, View, blocking, database, tx::fault};
use rusqlite::{Connection, TransactionBehavior};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;

const CONNECTIONS: usize = 4;

/// As many permits as connections: whoever holds a permit finds one idle.
#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let idle = (0..CONNECTIONS).map(|_| database::open_reader(path)).collect::<Result<_, _>>()?;
        Ok(Self { path: path.into(), permits: Arc::new(Semaphore::new(CONNECTIONS)), idle: Mutex::new(idle) })
    }

    /// Runs `work` on one consistent state, on a blocking thread.
    pub async fn read<T, F>(self: &Arc<Self>, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&View<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = Arc::clone(self);
        let task = blocking(move || {
            // Both go back when the closure ends, even if the caller stopped waiting.
            let _permit = permit;
            let lent = Lent::borrow(&readers)?;
            lent.run(work)
        });
        match task.await {
            Ok(result) => result,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(StoreError::Closed),
            },
        }
    }

    /// Refuses further reads and closes the connections once running reads have ended.
    pub async fn close(&self) {
        // Taking every permit waits for the reads under way.
        if let Ok(all) = self.permits.acquire_many(CONNECTIONS as u32).await {
            self.permits.close();
            all.forget();
        }
        self.idle().clear();
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        // A list of connections is whole between any two calls on it, so a poisoned one is as good.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection out of the pool; dropping gives it back.
struct Lent<'r> {
    readers: &'r Readers,
    connection: Option<Connection>,
}

impl<'r> Lent<'r> {
    fn borrow(readers: &'r Readers) -> Result<Self, StoreError> {
        let connection = readers.idle().pop().ok_or(StoreError::Closed)?;
        Ok(Self { readers, connection: Some(connection) })
    }

    fn run<T>(mut self, work: impl FnOnce(&View<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let path = &self.readers.path;
        let Some(connection) = self.connection.as_mut() else { return Err(StoreError::Closed) };
        // One transaction, so that several queries of `work` see the same state. Dropping it ends it.
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Deferred)
            .map_err(|error| fault(path, "begin a read", error))?;
        work(&View { connection: &transaction, path })
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.readers.idle().push(connection);
        }
    }
}
