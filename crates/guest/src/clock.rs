//! Following the host's clock: small differences are slewed, so that time never runs backwards for a program;
//! large ones (a pause, a restored state) are stepped.

use crate::{kernel::Kernel, sys};
use offshoot_guest_proto::message::HostTime;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::time::Duration;

/// From here on a step is the lesser evil: slewing runs at 0.5 ms per second.
const STEP: u64 = Duration::from_millis(500).as_nanos() as u64;
/// Below this the difference is the way of the message, not of the clocks.
const IGNORE: u64 = Duration::from_millis(2).as_nanos() as u64;

#[derive(Debug, PartialEq, Eq)]
enum Correction {
    None,
    Slew,
    Step,
}

fn judge(offset_ns: i64) -> Correction {
    match offset_ns.unsigned_abs() {
        0..=IGNORE => Correction::None,
        STEP.. => Correction::Step,
        _ => Correction::Slew,
    }
}

/// Corrects this machine's clock, if it is the machine's own; answers guest clock minus host clock before that.
pub fn follow(kernel: Kernel, host: HostTime) -> i64 {
    let now = wall_clock();
    let offset = i64::try_from(i128::from(now.0) - i128::from(host.0)).unwrap_or(i64::MAX);
    let corrected = match judge(offset) {
        _ if !kernel.has_own_clock() => Ok(()),
        Correction::None => Ok(()),
        Correction::Slew => sys::slew_clock(-offset / 1000),
        Correction::Step => step_to(host),
    };
    if let Err(error) = corrected {
        crate::console::warn(format_args!("set the clock: {error}"));
    }
    offset
}

pub fn wall_clock() -> HostTime {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    HostTime(seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0)))
}

/// Since the kernel started.
pub fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap_or(0)
}

/// Sets this machine's clock to the host's, and drops what was left of an earlier correction. One that is the host's
/// is right already.
pub fn set(kernel: Kernel, host: HostTime) -> std::io::Result<()> {
    if !kernel.has_own_clock() {
        return Ok(());
    }
    sys::slew_clock(0)?;
    step_to(host)
}

/// This clock minus the host's, where the host said `time` so long ago.
pub fn offset_from(time: HostTime, ago: Duration) -> i64 {
    let host = i128::from(time.0) + i128::try_from(ago.as_nanos()).unwrap_or(i128::MAX / 2);
    i64::try_from(i128::from(wall_clock().0) - host).unwrap_or(i64::MAX)
}

fn step_to(host: HostTime) -> std::io::Result<()> {
    let seconds = i64::try_from(host.0 / 1_000_000_000).map_err(std::io::Error::other)?;
    let nanoseconds = i64::try_from(host.0 % 1_000_000_000).map_err(std::io::Error::other)?;
    Ok(clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: nanoseconds })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_ignored_drift_is_slewed_and_a_jump_is_stepped() {
        let ms = 1_000_000;
        for (offset, correction) in [
            (0, Correction::None),
            (-ms, Correction::None),
            (50 * ms, Correction::Slew),
            (-499 * ms, Correction::Slew),
            (500 * ms, Correction::Step),
            (-3_600_000 * ms, Correction::Step),
            (i64::MIN, Correction::Step),
        ] {
            assert_eq!(judge(offset), correction, "{offset}");
        }
    }
}
