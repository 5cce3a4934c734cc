//! The state machine of [`super`] over one pipe: buffers, epochs, the polls. Memory is two fixed buffers.

use super::{
    EpochEnd, Pipe,
    chunk::{self, CONTROL_CHUNK, Chunk, Decoded, Epoch, HEADER, MAX_CHUNK},
};
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

/// Room for two chunks: one being read out, the next one arriving.
const INPUT: usize = 2 * MAX_CHUNK;
/// Bytes a guest may send within an epoch that form no chunk. Skipping is not free: each false magic may cost
/// one CRC over a chunk.
const GARBAGE_LIMIT: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Host,
    Guest,
}

pub(super) struct Link {
    pipe: Box<dyn Pipe>,
    role: Role,
    state: State,
    input: Input,
    output: Output,
}

#[derive(Debug)]
enum State {
    /// Nothing agreed: the host is `Syncing`, the guest `Hunting`.
    Between,
    InEpoch(Current),
    Ended {
        epoch: Epoch,
        reason: EpochEnd,
        /// Guest: the epoch that ended it, to be accepted next.
        next: Option<Epoch>,
    },
}

#[derive(Debug)]
struct Current {
    epoch: Epoch,
    next_in: u32,
    next_out: u32,
    /// Guest: the host has sent data, so it saw the echo; more syncs of this epoch are old ones in the pipe.
    confirmed: bool,
    /// Bytes of an already verified payload at the start of the input.
    payload: usize,
    garbage: usize,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("role", &self.role)
            .field("state", &self.state)
            .field("buffered", &self.input.bytes().len())
            .field("unsent", &self.output.unsent())
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(pipe: Box<dyn Pipe>, role: Role) -> Self {
        Self { pipe, role, state: State::Between, input: Input::new(), output: Output::default() }
    }

    /// Why `epoch` is over; `None` while it lasts.
    pub(super) fn end_of(&self, epoch: Epoch) -> Option<EpochEnd> {
        match &self.state {
            State::InEpoch(current) if current.epoch == epoch => None,
            State::Ended { epoch: ended, reason, .. } if *ended == epoch => Some(reason.clone()),
            State::Between | State::InEpoch(_) | State::Ended { .. } => Some(EpochEnd::NewEpoch),
        }
    }

