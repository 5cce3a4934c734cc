//! A write whose caller goes on before it is on disk.

use crate::{StoreError, Tx, writer::Job};
use tokio::sync::oneshot;

/// The second half of a write that was answered [early](crate::Store::transaction_early).
#[derive(Debug)]
#[must_use = "what it stands for is not on disk yet"]
pub struct Durable(Option<oneshot::Receiver<Result<(), StoreError>>>);

impl Durable {
    /// Of a write that is on disk already.
    pub(crate) const fn already() -> Self {
        Self(None)
    }

    /// Returns once it is on disk. An error says that it may not be, and will be so for every later write.
    pub async fn wait(self) -> Result<(), StoreError> {
        match self.0 {
            None => Ok(()),
            Some(synced) => synced.await.map_err(|_| StoreError::Closed)?,
        }
    }
}

/// As [`Request`](crate::writer::Request), answered twice: when it is committed, and when that is on disk.
pub(crate) struct EarlyRequest<T, F> {
    work: F,
    result: Option<Result<T, StoreError>>,
    /// Taken with the first answer.
    caller: Option<oneshot::Sender<Result<(T, Durable), StoreError>>>,
    synced: oneshot::Sender<Result<(), StoreError>>,
    durable: Option<Durable>,
}

impl<T, F> EarlyRequest<T, F> {
    pub fn new(work: F, caller: oneshot::Sender<Result<(T, Durable), StoreError>>) -> Self {
        let (synced, durable) = oneshot::channel();
        let (caller, durable) = (Some(caller), Some(Durable(Some(durable))));
        Self { work, result: None, caller, synced, durable }
    }
}

impl<T, F> Job for EarlyRequest<T, F>
where
    T: Send,
    F: Fn(&Tx<'_>) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, tx: &Tx<'_>) -> bool {
        self.result.insert((self.work)(tx)).is_ok()
    }
    fn committed(&mut self) {
        if let (Some(caller), Some(result), Some(durable)) =
            (self.caller.take(), self.result.take(), self.durable.take())
        {
            // A caller that stopped waiting misses the answer, not the write.
            let _ = caller.send(result.map(|value| (value, durable)));
        }
    }
    fn answer(mut self: Box<Self>) {
        self.committed();
        let _ = self.synced.send(Ok(()));
    }
    fn refuse(self: Box<Self>, error: StoreError) {
        match self.caller {
            Some(caller) => drop(caller.send(Err(error))),
            None => drop(self.synced.send(Err(error))),
        }
    }
}
