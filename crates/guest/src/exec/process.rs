//! One process with its streams, and the task that drives it.
//!
//! ```text
//!  Running --exit--> Draining --both streams at their end, or 200 ms and what is in the pipes--> Ended
//!     |                                                                                           ^
//!     `--timeout, Kill--> the tree is killed --exit--> Draining --tree empty----------------------'
//! ```
//! Output goes from the pipes into one [`Ring`] per stream. Any number of [`Attachment`]s read the rings, each at
//! its own offset. While one is attached to a host that speaks, the pipes are read only as far as the slowest
//! reader leaves room, so a process runs no faster than its output is taken. With none, reading goes on and the
//! oldest output is overwritten.
//!
//! Children that outlive the process (daemons) go on living, as with ssh, but do not delay its end: 200 ms
//! after the exit what is then in the pipes is taken, and the rest is cut off.

use super::{ring::Found, ring::Ring, stdin::Stdin, tree::Tree};
use crate::{presence::HostPresence, reaper::Exit, sys::AsyncFd};
use offshoot_guest_proto::message::{CHUNK, ExecEnd, ExitKind, OutputStream, PtySize};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    io::ErrorKind,
    mem::MaybeUninit,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::io::Interest;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep_until};

/// How long pipes held open by surviving children are read after the process' exit.
const DRAIN: Duration = Duration::from_millis(200);
/// How long the tree may take to die of SIGKILL before the end is reported without it.
const DEATH: Duration = Duration::from_secs(5);
/// How long a process that writes in small pieces is let write on, so that they travel together. The first piece
/// after a silence, and the last ones, never wait.
const GATHER: Duration = Duration::from_millis(1);
/// What a pipe holds by default.
const READ: usize = 64 * 1024;

#[derive(Debug)]
pub struct Process {
    pub id: [u8; 16],
    pub pid: i32,
    pub stdin: Stdin,
    state: Mutex<State>,
    /// Output or the end has come: for attachments.
    progress: watch::Sender<()>,
    /// An attachment has read or gone: for the driver.
    room: Notify,
}

#[derive(Debug)]
struct State {
    /// `None` once ended: what is kept for readers to come holds no descriptors.
    live: Option<Live>,
    rings: [Ring; 2],
    /// Offsets of each attachment, by its key.
    readers: Vec<(u64, [u64; 2])>,
    next_reader: u64,
    /// Of stdout and stderr together, still to be passed on.
    allowance: u64,
    truncated: bool,
    killed: Option<Killed>,
    /// The pid is no longer ours: no signal may go there.
    reaped: bool,
    end: Option<ExecEnd>,
}

/// What only a process that has not ended needs.
#[derive(Debug)]
struct Live {
    tree: Box<dyn Tree>,
    terminal: Option<Arc<AsyncFd>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    ByTimeout,
    ByRequest,
}

/// What the driver needs beside the process.
#[derive(Debug)]
pub struct Driver {
    pub exit: oneshot::Receiver<Exit>,
    pub started: std::time::Instant,
    pub timeout: Option<Duration>,
    pub stdout: Arc<AsyncFd>,
    pub stderr: Option<AsyncFd>,
    pub presence: Arc<HostPresence>,
    pub reaper_passes: watch::Receiver<u64>,
}

/// What an attachment gets next.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    Data { stream: OutputStream, offset: u64, data: Vec<u8> },
    Lost { stream: OutputStream, next_offset: u64 },
    Ended(ExecEnd),
}

const STREAMS: [OutputStream; 2] = [OutputStream::Stdout, OutputStream::Stderr];

