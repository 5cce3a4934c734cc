//! Questions to the person at the terminal.

use crate::{
    context::Context,
    failure::{Result, Stop, host},
};
use std::thread;
use tokio::sync::oneshot;

/// Asks on standard error. Anything but `y` or `yes` is a no, the end of the input too.
pub async fn yes(context: &Context, question: &str) -> Result<bool> {
    context.printer.prompt(&format!("{question} [y/N] "));
    let (sender, receiver) = oneshot::channel();
    // A thread, because nothing else can be abandoned while it waits for a line.
    thread::Builder::new()
        .name("question".into())
        .spawn(move || {
            let mut line = String::new();
            let read = std::io::stdin().read_line(&mut line);
            // Nobody waits any more if the person pressed Ctrl-C instead.
            let _ = sender.send(read.map(|_| line));
        })
        .map_err(|error| host("cannot ask", &error))?;
    match context.interrupt.race(receiver).await {
        Ok(Ok(Ok(line))) => Ok(is_yes(&line)),
        Ok(Ok(Err(error))) => Err(host("cannot read the answer", &error).into()),
        Ok(Err(_)) => Ok(false),
        Err(_) => Err(Stop::Interrupted),
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_yes_is_one() {
        for yes in ["y\n", "YES\n", " y "] {
            assert!(is_yes(yes), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "yep\n", "yes please\n"] {
            assert!(!is_yes(no), "{no:?}");
        }
    }
}
