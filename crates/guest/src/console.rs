//! The console: where a VM's agent says what the host cannot be told otherwise.

use std::{fmt, io::Write};

/// One line on the console, which the host keeps as a log.
pub fn warn(message: fmt::Arguments<'_>) {
    // Without a console there is nobody to tell.
    let _nobody = writeln!(std::io::stderr(), "offshoot-guest: {message}");
}
