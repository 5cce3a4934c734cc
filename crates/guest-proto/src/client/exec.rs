//! A process in the guest, as the host sees it.
//!
//! ```text
//! Started --> Output* / Lost* --> Ended          (checked: offsets follow each other, nothing after the end)
//!    '-- Failed: it never ran
//! ```

use super::{
    ClientError,
    call::{self, Call, Context, Reader, Writer},
};
use crate::message::{CHUNK, ExecAttach, ExecEvent, ExecInput, ExecStart, HostOpen, OutputStream, PtySize};
use futures::FutureExt as _;

/// A running process and its streams. Dropping it leaves the process running; it can be attached to by its id.
#[derive(Debug)]
pub struct ExecHandle {
    pid: u32,
    sender: ExecSender,
    events: ExecEvents,
}

pub(super) async fn start(context: Context, start: ExecStart) -> Result<ExecHandle, ClientError> {
    let limit = start.max_output;
    let call = Call::open(context, &HostOpen::Exec(start)).await?;
    started(call, Judge { stdout: 0, stderr: 0, limit }).await
}

pub(super) async fn attach(context: Context, attach: ExecAttach) -> Result<ExecHandle, ClientError> {
    let judge = Judge { stdout: attach.stdout_offset, stderr: attach.stderr_offset, limit: None };
    let call = Call::open(context, &HostOpen::Attach(attach)).await?;
    started(call, judge).await
}

async fn started(mut call: Call, judge: Judge) -> Result<ExecHandle, ClientError> {
    let pid = match call.soon::<ExecEvent>().await? {
        ExecEvent::Started { pid } => pid,
        ExecEvent::Failed(error) => return Err(ClientError::Guest(error)),
        ExecEvent::Output { .. } | ExecEvent::Lost { .. } | ExecEvent::Ended(_) => {
            let problem = "an event before the process was started";
            return Err(ClientError::protocol(call.context.operation, problem));
        }
    };
    let Call { context, reader, writer } = call;
    let sender = ExecSender { context: context.clone(), writer };
    Ok(ExecHandle { pid, sender, events: ExecEvents { context, reader, judge, over: false } })
}

impl ExecHandle {
    /// In the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn split(self) -> (ExecSender, ExecEvents) {
        (self.sender, self.events)
    }
}

/// The way to the process. Its calls are not cancel-safe: after a cancelled one every further one fails.
#[derive(Debug)]
pub struct ExecSender {
    context: Context,
    writer: Writer,
}

impl ExecSender {
    /// Waits, without a deadline, while the process reads more slowly than this writes.
    pub async fn stdin(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        for chunk in bytes.chunks(CHUNK) {
            let input = ExecInput::Stdin(chunk.to_vec());
            call::send_patiently(&self.context, &mut self.writer, &input).await?;
        }
        Ok(())
    }

    /// The process reads an end of file, after all that was sent.
    pub async fn stdin_end(&mut self) -> Result<(), ClientError> {
        self.send(ExecInput::StdinEnd).await
    }

    pub async fn resize(&mut self, size: PtySize) -> Result<(), ClientError> {
        self.send(ExecInput::Resize(size)).await
    }

    /// To the process group in the foreground.
    pub async fn signal(&mut self, signal: i32) -> Result<(), ClientError> {
        self.send(ExecInput::Signal(signal)).await
    }

    /// SIGKILL to the whole tree.
    pub async fn kill(&mut self) -> Result<(), ClientError> {
        self.send(ExecInput::Kill).await
    }

    async fn send(&mut self, input: ExecInput) -> Result<(), ClientError> {
        call::send_patiently(&self.context, &mut self.writer, &input).await
    }
}

/// What the process does.
#[derive(Debug)]
pub struct ExecEvents {
    context: Context,
    reader: Reader,
    judge: Judge,
    over: bool,
}

