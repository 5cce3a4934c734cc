//! One stream of the host's own: open it, say what it is for, judge what comes back.

use super::ClientError;
use crate::{
    codec::{self, CodecError, MessageReader, MessageWriter},
    message::{HostOpen, Reply},
    session::{MuxStream, OpenError, Session},
    tunnel::Tunnel,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{future::Future, time::Duration};
use tokio::io::{ReadHalf, WriteHalf};

pub(super) type Reader = MessageReader<ReadHalf<MuxStream>>;
pub(super) type Writer = MessageWriter<WriteHalf<MuxStream>>;

/// How a call judges failures of its stream.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) session: Session,
    pub(super) operation: &'static str,
    /// How long the guest may take for one answer.
    pub(super) patience: Duration,
}

impl Context {
    /// A stream that ends early means the session is gone, or the guest dropped just this stream.
    pub(super) async fn ended(&self) -> ClientError {
        // Streams end a moment before the session says why; once the driver has answered, or is gone, it is known.
        match self.session.flush().await {
            Ok(()) => {
                ClientError::protocol(self.operation, "it dropped the stream before the answer was complete")
            }
            Err(reason) => ClientError::Closed { reason },
        }
    }

    pub(super) async fn failed(&self, error: CodecError) -> ClientError {
        match error {
            CodecError::Io(_) | CodecError::Truncated => self.ended().await,
            CodecError::Decode { .. } | CodecError::Trailing { .. } => {
                ClientError::protocol(self.operation, super::chain(&error))
            }
            CodecError::TooLarge { length } => {
                ClientError::protocol(self.operation, format!("a message of {length} bytes"))
            }
            CodecError::Encode(_) | CodecError::Broken => {
                ClientError::Request { operation: self.operation, source: error }
            }
        }
    }

    pub(super) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(self.patience, work).await {
            Ok(done) => done,
            Err(_elapsed) => Err(ClientError::Timeout { operation: self.operation, after: self.patience }),
        }
    }
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) context: Context,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
}

impl Call {
    pub(super) async fn open(context: Context, open: &HostOpen) -> Result<Self, ClientError> {
        let stream = match context.session.open().await {
            Ok(stream) => stream,
            Err(OpenError::TooMany { limit }) => return Err(ClientError::TooManyStreams { limit }),
            Err(OpenError::Closed) => {
                return Err(ClientError::Closed { reason: context.session.closed().await });
            }
        };
        let (reader, writer) = codec::messages(stream);
        let mut call = Self { context, reader, writer };
        call.send(open).await?;
        Ok(call)
    }

    /// Sends within the call's patience: a guest that grants no credit does not hold the caller for ever.
    pub(super) async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ClientError> {
        send(&self.context, &mut self.writer, message).await
    }

    /// The next message, within the call's patience.
    pub(super) async fn soon<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        let context = &self.context;
        context.within(next(context, &mut self.reader)).await
    }

    pub(super) async fn reply<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        match self.soon::<Reply<T>>().await? {
            Reply::Ok(value) => Ok(value),
            Reply::Err(error) => Err(ClientError::Guest(error)),
        }
    }

    pub(super) fn into_tunnel(self) -> Tunnel {
        let (read, ahead) = self.reader.into_parts();
        Tunnel::new(read.unsplit(self.writer.into_inner()), ahead)
    }
}

pub(super) async fn next<T: DeserializeOwned>(
    context: &Context,
    reader: &mut Reader,
) -> Result<T, ClientError> {
    match reader.recv::<T>().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(context.ended().await),
        Err(error) => Err(context.failed(error).await),
    }
}

pub(super) async fn send<T: Serialize>(
    context: &Context,
    writer: &mut Writer,
    message: &T,
) -> Result<(), ClientError> {
    context.within(send_patiently(context, writer, message)).await
}

/// Sends without a deadline: for a receiver that may rightly take its time.
pub(super) async fn send_patiently<T: Serialize>(
    context: &Context,
    writer: &mut Writer,
    message: &T,
) -> Result<(), ClientError> {
    match writer.send(message).await {
        Ok(()) => Ok(()),
        // Our own message, not the guest's.
        Err(source @ CodecError::TooLarge { .. }) => {
            Err(ClientError::Request { operation: context.operation, source })
        }
        Err(error) => Err(context.failed(error).await),
    }
}