impl Process {
    pub fn new(
        id: [u8; 16],
        pid: i32,
        tree: Box<dyn Tree>,
        stdin: Stdin,
        terminal: Option<Arc<AsyncFd>>,
        max_output: Option<u64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            pid,
            stdin,
            state: Mutex::new(State {
                live: Some(Live { tree, terminal }),
                rings: Default::default(),
                readers: Vec::new(),
                next_reader: 0,
                allowance: max_output.unwrap_or(u64::MAX),
                truncated: false,
                killed: None,
                reaped: false,
                end: None,
            }),
            progress: watch::Sender::new(()),
            room: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn end(&self) -> Option<ExecEnd> {
        self.lock().end
    }

    /// Bytes of output held for readers to come.
    pub fn held_output(&self) -> usize {
        self.lock().rings.iter().map(Ring::held).sum()
    }

    /// Bytes of output there have been, by stream.
    pub fn printed(&self) -> [u64; 2] {
        let state = self.lock();
        [0, 1].map(|stream| state.rings[stream].end())
    }

    pub fn forget_output(&self) {
        self.lock().rings.iter_mut().for_each(Ring::clear);
    }

    /// A reader of the output from these offsets on; beyond the end means from now on.
    pub fn attach(self: &Arc<Self>, offsets: [u64; 2]) -> Attachment {
        let mut state = self.lock();
        let key = state.next_reader;
        state.next_reader += 1;
        let offsets = [0, 1].map(|stream| offsets[stream].min(state.rings[stream].end()));
        state.readers.push((key, offsets));
        Attachment { key, progress: self.progress.subscribe(), process: Arc::clone(self), ended: false }
    }

    /// Sends a signal to the foreground process group of the terminal, else to the process' own group.
    pub fn signal(&self, number: i32) {
        let state = self.lock();
        if state.reaped {
            return;
        }
        let terminal = state.live.as_ref().and_then(|live| live.terminal.as_deref());
        let foreground = terminal.and_then(|fd| rustix::termios::tcgetpgrp(fd).ok());
        let own = Pid::from_raw(self.pid);
        // SAFETY-free and without effect for numbers that are no signals: the kernel refuses them.
        if let (Some(group), Some(signal)) = (foreground.or(own), Signal::from_named_raw(number)) {
            // A group that has ended meanwhile needs no signal.
            let _ended = kill_process_group(group, signal);
        }
    }

    /// SIGKILL to everything this exec has started, however it has detached itself.
    pub fn kill(&self) {
        self.kill_because(Killed::ByRequest);
    }

    fn kill_because(&self, cause: Killed) {
        let mut state = self.lock();
        let State { live: Some(live), killed, .. } = &mut *state else { return };
        killed.get_or_insert(cause);
        // A tree that is already empty cannot be killed again; the driver waits for it to be empty either way.
        drop(live.tree.kill(self.pid));
    }

    pub fn resize(&self, size: PtySize) {
        let state = self.lock();
        if let Some(Live { terminal: Some(terminal), .. }) = &state.live {
            // The terminal outlives its last reader: nothing to resize any more.
            let _gone = rustix::termios::tcsetwinsize(terminal, window(size));
        }
    }

    /// How many bytes of `stream` may be read from the process now.
    fn room(&self, stream: usize, presence: &HostPresence) -> usize {
        let state = self.lock();
        if presence.is_silent() {
            return READ;
        }
        let end = state.rings[stream].end();
        let unread = state.readers.iter().map(|(_, offsets)| end - offsets[stream]).max().unwrap_or(0);
        let unread = usize::try_from(unread).unwrap_or(usize::MAX);
        super::ring::CAPACITY.saturating_sub(unread).min(READ)
    }

    fn append(&self, stream: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let mut state = self.lock();
        let allowed = usize::try_from(state.allowance).unwrap_or(usize::MAX).min(data.len());
        state.allowance -= allowed as u64;
        state.truncated |= allowed < data.len();
        if allowed > 0 {
            state.rings[stream].write(&data[..allowed]);
            drop(state);
            self.progress.send_replace(());
        }
    }

    /// Drives the process to its end. Runs as a task of its own: the process does not depend on who watches it.
    pub async fn drive(self: Arc<Self>, driver: Driver) {
        let Driver { mut exit, started, timeout, stdout, stderr, presence, mut reaper_passes } = driver;
        let mut presence_changes = presence.changes();
        let mut streams = [Source::new(Some(Either::Shared(stdout))), Source::new(stderr.map(Either::Own))];
        let timeout = timeout.and_then(|after| Instant::from_std(started).checked_add(after));
        let mut timed_out = timeout.is_none();
        let mut exited: Option<Exit> = None;
        let mut cut = false;
        let mut gather_until: Option<Instant> = None;
        let mut buffer = Box::<[u8]>::new_uninit_slice(READ);
        loop {
            if exited.is_some() && streams.iter().all(Source::is_done) {
                break;
            }
            let gathering = gather_until.is_some() && exited.is_none();
            let rooms = [0, 1].map(|stream| self.room(stream, &presence));
            let [out, err] = &mut streams;
            let drain_ends = exited.as_ref().map(|exit| Instant::from_std(exit.at) + DRAIN);
            let mut readable = None;
            tokio::select! {
                result = &mut exit, if exited.is_none() => match result {
                    Ok(exit) => {
                        self.lock().reaped = true;
                        self.stdin.close();
                        exited = Some(exit);
                    }
                    // The reaper lives as long as the runtime.
                    Err(_) => return,
                },
                () = until(timeout), if !timed_out && exited.is_none() => {
                    timed_out = true;
                    self.kill_because(Killed::ByTimeout);
                }
                () = until(drain_ends), if exited.is_some() && !cut => {
                    cut = true;
                    out.cut();
                    err.cut();
                }
                () = out.readable(), if !gathering && out.wants(rooms[0]) => readable = Some(0),
                () = err.readable(), if !gathering && err.wants(rooms[1]) => readable = Some(1),
                () = until(gather_until), if gathering => gather_until = None,
                () = self.room.notified() => {}
                _ = presence_changes.changed() => {}
            }
            if let Some(stream) = readable {
                let data = streams[stream].read(&mut buffer, rooms[stream]);
                if !data.is_empty() && data.len() < READ {
                    gather_until = Some(Instant::now() + GATHER);
                }
                self.append(stream, data);
            }
        }
        drop((buffer, streams));
        let Some(exit) = exited else { return };
        let killed = self.lock().killed;
        if killed.is_some() {
            self.wait_until_empty(&mut reaper_passes).await;
        }
        let live = self.finish(&exit, killed, exit.at.duration_since(started));
        // Removing the cgroup is nothing a caller should wait for: let the announced end leave for the host first.
        tokio::task::yield_now().await;
        drop(live);
    }

    /// A tree that cannot be asked is taken as gone: its directory is removed only if that is true.
    fn is_populated(&self) -> bool {
        self.lock().live.as_ref().is_some_and(|live| live.tree.is_populated(self.pid).unwrap_or(false))
    }

    async fn wait_until_empty(&self, reaper_passes: &mut watch::Receiver<u64>) {
        let deadline = Instant::now() + DEATH;
        while self.is_populated() {
            tokio::select! {
                _ = reaper_passes.changed() => {}
                () = sleep_until(deadline) => return,
            }
        }
    }

    /// Announces the end; answers what is to be released.
    fn finish(&self, exit: &Exit, killed: Option<Killed>, wall: Duration) -> Option<Live> {
        let status = ExitStatus::from_raw(exit.reaped.status);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut state = self.lock();
        state.end = Some(ExecEnd {
            status: match (killed, status.code(), status.signal()) {
                (Some(Killed::ByTimeout), ..) => ExitKind::TimedOut,
                (_, Some(code), _) => ExitKind::Code(code),
                (_, None, signal) => ExitKind::Signal(signal.unwrap_or(0)),
            },
            truncated: state.truncated,
            wall_us: micros(wall),
            user_us: micros(exit.reaped.user),
            system_us: micros(exit.reaped.system),
        });
        let live = state.live.take();
        drop(state);
        self.progress.send_replace(());
        live
    }
}

pub fn window(size: PtySize) -> rustix::termios::Winsize {
    rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The reading end of one stream.
#[derive(Debug)]
struct Source {
    /// `None` once at its end.
    end: Option<Either>,
    /// After the cut: bytes that were in the pipe then and are still to be read.
    left: Option<usize>,
}

#[derive(Debug)]
enum Either {
    Own(AsyncFd),
    /// A terminal, which is also written to and resized.
    Shared(Arc<AsyncFd>),
}

impl Source {
    fn new(end: Option<Either>) -> Self {
        Self { end, left: None }
    }

    fn is_done(&self) -> bool {
        self.end.is_none()
    }

    fn wants(&self, room: usize) -> bool {
        self.end.is_some() && room > 0
    }

    fn close(&mut self) {
        self.end = None;
    }

    /// From now on only what is in the pipe already.
    fn cut(&mut self) {
        let Some(end) = &self.end else { return };
        let available = rustix::io::ioctl_fionread(end.fd()).unwrap_or(0);
        self.left = usize::try_from(available).ok().filter(|&left| left > 0);
        if self.left.is_none() {
            self.close();
        }
    }

    async fn readable(&self) {
        let Some(end) = &self.end else { return std::future::pending().await };
        // An error is met again, and judged, by the read.
        drop(end.fd().readable().await.map(|mut ready| ready.retain_ready()));
    }

    /// Takes at most `room` bytes that are there; closes at the end.
    fn read<'b>(&mut self, buffer: &'b mut [MaybeUninit<u8>], room: usize) -> &'b [u8] {
        let Some(end) = &self.end else { return &[] };
        let limit = room.min(buffer.len()).min(self.left.unwrap_or(usize::MAX));
        let buffer = &mut buffer[..limit];
        let outcome = end.fd().try_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, buffer)?.0));
        match outcome {
            Ok(data) if !data.is_empty() => {
                self.left = self.left.map(|left| left - data.len());
                if self.left == Some(0) {
                    self.close();
                }
                data
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => &[],
            // A terminal whose last user has left answers EIO: its end.
            _ => {
                self.close();
                &[]
            }
        }
    }
}

