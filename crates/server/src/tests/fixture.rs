//! A daemon in a directory of its own, and what tests need around it.

use crate::{Listen, Providers, ReadyPipe, ServeError, ServeOptions, listener::Identify, serve};
use offshoot_api::{
    Client, ClientError,
    client::{ExecConnection, ExecEvent},
    socket::RuntimeBase,
    v1::{
        Change, CreateVm, DaemonMode, Ended, ErrorBody, ExecRequest, RunRequest, StartReport, StopDaemon,
        Stream, Vm,
    },
};
use offshoot_image::{AgentBinary, AgentInfo, BlobDigest, FORMAT, Manifest, Package, Part, Parts, Recipe};
use offshoot_provider::fake::{FakeHost, FakeProvider};
use offshoot_types::{ErrorCode, VmRef};
use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

/// Nothing here takes long; whatever takes this long hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that outlives a daemon.
pub struct Place {
    dir: TempDir,
    host: FakeHost,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_image(&dir.path().join("images"));
        Self { dir, host: FakeHost::default() }
    }

    /// What is under the daemon: to put faults into.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn host(&self) -> &FakeHost {
        &self.host
    }

    fn runtime(&self) -> RuntimeBase {
        RuntimeBase { xdg_runtime_dir: Some(self.dir.path().join("run")), uid: 0 }
    }

    pub fn socket(&self) -> PathBuf {
        fs::create_dir_all(self.state_dir()).unwrap();
        self.runtime().socket_path(&self.state_dir().canonicalize().unwrap())
    }

    pub fn client(&self) -> Client {
        Client::new(self.socket())
    }

    pub fn options(&self, mode: DaemonMode) -> ServeOptions {
        let providers = Providers::Given(vec![Arc::new(FakeProvider::new(self.host.clone()))]);
        let images = self.dir.path().join("images");
        let mut options = ServeOptions::new(self.state_dir(), images, agent(), providers, mode);
        options.runtime = self.runtime();
        options.drain = Duration::from_millis(500);
        options
    }

    /// Starts a daemon and waits until it says that it is ready.
    pub async fn start(&self, options: ServeOptions) -> Daemon {
        let (report, task) = self.launch(options).await;
        match report {
            StartReport::Ready { pid, .. } => assert_eq!(pid, std::process::id()),
            StartReport::Failed(problem) => panic!("the daemon did not start: {problem:?}"),
        }
        Daemon { client: self.client(), task }
    }

    /// Starts a daemon and returns what it reports.
    #[expect(clippy::disallowed_methods, reason = "the test waits for the daemon it starts")]
    pub async fn launch(
        &self,
        mut options: ServeOptions,
    ) -> (StartReport, JoinHandle<Result<(), ServeError>>) {
        let (reader, writer) = std::io::pipe().unwrap();
        options.ready = ReadyPipe::from(OwnedFd::from(writer));
        let task = tokio::spawn(serve(options));
        let line = spawn_blocking(|| {
            let mut line = String::new();
            BufReader::new(reader).read_line(&mut line).unwrap();
            line
        });
        let line = timeout(PATIENCE, line).await.expect("a report in time").unwrap();
        (serde_json::from_str(&line).expect("one line of JSON"), task)
    }
}

