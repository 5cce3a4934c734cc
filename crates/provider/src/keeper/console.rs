//! The guest's serial console: into a log of bounded size, at a bounded rate, watched for last words.
//!
//! ```text
//! guest ttyS0 --> VMM --socket--> [rate] --> console.log (+ .1)
//!                                    \--> lines --> a kernel panic, a fatal failure of the agent
//! ```
//! When the guest writes faster than the rate, the socket fills up and the guest's own console waits. Nothing
//! here grows with what the guest does.

use super::log::RotatingFile;
use std::{
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::Instant,
};

/// Of each of the two files.
const LOG_LIMIT: u64 = 1024 * 1024;
/// What a guest may write at once; a boot with every message is a tenth of it.
const BURST: f64 = 1024.0 * 1024.0;
/// Bytes per second after that.
const RATE: f64 = 256.0 * 1024.0;
/// A line is looked at up to this length.
const LINE: usize = 512;
const TAIL_LINES: usize = 30;
const TAIL_BYTES: u64 = 16 * 1024;

/// Substrings by which a line is known as the guest's last words.
const LAST_WORDS: [&str; 2] = ["Kernel panic - not syncing", "offshoot-guest: fatal"];

/// Finds last words in a stream of bytes, holding one line at most.
#[derive(Debug, Default)]
struct Scanner {
    line: Vec<u8>,
}

impl Scanner {
    fn feed(&mut self, data: &[u8]) -> Option<String> {
        let mut found = None;
        for byte in data {
            if *byte == b'\n' {
                found = found.or_else(|| self.judge());
                self.line.clear();
            } else if self.line.len() < LINE {
                self.line.push(*byte);
            }
        }
        // A panic is the end: its line may never be finished.
        found.or_else(|| self.judge())
    }

    fn judge(&self) -> Option<String> {
        let text = printable(&self.line);
        LAST_WORDS.iter().any(|words| text.contains(words)).then_some(text)
    }
}

/// Copies the console until the VMM closes it. The first last words are put into `last_words`.
pub(crate) async fn drain(
    console: impl AsyncRead + Unpin,
    log: &Path,
    last_words: Arc<Mutex<Option<String>>>,
) -> io::Result<()> {
    drain_and_keep(console, log, last_words, |_| {}).await
}

/// As [`drain`], for a stream that somebody else looks at, too.
pub(crate) async fn drain_and_keep(
    mut console: impl AsyncRead + Unpin,
    log: &Path,
    last_words: Arc<Mutex<Option<String>>>,
    mut keep: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut log = RotatingFile::open(log, LOG_LIMIT)?;
    let mut scanner = Scanner::default();
    let mut buffer = vec![0; 16 * 1024];
    let (mut allowance, mut refilled) = (BURST, Instant::now());
    loop {
        let length = console.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let data = &buffer[..length];
        keep(data);
        if let Some(line) = scanner.feed(data)
            && let Ok(mut words) = last_words.lock()
        {
            // A panic line may arrive in pieces: the longer reading of the same line wins.
            match &mut *words {
                Some(known) if !line.starts_with(known.as_str()) => {}
                words => *words = Some(line),
            }
        }
        // A full disk must not end the VM: what cannot be logged is dropped.
        let _ = log.write(data);

        let now = Instant::now();
        allowance = (allowance + (now - refilled).as_secs_f64() * RATE).min(BURST) - length as f64;
        refilled = now;
        if allowance < 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(-allowance / RATE)).await;
        }
    }
}

/// The last lines of a console log, fit to be shown.
pub(crate) fn tail(log: &Path) -> Vec<String> {
    let mut data = Vec::new();
    let read = std::fs::File::open(log).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        file.take(TAIL_BYTES).read_to_end(&mut data)
    });
    // No console was written: there is nothing to show.
    if read.is_err() {
        return Vec::new();
    }
    last_lines(&data)
}

pub(crate) fn last_lines(data: &[u8]) -> Vec<String> {
    let lines: Vec<String> =
        data.split(|byte| *byte == b'\n').map(printable).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
}

/// One line without anything a terminal would act on.
fn printable(line: &[u8]) -> String {
    let line = &line[..line.len().min(LINE)];
    let text = String::from_utf8_lossy(line);
    text.trim_end().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn last_words_are_found_across_pieces_and_without_a_newline() {
        let mut scanner = Scanner::default();
        assert_eq!(scanner.feed(b"[ 0.1] Kernel pan"), None);
        let found = scanner.feed(b"ic - not syncing: VFS: Unable to mount root fs\r\n[ 0.2] more").unwrap();
        assert_eq!(found, "[ 0.1] Kernel panic - not syncing: VFS: Unable to mount root fs");
        assert_eq!(
            Scanner::default().feed(b"ok\noffshoot-guest: fatal: no root disk").unwrap(),
            "offshoot-guest: fatal: no root disk"
        );
        assert_eq!(Scanner::default().feed(b"offshoot-guest: ready\n"), None);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut scanner = Scanner::default();
        for _ in 0..1000 {
            scanner.feed(&[b'a'; 4096]);
        }
        assert!(scanner.line.len() <= LINE);
    }

    #[test]
    fn what_is_shown_holds_no_control_characters_and_few_lines() {
        let mut data = b"\x1b[31mred\x07\n\n".to_vec();
        data.extend(b"line\r\n".repeat(100));
        let lines = last_lines(&data);
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(last_lines(b"\x1b[31mred\x07\n"), ["\u{fffd}[31mred\u{fffd}"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_slowed_down_and_the_log_stays_small() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let (mut guest, host) = tokio::io::duplex(16 * 1024);
        let started = Instant::now();
        let flood = async move {
            for _ in 0..(8 * 64) {
                guest.write_all(&[b'x'; 16 * 1024]).await.unwrap();
            }
        };
        let (_, drained) = tokio::join!(flood, drain(host, &path, Arc::default()));
        drained.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(7 * 4 - 1), "{:?}", started.elapsed());
        let size = |name: &str| directory.path().join(name).metadata().unwrap().len();
        assert!(size("console.log") <= LOG_LIMIT && size("console.log.1") <= LOG_LIMIT);
    }
}
