//! From the keyboard or a pipe to the process.
//!
//! Standard input is read by a thread of its own: a read cannot be cancelled, and a task that waits for one would
//! keep the program from ending. The thread reads ahead by a few chunks at most, and only if asked to at all.

use super::escape::{Escape, Step};
use crate::{
    failure::{Result, host},
    terminal,
};
use bytes::Bytes;
use offshoot_api::{ClientError, client::ExecInput};
use std::{future::pending, io::Read, thread};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{Receiver, Sender, UnboundedReceiver, channel},
};

/// Bytes of one read.
const CHUNK: usize = 64 * 1024;
/// Chunks read ahead of what the guest takes.
const AHEAD: usize = 4;

/// Whether our standard input is the process's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// The process sees an empty one; ours is not touched.
    Empty,
    Forwarded,
}

/// Orders that go before anything typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    Signal(i32),
    Kill,
    /// Close the connection, whatever the process does; or as [`Leaving`] says.
    Leave,
}

/// How to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    Close,
    /// Ask for it and stay: what became of it is still to be heard.
    RollBack,
}

/// Where everything comes from that goes to the process.
#[derive(Debug)]
pub struct Feeder {
    stdin: Option<Receiver<Bytes>>,
    escape: Option<Escape>,
    resized: Option<Signal>,
    orders: UnboundedReceiver<Message>,
    leaving: Leaving,
}

impl Feeder {
    pub fn new(stdin: Stdin, raw: bool, pty: bool, orders: UnboundedReceiver<Message>) -> Result<Self> {
        let resized = match pty {
            true => Some(
                signal(SignalKind::window_change())
                    .map_err(|error| host("cannot watch the terminal's size", &error))?,
            ),
            false => None,
        };
        let stdin = match stdin {
            Stdin::Empty => None,
            Stdin::Forwarded => Some(read_stdin()?),
        };
        Ok(Self { stdin, escape: raw.then(Escape::default), resized, orders, leaving: Leaving::Close })
    }

    pub fn leaving(self, leaving: Leaving) -> Self {
        Self { leaving, ..self }
    }
}

/// Sends until the escape keys are typed; the process has then been killed. A broken connection is for the other
/// direction to report: this one is then silent for ever.
pub async fn feed(mut input: ExecInput, mut feeder: Feeder) {
    loop {
        let sent = tokio::select! {
            biased;
            Some(order) = feeder.orders.recv() => match order {
                Message::Signal(number) => input.signal(number).await,
                Message::Kill => input.kill().await,
                Message::Leave => {
                    // If it cannot be said, the connection is closed already.
                    let _ = match feeder.leaving {
                        Leaving::Close => input.close().await,
                        Leaving::RollBack => input.roll_back().await,
                    };
                    return pending().await;
                }
            },
            () = changed(&mut feeder.resized) => match terminal::size() {
                Some(size) => input.resize(size.rows, size.cols).await,
                None => Ok(()),
            },
            chunk = typed(&mut feeder.stdin) => match forward(&mut input, &mut feeder, chunk).await {
                Ok(Flow::On) => Ok(()),
                Ok(Flow::Escaped) => return,
                Err(error) => Err(error),
            },
        };
        if sent.is_err() {
            return pending().await;
        }
    }
}

enum Flow {
    On,
    Escaped,
}

async fn forward(
    input: &mut ExecInput,
    feeder: &mut Feeder,
    chunk: Option<Bytes>,
) -> Result<Flow, ClientError> {
    let Some(chunk) = chunk else {
        feeder.stdin = None;
        return input.stdin_end().await.map(|()| Flow::On);
    };
    let step = match &mut feeder.escape {
        Some(escape) => escape.feed(&chunk),
        None => return input.stdin(chunk).await.map(|()| Flow::On),
    };
    match step {
        Step::Pass(bytes) => input.stdin(bytes.into()).await.map(|()| Flow::On),
        Step::Leave(bytes) => {
            input.stdin(bytes.into()).await?;
            input.kill().await.map(|()| Flow::Escaped)
        }
    }
}

async fn changed(resized: &mut Option<Signal>) {
    match resized {
        Some(signal) => match signal.recv().await {
            Some(()) => {}
            None => pending().await,
        },
        None => pending().await,
    }
}

/// The next chunk; `None` at the end of the input.
async fn typed(stdin: &mut Option<Receiver<Bytes>>) -> Option<Bytes> {
    match stdin {
        Some(chunks) => chunks.recv().await,
        None => pending().await,
    }
}

fn read_stdin() -> Result<Receiver<Bytes>> {
    let (sender, receiver) = channel(AHEAD);
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || read_until_end(&sender))
        .map_err(|error| host("cannot read standard input", &error))?;
    Ok(receiver)
}

/// Ends with the input, or when nobody wants it any more.
fn read_until_end(chunks: &Sender<Bytes>) {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = vec![0; CHUNK];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if chunks.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // An input that fails has ended as far as the process can tell.
            Err(_) => return,
        }
    }
}