impl ExecEvents {
    /// The next event; `None` after `Ended` or `Failed`. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, ClientError> {
        if self.over {
            return match self.reader.recv::<ExecEvent>().now_or_never() {
                Some(Ok(Some(_))) => Err(self.protocol("an event after the last one")),
                _ => Ok(None),
            };
        }
        let event: ExecEvent = call::next(&self.context, &mut self.reader).await?;
        self.judge.admit(&event).map_err(|problem| self.protocol(&problem))?;
        self.over = matches!(event, ExecEvent::Ended(_) | ExecEvent::Failed(_));
        Ok(Some(event))
    }

    /// Bytes of stdout and stderr accounted for so far: where to attach again.
    pub fn offsets(&self) -> (u64, u64) {
        (self.judge.stdout, self.judge.stderr)
    }

    fn protocol(&self, problem: &str) -> ClientError {
        ClientError::protocol(self.context.operation, problem)
    }
}

/// Knows what may come next.
#[derive(Debug)]
struct Judge {
    stdout: u64,
    stderr: u64,
    limit: Option<u64>,
}

impl Judge {
    fn admit(&mut self, event: &ExecEvent) -> Result<(), String> {
        let limit = self.limit.unwrap_or(u64::MAX);
        match event {
            ExecEvent::Started { .. } => Err("a second start".into()),
            ExecEvent::Output { stream, offset, data } => {
                let due = self.due(*stream);
                if *offset != *due {
                    return Err(format!("{stream:?} at offset {offset} where {due} was due"));
                }
                if data.is_empty() || data.len() > CHUNK {
                    return Err(format!("{} bytes of {stream:?} in one event", data.len()));
                }
                let end = due.checked_add(data.len() as u64).filter(|end| *end <= limit);
                *due = end.ok_or_else(|| format!("more {stream:?} than the {limit} bytes asked for"))?;
                Ok(())
            }
            ExecEvent::Lost { stream, next_offset } => {
                let due = self.due(*stream);
                if *next_offset <= *due || *next_offset > limit {
                    return Err(format!("{stream:?} lost up to {next_offset} where {due} was due"));
                }
                *due = *next_offset;
                Ok(())
            }
            ExecEvent::Ended(_) | ExecEvent::Failed(_) => Ok(()),
        }
    }

    fn due(&mut self, stream: OutputStream) -> &mut u64 {
        match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(offset: u64, length: usize) -> ExecEvent {
        ExecEvent::Output { stream: OutputStream::Stdout, offset, data: vec![0; length] }
    }

    fn lost(next_offset: u64) -> ExecEvent {
        ExecEvent::Lost { stream: OutputStream::Stdout, next_offset }
    }

    #[test]
    fn output_follows_without_gap_or_repetition_unless_the_loss_is_declared() {
        let mut judge = Judge { stdout: 10, stderr: 0, limit: None };
        assert_eq!(judge.admit(&output(10, 5)), Ok(()));
        assert!(judge.admit(&output(10, 5)).is_err(), "a repetition");
        assert!(judge.admit(&output(16, 5)).is_err(), "a gap");
        assert_eq!(judge.admit(&lost(100)), Ok(()));
        assert!(judge.admit(&lost(100)).is_err(), "nothing was lost");
        assert_eq!(judge.admit(&output(100, 1)), Ok(()));
    }

    #[test]
    fn absurd_events_are_refused() {
        let mut judge = Judge { stdout: 0, stderr: 0, limit: Some(8) };
        assert!(judge.admit(&output(0, 0)).is_err());
        assert!(judge.admit(&output(0, 9)).is_err());
        assert!(judge.admit(&lost(9)).is_err());
        assert!(judge.admit(&ExecEvent::Started { pid: 1 }).is_err());
        let mut judge = Judge { stdout: u64::MAX, stderr: 0, limit: None };
        assert!(judge.admit(&output(u64::MAX, 1)).is_err());
        assert!(judge.admit(&output(u64::MAX, CHUNK + 1)).is_err());
    }
}