    /// Bytes written by the session that the pipe has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.output.unsent()
    }

    // ------------------------------------------------------------ host: Syncing

    /// Leaves whatever was and queues the first `sync(epoch)`.
    pub(super) fn begin_sync(&mut self, epoch: Epoch) {
        let cut = self.output.clear();
        self.state = State::Between;
        self.input.clear();
        self.output.queue_sync(epoch, cut);
    }

    /// Queues another `sync(epoch)` behind padding, unless the pipe has not even taken the last one.
    pub(super) fn repeat_sync(&mut self, epoch: Epoch) {
        if self.output.unsent() == 0 {
            self.output.queue_sync(epoch, true);
        }
    }

    /// Ready once the guest's echo was read; everything before it is dropped.
    pub(super) fn poll_echo(&mut self, cx: &mut Context<'_>, epoch: Epoch) -> Poll<Result<(), EpochEnd>> {
        let echo = chunk::echo(epoch);
        loop {
            if let Some(at) = find(self.input.bytes(), &echo) {
                self.input.consume(at + echo.len());
                self.enter(epoch);
                return Poll::Ready(Ok(()));
            }
            // The echo may have begun at the end of what was read.
            let useless = self.input.bytes().len().saturating_sub(echo.len() - 1);
            self.input.consume(useless);
            ready!(self.poll_fill(cx))?;
        }
    }

    // ------------------------------------------------------------ guest: Hunting

    /// Ready with the next epoch; its echo is queued. What the old one had not sent is dropped.
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Epoch, EpochEnd>> {
        loop {
            let last = match &mut self.state {
                State::Between => None,
                State::InEpoch(current) => {
                    // Given up by our own side; the rest of a payload begun is of no use to anyone.
                    let payload = current.payload;
                    self.input.consume(payload);
                    self.end(EpochEnd::NewEpoch, None);
                    continue;
                }
                State::Ended { next: Some(next), .. } => {
                    let next = *next;
                    self.follow(next);
                    return Poll::Ready(Ok(next));
                }
                State::Ended { epoch, .. } => Some(*epoch),
            };
            match chunk::decode(self.input.bytes()) {
                Decoded::Skip(bytes) => self.input.consume(bytes),
                Decoded::Incomplete => ready!(self.poll_fill(cx))?,
                Decoded::Chunk(chunk) => {
                    self.input.consume(chunk.size());
                    match chunk {
                        // A token is used once: the last epoch's is a repetition that lay in the pipe.
                        Chunk::Sync(epoch) if Some(epoch) != last => {
                            self.follow(epoch);
                            return Poll::Ready(Ok(epoch));
                        }
                        Chunk::Sync(_) | Chunk::Echo(_) | Chunk::Data { .. } => {}
                    }
                }
            }
        }
    }

    fn follow(&mut self, epoch: Epoch) {
        self.output.clear();
        self.output.queue_echo(epoch);
        self.enter(epoch);
    }

    // ------------------------------------------------------------ both: InEpoch

    fn enter(&mut self, epoch: Epoch) {
        self.state = State::InEpoch(Current {
            epoch,
            next_in: 0,
            next_out: 0,
            confirmed: false,
            payload: 0,
            garbage: 0,
        });
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        epoch: Epoch,
        into: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), EpochEnd>> {
        loop {
            let current = match &mut self.state {
                State::InEpoch(current) if current.epoch == epoch => current,
                _ => return Poll::Ready(Err(self.end_of(epoch).unwrap_or(EpochEnd::NewEpoch))),
            };
            if current.payload > 0 {
                let count = current.payload.min(into.remaining());
                into.put_slice(&self.input.bytes()[..count]);
                current.payload -= count;
                self.input.consume(count);
                return Poll::Ready(Ok(()));
            }
            match chunk::decode(self.input.bytes()) {
                Decoded::Skip(bytes) => {
                    current.garbage += bytes;
                    self.input.consume(bytes);
                    if self.role == Role::Host && current.garbage > GARBAGE_LIMIT {
                        return Poll::Ready(Err(self.end(EpochEnd::Garbage { limit: GARBAGE_LIMIT }, None)));
                    }
                }
                Decoded::Incomplete => match ready!(self.poll_fill(cx)) {
                    Ok(()) => {}
                    Err(end) => return Poll::Ready(Err(self.end(end, None))),
                },
                Decoded::Chunk(chunk) => {
                    if let Err((end, next)) = self.on_chunk(chunk) {
                        return Poll::Ready(Err(self.end(end, next)));
                    }
                }
            }
        }
    }

    /// Takes a verified chunk off the input, or its header if the payload is to be read.
    fn on_chunk(&mut self, chunk: Chunk) -> Result<(), (EpochEnd, Option<Epoch>)> {
        let State::InEpoch(current) = &mut self.state else { return Ok(()) };
        match chunk {
            Chunk::Data { tag, sequence, length } if tag == current.epoch.tag() => {
                current.confirmed = true;
                match sequence.wrapping_sub(current.next_in) {
                    0 => {
                        self.input.consume(HEADER);
                        current.next_in = current.next_in.wrapping_add(1);
                        current.payload = length;
                    }
                    ahead if ahead < u32::MAX / 2 => {
                        return Err((EpochEnd::Gap { expected: current.next_in, got: sequence }, None));
                    }
                    _behind => self.input.consume(chunk.size()),
                }
                return Ok(());
            }
            Chunk::Sync(epoch) if self.role == Role::Guest => {
                self.input.consume(chunk.size());
                if epoch != current.epoch {
                    return Err((EpochEnd::NewEpoch, Some(epoch)));
                }
                if !current.confirmed {
                    self.output.queue_echo(epoch);
                }
            }
            Chunk::Sync(_) | Chunk::Echo(_) | Chunk::Data { .. } => self.input.consume(chunk.size()),
        }
        Ok(())
    }

    fn end(&mut self, reason: EpochEnd, next: Option<Epoch>) -> EpochEnd {
        if let State::InEpoch(current) = &self.state {
            self.state = State::Ended { epoch: current.epoch, reason: reason.clone(), next };
            // A chunk never begun is dropped; one begun is completed, so that the peer stays aligned.
            self.output.drop_unsealed();
        }
        reason
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        epoch: Epoch,
        bytes: &[u8],
    ) -> Poll<Result<usize, EpochEnd>> {
        if let Some(end) = self.end_of(epoch) {
            return Poll::Ready(Err(end));
        }
        if self.output.is_sealed()
            && let Err(end) = ready!(self.poll_push(cx))
        {
            return Poll::Ready(Err(self.end(end, None)));
        }
        let taken = self.output.append(bytes);
        if self.output.is_full()
            && let Poll::Ready(Err(end)) = self.poll_push(cx)
        {
            return Poll::Ready(Err(self.end(end, None)));
        }
        Poll::Ready(Ok(taken))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, epoch: Epoch) -> Poll<Result<(), EpochEnd>> {
        if let Some(end) = self.end_of(epoch) {
            return Poll::Ready(Err(end));
        }
        match ready!(self.poll_push(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(end) => Poll::Ready(Err(self.end(end, None))),
        }
    }

    // ------------------------------------------------------------ the pipe

    /// Ready when everything queued has gone out.
    pub(super) fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EpochEnd>> {
        if self.output.unsent() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let State::InEpoch(current) = &mut self.state
                && self.output.needs_seal()
            {
                self.output.seal(current.epoch, current.next_out);
                current.next_out = current.next_out.wrapping_add(1);
            }
            let next = self.output.next_write();
            if next.is_empty() {
                return Pin::new(&mut self.pipe).poll_flush(cx).map_err(failed);
            }
            let count = ready!(Pin::new(&mut self.pipe).poll_write(cx, next)).map_err(failed)?;
            if count == 0 {
                return Poll::Ready(Err(EpochEnd::PipeClosed));
            }
            self.output.wrote(count);
        }
    }

    /// Reads more input, after pushing out what is queued: the peer may be waiting for just that.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EpochEnd>> {
        if let Poll::Ready(Err(end)) = self.poll_push(cx) {
            return Poll::Ready(Err(end));
        }
        let mut room = ReadBuf::new(self.input.room());
        ready!(Pin::new(&mut self.pipe).poll_read(cx, &mut room)).map_err(failed)?;
        let count = room.filled().len();
        if count == 0 {
            return Poll::Ready(Err(EpochEnd::PipeClosed));
        }
        self.input.end += count;
        Poll::Ready(Ok(()))
    }
}