impl Either {
    fn fd(&self) -> &AsyncFd {
        match self {
            Self::Own(fd) => fd,
            Self::Shared(fd) => fd,
        }
    }
}

/// One reader of a process' output. Dropping it lets the process run on without it.
#[derive(Debug)]
pub struct Attachment {
    key: u64,
    process: Arc<Process>,
    progress: watch::Receiver<()>,
    ended: bool,
}

impl Attachment {
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// What comes next; `None` after the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Output> {
        loop {
            self.progress.borrow_and_update();
            if self.ended {
                return None;
            }
            if let Some(output) = self.take() {
                self.ended = matches!(output, Output::Ended(_));
                return Some(output);
            }
            // The sender is part of the process we hold.
            self.progress.changed().await.ok()?;
        }
    }

    fn take(&self) -> Option<Output> {
        let mut guard = self.process.lock();
        let state = &mut *guard;
        let (_, offsets) = state.readers.iter_mut().find(|(key, _)| *key == self.key)?;
        for (index, stream) in STREAMS.into_iter().enumerate() {
            let offset = offsets[index];
            match state.rings[index].read(offset, CHUNK) {
                Found::Nothing => {}
                Found::Lost { next_offset } => {
                    offsets[index] = next_offset;
                    return Some(Output::Lost { stream, next_offset });
                }
                Found::Data(data) => {
                    offsets[index] += data.len() as u64;
                    drop(guard);
                    self.process.room.notify_one();
                    return Some(Output::Data { stream, offset, data });
                }
            }
        }
        state.end.map(Output::Ended)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.process.lock().readers.retain(|(key, _)| *key != self.key);
        self.process.room.notify_one();
    }
}
