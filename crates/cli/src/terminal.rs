//! The terminal as a raw byte pipe, and back.
//!
//! ```text
//! cooked --Raw::enter--> raw --Drop, panic, second signal--> cooked
//! ```
//! What the terminal was like before is kept in one place for the whole process, so that every way out finds it.

use crate::failure::{Result, host};
use offshoot_api::v1::PtySize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};
use std::{
    io, panic,
    sync::{Mutex, Once, PoisonError},
};

static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static PANIC_HOOK: Once = Once::new();

/// Whether a person types at standard input.
pub fn stdin_is_terminal() -> bool {
    isatty(io::stdin())
}

/// Whether reading from standard input is ours to do: in the background it would stop the whole job.
pub fn stdin_is_ours() -> bool {
    match tcgetpgrp(io::stdin()) {
        Ok(foreground) => foreground == rustix::process::getpgrp(),
        // Not a terminal, or not ours: reading it stops nobody.
        Err(_) => true,
    }
}

/// The size of the terminal, if there is one and it knows.
pub fn size() -> Option<PtySize> {
    [tcgetwinsize(io::stdout()), tcgetwinsize(io::stdin()), tcgetwinsize(io::stderr())]
        .into_iter()
        .flatten()
        .find(|size| size.ws_row > 0 && size.ws_col > 0)
        .map(|size| PtySize { rows: size.ws_row, cols: size.ws_col })
}

/// While it lives, standard input delivers every key as it is pressed.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    pub fn enter() -> Result<Self> {
        let before =
            tcgetattr(io::stdin()).map_err(|error| host("cannot read the terminal's settings", &error))?;
        PANIC_HOOK.call_once(|| {
            let next = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                next(info);
            }));
        });
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(|error| {
            restore();
            host("cannot switch the terminal to raw mode", &error)
        })?;
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Keeps what the terminal is like now, for [`restore`]: somebody else is going to change it.
pub fn remember() {
    if let Ok(before) = tcgetattr(io::stdin()) {
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    }
}

/// Gives the terminal back as it was; does nothing if it was not taken.
pub fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that has gone away needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
}
