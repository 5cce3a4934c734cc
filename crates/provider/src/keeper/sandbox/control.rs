//! The socket on which a sandbox's kernel takes the requests of `runsc`, asked without `runsc`: that takes 25 ms to come to
//! it, and the request one.
//!
//! ```text
//! {"method":"containerManager.Pause","arg":null}   + descriptors   ->
//!                                                <-   {"success":true,"err":"","result":{}}
//! ```
//! Format: `pkg/urpc` of gVisor, as of 20240729. One request a connection. What answers is the guest's kernel, which a guest
//! may have taken over: it is waited for only so long, and little of it is read.

use crate::keeper::machine::CallError;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, Interest},
    net::UnixStream,
};

/// To what needs no time.
const CALL: Duration = Duration::from_secs(10);
/// A checkpoint writes all of the guest's memory.
const CHECKPOINT: Duration = Duration::from_secs(100);
/// Much more than an error and the place it was made at.
const ANSWER: usize = 64 << 10;
/// Most that are passed at once.
const FILES: usize = 3;

/// Whether the guest stands still. Its kernel counts how often it was told to, ends if it is let go once more, and does not
/// tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Goes,
    Still,
    /// It was told, and did not answer.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Control {
    socket: PathBuf,
    /// The sandbox, as `runsc` calls it.
    id: String,
    standing: Mutex<Standing>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    success: bool,
    #[serde(default)]
    err: String,
}

impl Control {
    /// Of a guest that goes.
    pub fn new(socket: PathBuf, id: String) -> Self {
        Self { socket, id, standing: Mutex::new(Standing::Goes) }
    }

    /// An error if nobody knows.
    pub fn is_still(&self) -> Result<bool, CallError> {
        match *self.standing() {
            Standing::Goes => Ok(false),
            Standing::Still => Ok(true),
            Standing::Unknown => {
                let said = "the sandbox's kernel was told to stand still or to go on, and did not answer";
                Err(CallError::Failed(said.into()))
            }
        }
    }

    /// Makes the guest stand still. One caller of this and of [`let_go`](Self::let_go) at a time.
    pub async fn hold(&self) -> Result<(), CallError> {
        if self.is_still()? {
            return Ok(());
        }
        self.tell("pause the sandbox", "Pause", Standing::Goes, Standing::Still).await
    }

    /// Makes the guest go on if it stands still.
    pub async fn let_go(&self) -> Result<(), CallError> {
        if !self.is_still()? {
            return Ok(());
        }
        self.tell("resume the sandbox", "Resume", Standing::Still, Standing::Goes).await
    }

    async fn tell(
        &self,
        what: &str,
        method: &str,
        before: Standing,
        then: Standing,
    ) -> Result<(), CallError> {
        // Also when this call is given up half way.
        *self.standing() = Standing::Unknown;
        let told = self.call(what, method, Value::Null, &[], CALL).await;
        *self.standing() = match &told {
            Ok(()) => then,
            Err(CallError::Late { .. }) => Standing::Unknown,
            Err(CallError::Failed(_) | CallError::Refused(_) | CallError::Ended(_)) => before,
        };
        told
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SIGKILL to PID 1, by the sandbox's own kernel.
    pub async fn kill(&self) -> Result<(), CallError> {
        let signal = json!({ "CID": self.id, "Signo": 9, "PID": 0, "Mode": 0 });
        self.call("end the sandbox", "Signal", signal, &[], CALL).await
    }

    /// Writes the state to files: of the kernel, of where its memory is, and the memory. The sandbox stays as it is.
    pub async fn checkpoint(&self, files: [BorrowedFd<'_>; FILES]) -> Result<(), CallError> {
        let how = json!({
            "metadata": { "compression": "none" },
            "have_pages_file": true,
            "Resume": true,
        });
        self.call("save the sandbox's state", "Checkpoint", how, &files, CHECKPOINT).await
    }

    async fn call(
        &self,
        what: &str,
        method: &str,
        argument: Value,
        files: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), CallError> {
        let request = json!({ "method": format!("containerManager.{method}"), "arg": argument }).to_string();
        let asked = self.ask(request.as_bytes(), files);
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(Answer { success: true, .. })) => Ok(()),
            Ok(Ok(Answer { err, .. })) => Err(CallError::Failed(format!("cannot {what}: {err}"))),
            Ok(Err(error)) => Err(CallError::failed(what, &error)),
            Err(_elapsed) => Err(CallError::Late { after: limit }),
        }
    }

