//! A small QMP client: the few commands a keeper needs, typed, with a deadline each.
//!
//! The VMM is not trusted: a line is bounded, unknown events are dropped, and after one malformed line nothing
//! more is read.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex as AsyncMutex, oneshot, watch},
};

/// The longest line read; the answers to our commands are below 1 KiB.
const MAX_LINE: u64 = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "execute", content = "arguments", rename_all = "kebab-case")]
pub(crate) enum Command {
    #[serde(rename = "qmp_capabilities")]
    Capabilities,
    Stop,
    Cont,
    Quit,
    QueryStatus,
    /// Everything but memory and disks. Generic, despite the name.
    XenSaveDevicesState {
        filename: PathBuf,
        /// `true` would take the disks away from this VMM.
        live: bool,
    },
    /// Loads what the line above saved, in a VMM that was started to wait for it.
    MigrateIncoming {
        uri: String,
    },
    /// The options of a node, as on the command line.
    BlockdevAdd(Value),
    /// Writes go to `overlay` from now on; `node` is read from.
    BlockdevSnapshot {
        node: String,
        overlay: String,
    },
    BlockdevDel {
        #[serde(rename = "node-name")]
        node: String,
    },
    /// All options of nodes that are there, as they are to be.
    BlockdevReopen {
        options: Vec<Value>,
    },
}

impl Command {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Capabilities => "qmp_capabilities",
            Self::Stop => "stop",
            Self::Cont => "cont",
            Self::Quit => "quit",
            Self::QueryStatus => "query-status",
            Self::XenSaveDevicesState { .. } => "xen-save-devices-state",
            Self::MigrateIncoming { .. } => "migrate-incoming",
            Self::BlockdevAdd(_) => "blockdev-add",
            Self::BlockdevSnapshot { .. } => "blockdev-snapshot",
            Self::BlockdevDel { .. } => "blockdev-del",
            Self::BlockdevReopen { .. } => "blockdev-reopen",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    #[error("no answer to `{command}` within {after:?}")]
    Timeout { command: &'static str, after: Duration },
    #[error("`{command}`: {message}")]
    Refused { command: &'static str, message: String },
    #[error("the control connection to the VMM is closed")]
    Closed,
    #[error("cannot write to the VMM")]
    Write(#[source] io::Error),
}

/// What the VMM says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Status {
    /// Whether the guest's CPUs run.
    pub running: bool,
    status: String,
}

impl Status {
    /// A device state is being loaded, or waited for.
    pub fn is_loading(&self) -> bool {
        self.status == "inmigrate"
    }
}

/// Why the VMM says it ended.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Shutdown {
    /// The guest did it, as opposed to us.
    pub guest: bool,
}

#[derive(Debug, Deserialize)]
struct Line {
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

type Answer = Result<Value, String>;

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// `None` once nothing will be answered any more.
    answers: Option<HashMap<u64, oneshot::Sender<Answer>>>,
}

#[derive(Debug)]
pub(crate) struct Qmp {
    write: AsyncMutex<OwnedWriteHalf>,
    waiting: Arc<Mutex<Waiting>>,
    shutdown: watch::Receiver<Option<Shutdown>>,
}

impl Qmp {
    /// The client, and the reader to be run beside it until it ends.
    pub fn new(stream: UnixStream) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (read, write) = stream.into_split();
        let waiting = Arc::new(Mutex::new(Waiting { next: 1, answers: Some(HashMap::new()) }));
        let (publish, shutdown) = watch::channel(None);
        let reader = read_lines(read, waiting.clone(), publish);
        (Self { write: AsyncMutex::new(write), waiting, shutdown }, reader)
    }

    pub async fn call(&self, command: Command, deadline: Duration) -> Result<Value, QmpError> {
        let name = command.name();
        let exchange = async {
            let (id, answer) = self.expect_answer()?;
            #[derive(Serialize)]
            struct Request {
                #[serde(flatten)]
                command: Command,
                id: u64,
            }
            let mut line = serde_json::to_vec(&Request { command, id })
                .map_err(|error| QmpError::Write(error.into()))?;
            line.push(b'\n');
            self.write.lock().await.write_all(&line).await.map_err(QmpError::Write)?;
            match answer.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(message)) => Err(QmpError::Refused { command: name, message }),
                Err(_) => Err(QmpError::Closed),
            }
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(result) => result,
            Err(_elapsed) => Err(QmpError::Timeout { command: name, after: deadline }),
        }
    }

    pub async fn status(&self, deadline: Duration) -> Result<Status, QmpError> {
        let value = self.call(Command::QueryStatus, deadline).await?;
        match serde_json::from_value(value) {
            Ok(status) => Ok(status),
            Err(error) => {
                Err(QmpError::Refused { command: Command::QueryStatus.name(), message: error.to_string() })
            }
        }
    }

    /// What the VMM said last of why it ends.
    pub fn shutdown_cause(&self) -> watch::Receiver<Option<Shutdown>> {
        self.shutdown.clone()
    }

    fn expect_answer(&self) -> Result<(u64, oneshot::Receiver<Answer>), QmpError> {
        let mut waiting = self.waiting.lock().map_err(|_| QmpError::Closed)?;
        let id = waiting.next;
        waiting.next += 1;
        let answers = waiting.answers.as_mut().ok_or(QmpError::Closed)?;
        // Callers that gave up leave their entry behind.
        answers.retain(|_, sender| !sender.is_closed());
        let (sender, receiver) = oneshot::channel();
        answers.insert(id, sender);
        Ok((id, receiver))
    }
}

