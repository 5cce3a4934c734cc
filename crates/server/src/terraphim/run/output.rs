//! What a program writes: told as it comes, and kept up to a bound.

use super::Listener;
use crate::{characters::whole_characters, terraphim::settings::INLINE};

/// The beginning of one stream.
#[derive(Debug, Default)]
pub struct Kept {
    head: Vec<u8>,
    dropped: u64,
    /// Bytes at the end of the last piece that are not a whole character yet.
    tail: Vec<u8>,
}

impl Kept {
    fn push(&mut self, data: &[u8]) {
        let room = INLINE - self.head.len();
        let (kept, rest) = data.split_at(data.len().min(room));
        self.head.extend_from_slice(kept);
        self.dropped += rest.len() as u64;
    }

    /// Bytes that the text does not have.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The text, and where the rest of it is.
    pub fn text(&self, execution: &str) -> String {
        let mut head = self.head.as_slice();
        // A character that the bound cuts in two is left out with what follows.
        if self.dropped > 0
            && let Err(error) = std::str::from_utf8(head)
            && error.error_len().is_none()
        {
            head = &head[..error.valid_up_to()];
        }
        let text = String::from_utf8_lossy(head);
        match self.dropped {
            0 => text.into_owned(),
            bytes => format!(
                "{text}\n[... {bytes} more bytes are in the history of this execution, {execution} ...]\n"
            ),
        }
    }
}

/// Both streams.
#[derive(Debug, Default)]
pub struct Outputs {
    pub stdout: Kept,
    pub stderr: Kept,
}

impl Outputs {
    pub async fn stdout(&mut self, data: &[u8], listener: &Listener) {
        take(&mut self.stdout, "stdout", data, listener).await;
    }

    pub async fn stderr(&mut self, data: &[u8], listener: &Listener) {
        take(&mut self.stderr, "stderr", data, listener).await;
    }

    /// What ended in the middle of a character is told too.
    pub async fn end(&mut self, listener: &Listener) {
        for (kept, name) in [(&mut self.stdout, "stdout"), (&mut self.stderr, "stderr")] {
            let rest = std::mem::take(&mut kept.tail);
            listener.output(name, String::from_utf8_lossy(&rest).into_owned()).await;
        }
    }
}

async fn take(kept: &mut Kept, name: &'static str, data: &[u8], listener: &Listener) {
    kept.push(data);
    kept.tail.extend_from_slice(data);
    let text = whole_characters(&mut kept.tail);
    listener.output(name, text).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn both_streams_are_told_whole_and_kept_up_to_the_bound() {
        let (sender, mut said) = mpsc::channel(64);
        let listener = Listener { sender: Some(sender), block: Some(3) };
        let mut outputs = Outputs::default();
        let all = "é".repeat(INLINE);
        for piece in all.as_bytes().chunks(10_001) {
            outputs.stdout(piece, &listener).await;
        }
        outputs.stderr(b"a\xff", &listener).await;
        outputs.end(&listener).await;
        drop(listener);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        while let Some(said) = said.recv().await {
            assert_eq!((said.kind, said.data["block_index"].as_u64()), ("execution_output", Some(3)));
            let text = said.data["output"].as_str().unwrap();
            match said.data["stream"].as_str() {
                Some("stdout") => stdout.push_str(text),
                _ => stderr.push_str(text),
            }
        }
        assert_eq!((stdout.as_str(), stderr.as_str()), (all.as_str(), "a\u{fffd}"));
        let text = outputs.stdout.text("x1");
        assert_eq!(outputs.stdout.dropped(), INLINE as u64);
        assert!(
            text.starts_with(&"é".repeat(INLINE / 2))
                && text.contains("65536 more bytes")
                && text.contains("x1")
        );
        assert_eq!(outputs.stderr.text("x1"), "a\u{fffd}");
    }
}