fn failed(error: io::Error) -> EpochEnd {
    EpochEnd::Pipe { kind: error.kind(), message: error.to_string() }
}

fn find(haystack: &[u8], needle: &[u8; CONTROL_CHUNK]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == needle[0]) {
        from += at;
        if haystack[from..].starts_with(needle) {
            return Some(from);
        }
        from += 1;
    }
    None
}

/// A sliding window over a fixed buffer.
struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    fn new() -> Self {
        Self { buffer: vec![0; INPUT].into_boxed_slice(), start: 0, end: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "consumed more than was read");
        if self.start == self.end {
            self.clear();
        }
    }

    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Never empty: an incomplete chunk is shorter than `MAX_CHUNK`, half of the buffer.
    fn room(&mut self) -> &mut [u8] {
        if self.end > INPUT - MAX_CHUNK {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }
}

/// What is on its way to the pipe: control chunks first, then the one data chunk being collected or written.
#[derive(Debug, Default)]
struct Output {
    control: Vec<u8>,
    control_sent: usize,
    /// Room for the header, then the payload. Empty, or longer than a header.
    chunk: Vec<u8>,
    chunk_sent: usize,
    sealed: bool,
}

impl Output {
    /// Drops everything; whether a chunk was cut in the middle.
    fn clear(&mut self) -> bool {
        let cut = self.chunk_sent > 0 || self.control_sent > 0;
        self.control.clear();
        self.chunk.clear();
        (self.control_sent, self.chunk_sent, self.sealed) = (0, 0, false);
        cut
    }

    fn drop_unsealed(&mut self) {
        if !self.sealed {
            self.chunk.clear();
        }
    }

    fn queue_sync(&mut self, epoch: Epoch, padded: bool) {
        if padded {
            self.control.resize(self.control.len() + MAX_CHUNK, 0);
        }
        self.control.extend_from_slice(&chunk::sync(epoch));
    }

    /// One echo answers any number of syncs.
    fn queue_echo(&mut self, epoch: Epoch) {
        if self.control.is_empty() {
            self.control.extend_from_slice(&chunk::echo(epoch));
        }
    }

    fn append(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        if self.chunk.is_empty() {
            self.chunk.reserve(MAX_CHUNK);
            self.chunk.resize(HEADER, 0);
        }
        let count = bytes.len().min(MAX_CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        count
    }

    fn is_sealed(&self) -> bool {
        self.sealed
    }

    fn is_full(&self) -> bool {
        self.chunk.len() == MAX_CHUNK
    }

    fn needs_seal(&self) -> bool {
        !self.sealed && !self.chunk.is_empty()
    }

    fn seal(&mut self, epoch: Epoch, sequence: u32) {
        chunk::seal_data(&mut self.chunk, epoch, sequence);
        self.sealed = true;
    }

    /// A chunk begun is finished first, so that the peer stays aligned.
    fn next_write(&self) -> &[u8] {
        let next = if self.control.is_empty() || self.chunk_sent > 0 {
            &self.chunk[self.chunk_sent..]
        } else {
            &self.control[self.control_sent..]
        };
        &next[..next.len().min(MAX_CHUNK)]
    }

    fn wrote(&mut self, count: usize) {
        if self.control.is_empty() || self.chunk_sent > 0 {
            self.chunk_sent += count;
            if self.chunk_sent == self.chunk.len() {
                self.chunk.clear();
                (self.chunk_sent, self.sealed) = (0, false);
            }
        } else {
            self.control_sent += count;
            if self.control_sent == self.control.len() {
                // Padding is rare; its 32 KiB are given back.
                self.control = Vec::new();
                self.control_sent = 0;
            }
        }
    }

    fn unsent(&self) -> usize {
        self.control.len() - self.control_sent + self.chunk.len() - self.chunk_sent
    }
}
