//! The end of an agent that cannot go on: PID 1 may not return, and a VM without its agent is of no use.

use crate::{console, shutdown::leave, sys};
use offshoot_guest_proto::message::ShutdownKind;
use rustix::fd::AsFd;

/// Says why on the console and powers off.
pub fn end(error: &(dyn std::error::Error + 'static)) -> ! {
    let chain: Vec<String> =
        std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    say_and_power_off(&chain.join(": "))
}

/// A defect ends the same way, instead of as a kernel panic without a reason.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|panic| say_and_power_off(&panic.to_string().replace('\n', ": "))));
}

fn say_and_power_off(reason: &str) -> ! {
    console::warn(format_args!("fatal: {reason}"));
    // What is still in the terminal's buffer dies with the machine.
    sys::drain_terminal(std::io::stderr().as_fd());
    rustix::fs::sync();
    leave(ShutdownKind::PowerOff)
}
