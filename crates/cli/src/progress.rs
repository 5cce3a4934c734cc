//! What a person sees while something takes longer than a second: a spinner, or a bar where the size is known.
//!
//! Only on a terminal; a pipe, a file and `--json` see nothing. Whatever else is written to the terminal goes
//! through [`aside`], which takes the spinner out of the way for as long as the line is being written.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    future::Future,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// How long something may take before it is worth a spinner.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(120);

/// There is one terminal, hence one bar on it.
static ON_SCREEN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Does `write` while no spinner is drawn.
pub fn aside<T>(write: impl FnOnce() -> T) -> T {
    let bar = ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// One thing under way. Leaves no trace on the screen when dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    visible: bool,
}

impl Progress {
    /// `visible` says whether there is a terminal and a person to see it.
    pub fn new(visible: bool, message: impl Into<String>) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_style(style("{spinner} {msg} {elapsed:.dim}"));
        bar.set_message(message.into());
        Self { bar, visible }
    }

    /// Says what is being done now.
    pub fn message(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }

    /// Counts bytes from now on, towards `total` if that is known.
    pub fn bytes(&self, total: Option<u64>) {
        match total {
            Some(total) => {
                self.bar.set_length(total);
                self.bar.set_style(style(
                    "{msg} {wide_bar:.cyan/dim} {bytes}/{total_bytes} {bytes_per_sec:.dim}",
                ));
            }
            None => self.bar.set_style(style("{spinner} {msg} {bytes} {bytes_per_sec:.dim}")),
        }
    }

    pub fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    pub fn position(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Awaits `work`; shows itself if that takes longer than a second.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if self.visible {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(PATIENCE) => self.show(),
            }
        }
        work.await
    }

    /// Shows itself from now on.
    pub fn show(&self) {
        if !self.visible {
            return;
        }
        *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.bar.clone());
        self.bar.set_draw_target(ProgressDrawTarget::stderr());
        self.bar.enable_steady_tick(TICK);
    }

    /// Takes itself off the screen, for good.
    pub fn hide(&self) {
        ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.hide();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates in this file are well-formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_well_formed() {
        let progress = Progress::new(false, "copying");
        progress.bytes(Some(10));
        progress.advance(5);
        progress.bytes(None);
        progress.position(7);
        assert_eq!(progress.bar.position(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_awaited_whether_or_not_anybody_watches() {
        for visible in [false, true] {
            let progress = Progress::new(visible, "working");
            let work = async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                7
            };
            assert_eq!(progress.during(work).await, 7);
        }
    }
}
