//! What gVisor's `runsc` does with a live state by itself: the peer of our forks and snapshots, in the same run and on
//! the same root file system. Its guest shares the host's CPU, ours is emulated where there is no KVM.
//!
//! A sandbox's standard input and output are one socket pair, so that a restored copy is reached as its source was.

use crate::{
    Plan,
    sample::{Row, Unit, ms},
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Runs each line it reads, and prints what the line printed, on one line.
const AGENT: &str = "import contextlib, io, sys\n\
                     for line in sys.stdin:\n    \
                         buf = io.StringIO()\n    \
                         with contextlib.redirect_stdout(buf): exec(line, globals())\n    \
                         sys.stdout.write(buf.getvalue().strip() + '\\n'); sys.stdout.flush()\n";

pub fn measure(plan: &Plan, root: &Path, rows: &mut Vec<Row>) -> Result<()> {
    let dir = tempfile::tempdir().context("make a directory for gVisor")?;
    let runsc = Runsc::new(dir.path(), root)?;
    let mut source = runsc.sandbox("source", None)?;
    source.run("import random; x = 41; print(x)")?;
    let mut live = Vec::new();
    for _ in 0..plan.samples(100) {
        let began = Instant::now();
        source.run("print(x)")?;
        live.push(ms(began));
    }
    rows.push(Row::new("peers: gVisor, `print(x)` in a live interpreter", Unit::Ms, live, 0));
    for mib in [0_u32, 10, 100] {
        source.run(&format!("y = random.randbytes({mib} << 20); print(x)"))?;
        let image = dir.path().join(format!("image{mib}"));
        let (mut saved, mut forked) = (Vec::new(), Vec::new());
        for sample in 0..plan.samples(15) {
            // One image is kept; each of the others is removed again.
            drop(fs::remove_dir_all(&image));
            let began = Instant::now();
            runsc.checkpoint("source", &image)?;
            saved.push(ms(began));
            let began = Instant::now();
            let mut fork = runsc.sandbox(&format!("fork{mib}-{sample}"), Some(&image))?;
            let out = fork.run("x += 1; print(x)")?;
            ensure!(out == "42", "the copy answered {out:?}");
            forked.push(ms(began));
            fork.end();
        }
        let what = |part| format!("peers: gVisor, {part}, {mib} MiB written");
        rows.push(Row::new(what("checkpoint of a running sandbox"), Unit::Ms, saved, 0));
        rows.push(Row::new(what("copy of a checkpoint to first result"), Unit::Ms, forked, 0));
    }
    source.end();
    Ok(())
}

struct Runsc {
    state: PathBuf,
    bundle: PathBuf,
}

impl Runsc {
    fn new(scratch: &Path, root: &Path) -> Result<Self> {
        let bundle = scratch.join("live");
        fs::create_dir(&bundle).context("make the OCI bundle")?;
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "root": { "path": root, "readonly": false },
            "hostname": "box",
            "process": { "terminal": false, "user": { "uid": 0, "gid": 0 }, "cwd": "/", "noNewPrivileges": true,
                         "args": ["/usr/bin/python3", "-u", "-c", AGENT], "env": ["PATH=/usr/bin:/bin"] },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" },
                       { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" }],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                                      { "type": "mount" }] }
        });
        fs::write(bundle.join("config.json"), config.to_string()).context("write the OCI bundle")?;
        Ok(Self { state: scratch.join("runsc-live"), bundle })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("runsc");
        command.arg("--root").arg(&self.state);
        command.args(["--network=none", "--ignore-cgroups", "--platform=systrap", "--overlay2=root:memory"]);
        command
    }

    /// A new sandbox, or one that continues from an image.
    fn sandbox(&self, name: &str, image: Option<&Path>) -> Result<Sandbox<'_>> {
        let (ours, theirs) = UnixStream::pair().context("make a channel")?;
        ours.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
        let also = theirs.try_clone().context("share the channel")?;
        let mut command = self.command();
        match image {
            Some(image) => command.arg("restore").arg("-image-path").arg(image),
            None => command.arg("run"),
        };
        command.arg("-bundle").arg(&self.bundle).arg(name);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(OwnedFd::from(also)));
        let process = command.stderr(Stdio::null()).spawn().context("start runsc")?;
        let reader = BufReader::new(ours.try_clone().context("share the channel")?);
        Ok(Sandbox { runsc: self, name: name.to_owned(), process, channel: ours, reader })
    }

    fn checkpoint(&self, name: &str, image: &Path) -> Result<()> {
        fs::create_dir(image).context("make the image's directory")?;
        let mut command = self.command();
        command
            .args(["checkpoint", "-leave-running", "-compression", "none", "-image-path"])
            .arg(image)
            .arg(name);
        let out = command.output().context("start runsc checkpoint")?;
        ensure!(out.status.success(), "runsc checkpoint: {}", String::from_utf8_lossy(&out.stderr).trim());
        Ok(())
    }
}

struct Sandbox<'a> {
    runsc: &'a Runsc,
    name: String,
    process: Child,
    channel: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Sandbox<'_> {
    fn run(&mut self, line: &str) -> Result<String> {
        writeln!(self.channel, "{line}").context("write to the sandbox")?;
        let mut out = String::new();
        self.reader.read_line(&mut out).with_context(|| format!("no answer of sandbox {}", self.name))?;
        Ok(out.trim_end().to_owned())
    }

    fn end(&mut self) {
        for verb in [["kill", self.name.as_str(), "KILL"], ["delete", "-force", self.name.as_str()]] {
            // Ended by itself is as good.
            drop(self.runsc.command().args(verb).output());
        }
        drop(self.process.wait());
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            self.end();
        }
    }
}
