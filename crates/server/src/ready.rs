//! Telling whoever started us that we are ready, or why we are not: one line on a pipe.

use offshoot_api::v1::{READY_FD, StartReport};
use rustix::io::{FdFlags, fcntl_setfd};
use std::{
    fs::File,
    io::Write,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

/// The writing end of the starter's pipe.
#[derive(Debug, Default)]
pub struct ReadyPipe(Option<OwnedFd>);

impl ReadyPipe {
    /// Takes the descriptor named by `OFFSHOOT_READY_FD`, if there is one. Call it once, first thing in the
    /// process: the number means nothing later.
    pub fn from_environment() -> Self {
        let number = std::env::var(READY_FD).ok().and_then(|text| text.parse::<RawFd>().ok());
        Self(number.filter(|fd| *fd > 2).and_then(adopt))
    }

    /// Reports, once. A starter that no longer listens changes nothing for us.
    pub fn report(&mut self, report: &StartReport) {
        let Some(fd) = self.0.take() else { return };
        let mut line = serde_json::to_vec(report).expect("a report is plain data");
        line.push(b'\n');
        if let Err(error) = File::from(fd).write_all(&line) {
            tracing::debug!(%error, "nobody listens to how the start went");
        }
    }
}

impl From<OwnedFd> for ReadyPipe {
    fn from(fd: OwnedFd) -> Self {
        Self(Some(fd))
    }
}

fn adopt(number: RawFd) -> Option<OwnedFd> {
    // A number that is not open is nobody's pipe; `/proc` says so without touching it.
    std::fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
    // SAFETY: the starter passed this descriptor to us for this purpose, so nobody else in this process owns
    // it; it is open, as just seen.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // Keepers are started by us and outlive us: they must not hold the starter's pipe open.
    fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn one_line_tells_how_it_went() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut pipe = ReadyPipe::from(OwnedFd::from(writer));
        let ready = StartReport::Ready { pid: 7, socket: "/s".into() };
        pipe.report(&ready);
        pipe.report(&ready);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{\"ready\":{\"pid\":7,\"socket\":\"/s\"}}\n");
        assert_eq!(serde_json::from_str::<StartReport>(&text).unwrap(), ready);
    }
}