async fn read_lines(
    read: OwnedReadHalf,
    waiting: Arc<Mutex<Waiting>>,
    shutdown: watch::Sender<Option<Shutdown>>,
) {
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut read).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(length) if length > 0 && line.ends_with(b"\n") => {}
            _ => break,
        }
        let Ok(message) = serde_json::from_slice::<Line>(&line) else { break };
        match (message.event.as_deref(), message.data) {
            (Some("SHUTDOWN"), Some(data)) => {
                if let Ok(cause) = serde_json::from_value(data) {
                    shutdown.send_replace(Some(cause));
                }
                continue;
            }
            (Some(_), _) => continue,
            (None, _) => {}
        }
        // The greeting has no id.
        let Some(id) = message.id else { continue };
        let answer = match message.error {
            Some(refusal) => Err(refusal.desc.chars().take(500).collect()),
            None => Ok(message.value.unwrap_or_default()),
        };
        let sender = waiting.lock().ok().and_then(|mut w| w.answers.as_mut().and_then(|a| a.remove(&id)));
        if let Some(sender) = sender {
            let _ = sender.send(answer);
        }
    }
    // Dropping the senders tells everyone who still waits.
    if let Ok(mut waiting) = waiting.lock() {
        waiting.answers = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn client() -> (Arc<Qmp>, UnixStream, tokio::task::JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (qmp, reader) = Qmp::new(ours);
        #[expect(clippy::disallowed_methods, reason = "a test's task ends with the test")]
        (Arc::new(qmp), theirs, tokio::spawn(reader))
    }

    #[tokio::test]
    async fn answers_find_their_callers_amid_events() {
        let (qmp, theirs, _reader) = client();
        let vmm = async {
            let (read, mut write) = theirs.into_split();
            write.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await.unwrap();
            let mut lines = BufReader::new(read).lines();
            assert_eq!(lines.next_line().await.unwrap().unwrap(), r#"{"execute":"stop","id":1}"#);
            assert_eq!(lines.next_line().await.unwrap().unwrap(), r#"{"execute":"query-status","id":2}"#);
            write.write_all(b"{\"event\": \"STOP\", \"timestamp\": {}}\n{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-shutdown\"}}\n").await.unwrap();
            write
                .write_all(b"{\"return\": {\"status\": \"paused\", \"running\": false}, \"id\": 2}\n")
                .await
                .unwrap();
            write
                .write_all(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 1}\n")
                .await
                .unwrap();
            write
        };
        let (stop, status, _open) = tokio::join!(qmp.call(Command::Stop, SOON), qmp.status(SOON), vmm);
        assert_eq!(stop.unwrap_err().to_string(), "`stop`: no");
        assert!(!status.unwrap().running);
        assert_eq!(*qmp.shutdown_cause().borrow(), Some(Shutdown { guest: true }));
    }

    #[test]
    fn commands_carry_their_arguments() {
        let text = |command: Command| serde_json::to_string(&command).unwrap();
        assert_eq!(text(Command::Cont), r#"{"execute":"cont"}"#);
        let save = Command::XenSaveDevicesState { filename: "/s/device.state".into(), live: false };
        assert_eq!(
            text(save),
            r#"{"execute":"xen-save-devices-state","arguments":{"filename":"/s/device.state","live":false}}"#
        );
        let add = Command::BlockdevAdd(serde_json::json!({ "driver": "qcow2" }));
        assert_eq!(text(add), r#"{"execute":"blockdev-add","arguments":{"driver":"qcow2"}}"#);
        let delete = Command::BlockdevDel { node: "layer-1".into() };
        assert_eq!(text(delete), r#"{"execute":"blockdev-del","arguments":{"node-name":"layer-1"}}"#);
    }

    #[tokio::test]
    async fn a_silent_vmm_is_a_timeout_and_a_closed_one_is_closed() {
        let (qmp, theirs, reader) = client();
        let short = Duration::from_millis(20);
        assert!(matches!(
            qmp.call(Command::Stop, short).await,
            Err(QmpError::Timeout { command: "stop", .. })
        ));
        drop(theirs);
        reader.await.unwrap();
        assert!(matches!(qmp.call(Command::Quit, SOON).await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn an_endless_line_or_nonsense_closes_the_connection_without_growing() {
        for flood in [vec![b'x'; 1 << 20], b"nonsense\n".to_vec()] {
            let (qmp, mut theirs, mut reader) = client();
            let flooding = async {
                let _ = theirs.write_all(&flood).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = flooding => {}
                ended = &mut reader => ended.unwrap(),
            }
            assert!(matches!(qmp.call(Command::Stop, SOON).await, Err(QmpError::Closed)));
        }
    }
}