    async fn ask(&self, request: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<Answer> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !files.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(files));
            }
            let flags = SendFlags::NOSIGNAL;
            Ok(rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(request)], &mut ancillary, flags)?)
        };
        // A new socket holds a thousand times as much.
        if stream.async_io(Interest::WRITABLE, send).await? != request.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut text = Vec::new();
        loop {
            if stream.read_buf(&mut text).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // An answer is an object: looked at where one may end, it costs nobody's time whatever comes.
            if !text.ends_with(b"}") && text.len() < ANSWER {
                continue;
            }
            match serde_json::from_slice(&text) {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_eof() && text.len() < ANSWER => {}
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use tokio::{io::AsyncWriteExt, net::UnixListener};

    /// What is asked of a kernel that answers `answer`, and what it means.
    async fn asked(answer: &'static [u8], files: bool) -> (Value, Result<(), CallError>) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        let kernel = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            for byte in answer {
                // Whoever has enough of it leaves.
                if stream.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            serde_json::from_slice(&request[..length]).unwrap()
        };
        let control = Control::new(socket, "x-g1".into());
        let ask = async {
            if !files {
                return control.kill().await;
            }
            let file = tempfile::tempfile().unwrap();
            control.checkpoint([file.as_fd(), file.as_fd(), file.as_fd()]).await
        };
        tokio::join!(kernel, ask)
    }

    #[tokio::test]
    async fn a_request_is_as_gvisor_reads_it_and_its_answer_may_come_in_pieces() {
        let (request, answered) = asked(br#"{"success":true,"err":"","result":{}}"#, false).await;
        answered.unwrap();
        let signal = json!({ "CID": "x-g1", "Signo": 9, "PID": 0, "Mode": 0 });
        assert_eq!(request, json!({ "method": "containerManager.Signal", "arg": signal }));
        let (request, answered) = asked(br#"{"success":false,"err":"no space left"}"#, true).await;
        assert_eq!(answered.unwrap_err().to_string(), "cannot save the sandbox's state: no space left");
        assert_eq!(request["arg"]["have_pages_file"], true);
    }

    #[tokio::test]
    async fn a_kernel_that_says_nothing_sensible_is_an_error() {
        for answer in [b"".as_slice(), b"{\"success\"", b"{pardon?}", &[b' '; 2 * ANSWER]] {
            let (_, answered) = asked(answer, false).await;
            assert!(matches!(answered, Err(CallError::Failed(_))), "{answered:?}");
        }
    }

    /// A kernel that answers so, request after request, and then no more; and what it was asked.
    fn kernel(
        socket: &std::path::Path,
        answers: &'static [&'static str],
    ) -> impl Future<Output = Vec<String>> {
        let listener = UnixListener::bind(socket).unwrap();
        async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let request: Value = serde_json::from_slice(&request[..length]).unwrap();
                asked.push(request["method"].as_str().unwrap().replace("containerManager.", ""));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        }
    }

    #[tokio::test]
    async fn a_kernel_is_told_neither_to_stand_still_nor_to_go_on_twice() {
        const YES: &str = r#"{"success":true}"#;
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control");
        let kernel = kernel(&socket, &[r#"{"success":false,"err":"not now"}"#, YES, YES, YES]);
        let control = Control::new(socket.clone(), "x-g1".into());
        let told = async {
            control.let_go().await.unwrap();
            assert!(control.hold().await.is_err());
            // What was refused was not done.
            assert!(!control.is_still().unwrap());
            control.let_go().await.unwrap();
            control.hold().await.unwrap();
            control.hold().await.unwrap();
            assert!(control.is_still().unwrap());
            control.let_go().await.unwrap();
            control.let_go().await.unwrap();
            control.hold().await.unwrap();
        };
        assert_eq!(tokio::join!(kernel, told).0, ["Pause", "Pause", "Resume", "Pause"]);
    }

    #[tokio::test]
    async fn of_a_kernel_that_did_not_answer_nobody_knows_whether_its_guest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control");
        let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let control = Control::new(socket, "x-g1".into());
        assert!(tokio::time::timeout(Duration::from_millis(20), control.hold()).await.is_err());
        for told in [control.is_still().map(drop), control.hold().await, control.let_go().await] {
            assert!(told.unwrap_err().to_string().contains("did not answer"));
        }
    }

    #[tokio::test]
    async fn files_are_passed() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut kept = tempfile::tempfile().unwrap();
        let passed = kept.try_clone().unwrap();
        let kernel = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
            let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 4096];
            let mut into = [std::io::IoSliceMut::new(&mut bytes)];
            let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
            rustix::net::recvmsg(&stream, &mut into, &mut ancillary, flags).unwrap();
            let files: Vec<_> = ancillary
                .drain()
                .flat_map(|message| match message {
                    rustix::net::RecvAncillaryMessage::ScmRights(files) => files.collect::<Vec<_>>(),
                    _ => Vec::new(),
                })
                .collect();
            assert_eq!(files.len(), FILES);
            std::fs::File::from(files.into_iter().next_back().unwrap()).write_all(b"memory").unwrap();
            stream.write_all(br#"{"success":true}"#).unwrap();
        });
        let control = Control::new(socket, "x-g1".into());
        let other = tempfile::tempfile().unwrap();
        control.checkpoint([other.as_fd(), other.as_fd(), passed.as_fd()]).await.unwrap();
        kernel.join().unwrap();
        let mut text = String::new();
        kept.rewind().unwrap();
        kept.read_to_string(&mut text).unwrap();
        assert_eq!(text, "memory");
    }
}
