//! The guest's end of a channel, which stands still while the machine does.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::watch,
};
use tokio_util::sync::ReusableBoxFuture;

/// Moves no byte while `paused` is true.
#[derive(Debug)]
pub(super) struct Pausable {
    pipe: DuplexStream,
    paused: watch::Receiver<bool>,
    resumed: Option<ReusableBoxFuture<'static, ()>>,
}

impl Pausable {
    pub fn new(pipe: DuplexStream, paused: watch::Receiver<bool>) -> Self {
        Self { pipe, paused, resumed: None }
    }

    fn poll_running(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !*self.paused.borrow() {
            self.resumed = None;
            return Poll::Ready(());
        }
        let mut paused = self.paused.clone();
        let resumed = self.resumed.get_or_insert_with(|| {
            ReusableBoxFuture::new(async move {
                // A machine that is gone is paused no more.
                let _ = paused.wait_for(|paused| !paused).await;
            })
        });
        let polled = resumed.poll(context);
        if polled.is_ready() {
            self.resumed = None;
        }
        polled
    }
}

macro_rules! running {
    ($self:ident, $context:ident) => {
        if $self.poll_running($context).is_pending() {
            return Poll::Pending;
        }
    };
}

impl AsyncRead for Pausable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        running!(self, context);
        Pin::new(&mut self.pipe).poll_read(context, buffer)
    }
}

impl AsyncWrite for Pausable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        running!(self, context);
        Pin::new(&mut self.pipe).poll_write(context, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}
