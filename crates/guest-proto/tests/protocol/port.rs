//! A virtio-serial port: the guest's end stays, the host's end can be closed and opened again at any moment, and
//! what is on its way is lost then.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As the real one: a longer write is cut.
const WRITE: usize = 32 * 1024;

#[derive(Default)]
struct Lane {
    bytes: VecDeque<u8>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Default)]
struct State {
    to_guest: Lane,
    to_host: Lane,
    /// Which opening of the host's end is valid.
    opening: u64,
    /// Bytes that passed to the host, ever.
    passed: u64,
    /// Writes of the guest, ever.
    writes: u64,
    /// The guest's CPUs are stopped: nothing is read or written there.
    paused: bool,
}

#[derive(Clone)]
pub struct Port {
    state: Arc<Mutex<State>>,
    capacity: usize,
}

pub struct GuestEnd(Port);
pub struct HostEnd(Port, u64);

impl Port {
    pub fn new(capacity: usize) -> (Self, GuestEnd) {
        let port = Self { state: Arc::default(), capacity };
        (port.clone(), GuestEnd(port))
    }

    /// Closes the host's end if it is open, loses what is on its way, and opens it anew.
    pub fn open(&self) -> HostEnd {
        let mut state = self.state.lock().unwrap();
        state.opening += 1;
        state.to_guest.bytes.clear();
        state.to_host.bytes.clear();
        let wakers = [
            state.to_guest.reader.take(),
            state.to_guest.writer.take(),
            state.to_host.reader.take(),
            state.to_host.writer.take(),
        ];
        let opening = state.opening;
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
        HostEnd(self.clone(), opening)
    }

    /// Stops the guest's side, or lets it go on.
    pub fn pause(&self, paused: bool) {
        let mut state = self.state.lock().unwrap();
        state.paused = paused;
        let wakers = [state.to_guest.reader.take(), state.to_host.writer.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    pub fn waiting_for_guest(&self) -> usize {
        self.state.lock().unwrap().to_guest.bytes.len()
    }

    pub fn writes_of_guest(&self) -> u64 {
        self.state.lock().unwrap().writes
    }

    pub fn passed_to_host(&self) -> u64 {
        self.state.lock().unwrap().passed
    }
}

impl Lane {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = self.bytes.len().min(into.remaining());
        for byte in self.bytes.drain(..count) {
            into.put_slice(&[byte]);
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, capacity: usize, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let room = capacity - self.bytes.len();
        if room == 0 {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = bytes.len().min(room).min(WRITE);
        self.bytes.extend(&bytes[..count]);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncRead for GuestEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state.lock().unwrap();
        if state.paused {
            state.to_guest.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.to_guest.poll_read(cx, into)
    }
}

impl AsyncWrite for GuestEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let capacity = self.0.capacity;
        let mut state = self.0.state.lock().unwrap();
        if state.paused {
            state.to_host.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.writes += 1;
        state.to_host.poll_write(cx, capacity, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl HostEnd {
    fn valid<'a>(&self, state: &'a mut State) -> io::Result<&'a mut State> {
        if state.opening == self.1 { Ok(state) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }
}

impl AsyncRead for HostEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state.lock().unwrap();
        let state = self.valid(&mut state)?;
        let before = into.filled().len();
        let polled = state.to_host.poll_read(cx, into);
        state.passed += (into.filled().len() - before) as u64;
        polled
    }
}

impl AsyncWrite for HostEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let capacity = self.0.capacity;
        let mut state = self.0.state.lock().unwrap();
        self.valid(&mut state)?.to_guest.poll_write(cx, capacity, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
