//! From what a process does to what its stream says.

use super::messages::{Data, End, Event, EventResponse};
use crate::{
    activity::Present,
    e2b::envd::connect::{Code, ConnectError, MAX_FRAME_DATA, Source},
};
use bytes::Bytes;
use offshoot_engine::{ExecEvent, ExecEvents, OutputStream};
use offshoot_types::{ExecStatus, Failure};

/// The stream of one process.
#[derive(Debug)]
pub struct Events {
    events: ExecEvents,
    pty: bool,
    /// That its time was up is the error of whoever set the time, and to others an end like any.
    timed: bool,
    /// The rest of an output that does not fit one message.
    rest: Option<(OutputStream, Bytes)>,
    over: bool,
    _present: Present,
}

impl Events {
    pub fn new(events: ExecEvents, pty: bool, timed: bool, present: Present) -> Self {
        Self { events, pty, timed, rest: None, over: false, _present: present }
    }

    /// The process's pid once it runs, or why it does not.
    pub async fn started(&mut self) -> Result<u32, Failure> {
        match self.events.next().await {
            Some(ExecEvent::Started { pid }) => Ok(pid),
            Some(ExecEvent::Failed(failure)) => Err(failure),
            other => {
                let message = format!("the process begins with {other:?}");
                Err(Failure::new(offshoot_types::ErrorCode::Internal, message))
            }
        }
    }

    fn output(&mut self, stream: OutputStream, mut data: Bytes) -> Event {
        let piece = data.split_to(data.len().min(MAX_FRAME_DATA));
        self.rest = (!data.is_empty()).then_some((stream, data));
        Event::Data(match stream {
            _ if self.pty => Data::Pty(piece),
            OutputStream::Stdout => Data::Stdout(piece),
            OutputStream::Stderr => Data::Stderr(piece),
        })
    }
}

impl Source for Events {
    type Message = EventResponse;

    async fn next(&mut self) -> Option<Result<EventResponse, ConnectError>> {
        if let Some((stream, data)) = self.rest.take() {
            return Some(Ok(self.output(stream, data).into()));
        }
        while !self.over {
            let event = match self.events.next().await {
                Some(ExecEvent::Output { stream, data, .. }) => self.output(stream, data),
                // The guest forgot it before anybody read it, which the wire cannot say.
                Some(ExecEvent::Lost { .. } | ExecEvent::Started { .. }) => continue,
                last => {
                    self.over = true;
                    match last_event(last, self.timed) {
                        Ok(end) => Event::End(end),
                        Err(error) => return Some(Err(error)),
                    }
                }
            };
            return Some(Ok(event.into()));
        }
        None
    }

    fn keepalive() -> EventResponse {
        Event::Keepalive {}.into()
    }
}

fn last_event(event: Option<ExecEvent>, timed: bool) -> Result<End, ConnectError> {
    match event {
        Some(ExecEvent::Ended(ended)) => match ended.status {
            ExecStatus::TimedOut if timed => {
                Err(ConnectError::new(Code::DeadlineExceeded, "the process ran until its time was up"))
            }
            status => Ok(end(status)),
        },
        Some(ExecEvent::Failed(failure)) => Err(failure.into()),
        Some(ExecEvent::Detached) => {
            Err(ConnectError::new(Code::Aborted, "another caller took the process's streams over"))
        }
        _ => Err(ConnectError::new(Code::Internal, "the process ended without an end")),
    }
}

/// In the words that Go has for the state of a process, which clients know.
pub fn end(status: ExecStatus) -> End {
    let (exit_code, exited, status) = match status {
        ExecStatus::Exited(code) => (code, true, format!("exit status {code}")),
        ExecStatus::Signaled(signal) => (-1, false, format!("signal: {}", signal_words(signal))),
        ExecStatus::TimedOut => (-1, false, "signal: killed".into()),
    };
    let error = (exit_code != 0).then(|| status.clone());
    End { exit_code, exited, status, error }
}

fn signal_words(signal: i32) -> String {
    match signal {
        1 => "hangup".into(),
        2 => "interrupt".into(),
        3 => "quit".into(),
        4 => "illegal instruction".into(),
        6 => "aborted".into(),
        8 => "floating point exception".into(),
        9 => "killed".into(),
        11 => "segmentation fault".into(),
        13 => "broken pipe".into(),
        14 => "alarm clock".into(),
        15 => "terminated".into(),
        other => format!("signal {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_clients_know_them() {
        let clean = end(ExecStatus::Exited(0));
        assert_eq!((clean.exit_code, clean.exited, clean.error), (0, true, None));
        let failed = end(ExecStatus::Exited(7));
        assert_eq!((failed.exit_code, failed.status.as_str()), (7, "exit status 7"));
        assert_eq!(failed.error.as_deref(), Some("exit status 7"));
        for killed in [end(ExecStatus::Signaled(9)), end(ExecStatus::TimedOut)] {
            assert_eq!((killed.exit_code, killed.exited), (-1, false));
            assert_eq!(killed.status, "signal: killed");
        }
        assert_eq!(end(ExecStatus::Signaled(64)).status, "signal: signal 64");
    }
}
