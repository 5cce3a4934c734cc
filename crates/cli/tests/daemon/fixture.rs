//! A real daemon inside the test's process, with VMs in memory, and the real binary in front of it.

use offshoot_api::{
    socket::RuntimeBase,
    v1::{DaemonMode, StartReport},
};
use offshoot_image::{AgentBinary, AgentInfo, BlobDigest, FORMAT, Manifest, Part, Parts, Recipe, Store};
use offshoot_provider::fake::{FakeHost, FakeProvider};
use offshoot_server::{Providers, ReadyPipe, ServeOptions, serve};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Nothing here takes long; whatever takes this long hangs.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct World {
    dir: TempDir,
    daemon: Option<Runtime>,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("make a directory for the test");
        make_image(&dir.path().join("images"));
        let mut world = Self { dir, daemon: None };
        world.daemon = Some(world.start());
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self) -> Runtime {
        let (reader, writer) = std::io::pipe().expect("make a pipe");
        let providers = Providers::Given(vec![Arc::new(FakeProvider::new(FakeHost::default()))]);
        let mut options = ServeOptions::new(
            self.path("state"),
            self.path("images"),
            agent(),
            providers,
            DaemonMode::Explicit,
        );
        options.runtime = RuntimeBase { xdg_runtime_dir: Some(self.path("run")), uid: 0 };
        options.ready = ReadyPipe::from(OwnedFd::from(writer));
        let runtime = Runtime::new().expect("start a runtime");
        runtime.spawn(serve(options));
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).expect("the daemon reports");
        let report: StartReport = serde_json::from_str(&line).expect("a report is one line of JSON");
        assert!(matches!(report, StartReport::Ready { .. }), "{report:?}");
        runtime
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("OFFSHOOT_HOME", self.path("state"))
            .env("OFFSHOOT_IMAGES", self.path("images"))
            .env("OFFSHOOT_POOL", "0")
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Ended {
        let output = self.command(words).output().expect("the binary starts");
        Ended::new(words, output)
    }

    #[track_caller]
    pub fn run_with_input(&self, words: &[&str], input: &[u8]) -> Ended {
        let mut child = self.spawn(words);
        child.stdin.take().expect("a pipe").write_all(input).expect("the binary reads");
        Ended::new(words, child.wait_with_output().expect("the binary ends"))
    }

    #[track_caller]
    pub fn spawn(&self, words: &[&str]) -> Child {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the binary starts")
    }

    /// Waits until a verb's document satisfies the predicate.
    #[track_caller]
    pub fn until(&self, words: &[&str], holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let document = self.run(words).json();
            if holds(&document) {
                return document;
            }
            assert!(Instant::now() < deadline, "{words:?} did not get there: {document}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.shutdown_background();
        }
    }
}

/// SIGINT, as a terminal sends it.
pub fn interrupt(child: &Child) {
    let pid = Pid::from_child(child);
    kill_process(pid, Signal::INT).expect("the child is there");
}

/// What one command came to.
#[derive(Debug)]
pub struct Ended {
    line: String,
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    #[track_caller]
    pub fn new(words: &[&str], output: Output) -> Self {
        Self {
            line: words.join(" "),
            status: output.status.code().expect("it ends by itself"),
            stdout: String::from_utf8(output.stdout).expect("it speaks UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("it speaks UTF-8"),
        }
    }

    #[track_caller]
    pub fn exits(self, status: i32) -> Self {
        assert_eq!(self.status, status, "unexpected status of {self:#?}");
        self
    }

    #[track_caller]
    pub fn prints(self, stdout: &str) -> Self {
        assert_eq!(self.stdout, stdout, "unexpected output of `{}`", self.line);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not one JSON document ({error}): {self:#?}"))
    }
}

/// The smallest program that could be an agent: an ELF header with one program header.
fn agent() -> AgentBinary {
    let mut file = vec![0_u8; 64 + 56];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (file[18], file[32], file[54], file[56], file[64]) = (62, 64, 56, 1, 1);
    AgentBinary::new(file, "test").expect("it looks like a static program")
}

/// An image `base` whose parts are a few bytes each: no VM of these tests looks into them.
fn make_image(root: &Path) {
    Store::open(root).expect("make a store");
    let write = |path: PathBuf, bytes: &[u8]| fs::write(path, bytes).expect("write into the store");
    let blob = |bytes: &[u8]| {
        let digest = BlobDigest::of(bytes);
        write(root.join("blobs/sha256").join(digest.hex()), bytes);
        Part { digest, size: bytes.len() as u64 }
    };
    let recipe = Recipe::load("base").expect("it comes with us");
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
        packages: Vec::new(),
        modules: Vec::new(),
    };
    let digest = manifest.digest();
    blob(&manifest.to_bytes());
    write(root.join("images").join(digest.hex()), b"");
    write(root.join("tags/base"), digest.to_string().as_bytes());
}