/// A running daemon.
pub struct Daemon {
    pub client: Client,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Daemon {
    /// An explicit daemon with defaults.
    pub async fn explicit(place: &Place) -> Self {
        place.start(place.options(DaemonMode::Explicit)).await
    }

    /// One that listens on a port of this host too.
    pub async fn on_a_port(place: &Place) -> (Self, SocketAddr) {
        let mut options = place.options(DaemonMode::Explicit);
        options.listen = Self::any_port();
        let daemon = place.start(options).await;
        let listen = daemon.client.daemon().await.unwrap().record.listen;
        (daemon, listen[0])
    }

    pub fn any_port() -> Vec<Listen> {
        vec![Listen::plain("127.0.0.1:0".parse().unwrap(), false).unwrap()]
    }

    /// One that takes everybody for this user.
    pub async fn for_stranger(place: &Place, uid: u32) -> Self {
        let mut options = place.options(DaemonMode::Explicit);
        options.identify = Identify::Fixed(uid);
        place.start(options).await
    }

    pub async fn stop(self) {
        let Self { client, task } = self;
        client.stop_daemon(&StopDaemon::default()).await.unwrap();
        drop(client);
        Self::ended(task).await;
    }

    /// Waits for a daemon that ends by itself.
    pub async fn end(self) {
        drop(self.client);
        Self::ended(self.task).await;
    }

    /// Gone as if killed: no line of its code runs any more.
    pub async fn vanish(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    async fn ended(task: JoinHandle<Result<(), ServeError>>) {
        timeout(PATIENCE, task).await.expect("the daemon ends in time").unwrap().unwrap();
    }

    /// Creates and boots a VM.
    pub async fn boot(&self, name: &str) -> Vm {
        let request = CreateVm { name: name.into(), start: true, ..CreateVm::default() };
        self.client.create(&request).await.unwrap().vm.unwrap()
    }

    /// Waits for a predicate on the list of VMs to hold, woken by events.
    pub async fn until_vms(&self, holds: impl Fn(&[Vm]) -> bool) {
        let wait = async {
            let mut after = 0;
            loop {
                if holds(&self.client.vms().await.unwrap().vms) {
                    return;
                }
                let query = offshoot_api::v1::EventQuery { after, wait_ms: Some(1000), limit: None };
                after = self.client.events(&query).await.unwrap().next_after;
            }
        };
        timeout(PATIENCE, wait).await.expect("the VMs get there in time");
    }
}

pub fn vm(name: &str) -> VmRef {
    name.parse().unwrap()
}

pub fn shell(script: &str) -> ExecRequest {
    ExecRequest { shell: Some(script.into()), ..ExecRequest::default() }
}

pub fn run(script: &str) -> RunRequest {
    RunRequest { exec: shell(script), ..RunRequest::default() }
}

pub fn patient() -> Change {
    Change::default()
}

/// What a process printed, and how it ended.
pub struct Followed {
    pub stdout: Vec<u8>,
    pub steps: Vec<String>,
    pub ended: Ended,
}

/// Follows a process to its end.
pub async fn follow(connection: &mut ExecConnection) -> Result<Followed, ClientError> {
    let (mut stdout, mut steps, mut end) = (Vec::new(), Vec::new(), None);
    let all = async {
        while let Some(event) = connection.events.next().await? {
            match event {
                ExecEvent::Output(Stream::Stdout, data) => stdout.extend_from_slice(&data),
                ExecEvent::Progress(step) => steps.push(format!("{} {:?}", step.step, step.state)),
                ExecEvent::Ended(ended) => end = Some(ended),
                ExecEvent::Output(Stream::Stderr, _)
                | ExecEvent::Started(_)
                | ExecEvent::Lost(_)
                | ExecEvent::Detached => {}
            }
        }
        Ok(())
    };
    timeout(PATIENCE, all).await.expect("the process ends in time")?;
    Ok(Followed { stdout, steps, ended: end.expect("an end") })
}

/// The daemon's own answer, which must have this code.
pub fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>, code: ErrorCode) -> ErrorBody {
    match result {
        Err(ClientError::Api(body)) => {
            assert_eq!(body.code, code, "{body:?}");
            *body
        }
        other => panic!("expected {code}, got {other:?}"),
    }
}

/// One request as raw HTTP/1.1 on a connection of its own, and the whole answer.
pub async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    head: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> String {
    let named = |name: &str| headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name));
    let host = if named("host") { "" } else { "host: x\r\n" };
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let request = format!(
        "{head} HTTP/1.1\r\n{host}{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

/// One request with JSON over TCP, and its status, headers and body.
pub async fn call(
    address: SocketAddr,
    head: &str,
    headers: &[(&str, &str)],
    body: &serde_json::Value,
) -> (u16, String, serde_json::Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let stream = TcpStream::connect(address).await.unwrap();
    let answer = exchange(stream, head, headers, &body).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let json = serde_json::from_str(body).unwrap_or(serde_json::Value::Null);
    (status, head.to_lowercase(), json)
}

/// The smallest program that could be an agent: an ELF header with one program header.
fn agent() -> AgentBinary {
    let mut file = vec![0_u8; 64 + 56];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (file[18], file[32], file[54], file[56], file[64]) = (62, 64, 56, 1, 1);
    AgentBinary::new(file, "test").unwrap()
}

/// An image `base` whose parts are a few bytes each: no VM of these tests looks into them.
fn make_image(root: &Path) {
    offshoot_image::Store::open(root).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = BlobDigest::of(bytes);
        fs::write(root.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        Part { digest, size: bytes.len() as u64 }
    };
    let recipe = Recipe::load("base").unwrap();
    let manifest = Manifest {
        format: FORMAT,
        arch: "x86_64".into(),
        created: jiff::Timestamp::UNIX_EPOCH,
        offshoot: "test".into(),
        default_memory: recipe.memory.0,
        kernel_release: "6.1.0-test".into(),
        agent: AgentInfo { version: "test".into(), digest: agent().digest() },
        parts: Parts {
            kernel: blob(b"kernel"),
            initramfs: blob(b"initramfs"),
            root: blob(b"root"),
            disk: blob(&[0; 4096]),
        },
        recipe,
        method: BlobDigest::of(b"test"),
        packages: Vec::<Package>::new(),
        modules: Vec::new(),
    };
    let digest = manifest.digest();
    blob(&manifest.to_bytes());
    fs::write(root.join("images").join(digest.hex()), "").unwrap();
    fs::write(root.join("tags/base"), digest.to_string()).unwrap();
}
