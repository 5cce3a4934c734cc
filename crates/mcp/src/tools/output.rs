//! Both streams of a program, as text.

use crate::gathered::Gathered;
use offshoot_api::v1::{ExitStatus, Stream};
use serde_json::{Value, json};

#[derive(Debug, Default)]
pub struct Output {
    stdout: Gathered,
    stderr: Gathered,
    /// The guest itself dropped more.
    cut: bool,
}

impl Output {
    pub fn push(&mut self, stream: Stream, data: &[u8]) {
        self.of(stream).push(data);
    }

    pub fn lost(&mut self, stream: Stream, bytes: u64) {
        self.of(stream).lost(bytes);
    }

    pub fn cut(&mut self, cut: bool) {
        self.cut |= cut;
    }

    fn of(&mut self, stream: Stream) -> &mut Gathered {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn dropped(&self) -> u64 {
        self.stdout.dropped() + self.stderr.dropped()
    }

    /// Appends what there is of both streams to `text`, and how to get what is not there.
    pub fn tell(&self, text: &mut String) {
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !stream.is_empty() {
                text.push_str(&format!("\n--- {name}\n{}", stream.text().trim_end_matches('\n')));
            }
        }
        if self.stdout.is_empty() && self.stderr.is_empty() {
            text.push_str("\n(no output)");
        }
        if self.dropped() > 0 || self.cut {
            let dropped = self.dropped();
            text.push_str(&format!(
                "\n--- {dropped} bytes of output are not shown. To see all of it, send it to a file \
                 (`... > /tmp/out.txt 2>&1`) and read that in parts with `read_file` (`offset`, `length`)."
            ));
        }
    }

    pub fn data(&self) -> Value {
        json!({
            "stdout": self.stdout.text(),
            "stderr": self.stderr.text(),
            "bytes_left_out": self.dropped(),
        })
    }
}

/// How a process ended, in words.
pub fn ending(status: ExitStatus) -> String {
    match status {
        ExitStatus::Exited { code } => format!("exit code {code}"),
        ExitStatus::Signaled { signal } => format!("ended by signal {signal}"),
        ExitStatus::TimedOut => "killed: its time was up".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_told_apart_and_nothing_is_said_of_nothing() {
        let mut output = Output::default();
        let told = |output: &Output| {
            let mut text = String::new();
            output.tell(&mut text);
            text
        };
        assert_eq!(told(&output), "\n(no output)");
        output.push(Stream::Stdout, b"one\n");
        output.push(Stream::Stderr, b"two\n");
        assert_eq!(told(&output), "\n--- stdout\none\n--- stderr\ntwo");
    }

    #[test]
    fn what_is_missing_is_counted_with_the_way_to_it() {
        let mut output = Output::default();
        (0..100).for_each(|_| output.push(Stream::Stdout, &[b'x'; 1000]));
        let mut text = String::new();
        output.tell(&mut text);
        let missing = 100_000 - 48 * 1024;
        assert!(text.contains(&format!("--- {missing} bytes of output are not shown")), "{text}");
        assert!(text.contains("read_file"));
        assert_eq!(output.data()["bytes_left_out"], missing);
    }
}
