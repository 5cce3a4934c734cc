//! The frequency of the host's time-stamp counter, which a guest on emulated processors sees as its own.
//!
//! Told the frequency, the guest's kernel need not measure it against an emulated timer, which fails now and
//! then on a busy host and leaves a kernel that waits for ever.

use crate::os;
use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Long enough for one part in ten thousand, short enough for a first start.
const MEASURE: Duration = Duration::from_millis(20);
const ATTEMPTS: usize = 5;

/// In kHz; the same for as long as the host runs.
pub(super) fn frequency_khz() -> u32 {
    static FREQUENCY: OnceLock<u32> = OnceLock::new();
    *FREQUENCY.get_or_init(|| {
        let measured = measure();
        // A hypervisor may pass the leaves of another machine on: believed only where the clock agrees.
        let told = tell(os::cpuid).filter(|khz| khz.abs_diff(measured) < measured / 200);
        told.unwrap_or(measured)
    })
}

/// What the processor, or the hypervisor below this host, says.
fn tell(cpuid: impl Fn(u32) -> Option<[u32; 4]>) -> Option<u32> {
    let khz = |hz: u64| u32::try_from(hz / 1000).ok().filter(|khz| *khz > 0);
    let [denominator, numerator, crystal, _] = cpuid(0x15).unwrap_or_default();
    let base_mhz = cpuid(0x16).unwrap_or_default()[0] & 0xffff;
    if denominator > 0 && numerator > 0 && crystal > 0 {
        return khz(u64::from(crystal) * u64::from(numerator) / u64::from(denominator));
    }
    if let Some([frequency, ..]) = cpuid(0x4000_0010).filter(|leaf| leaf[0] > 0) {
        return Some(frequency);
    }
    // Without a crystal frequency the counter runs at the base frequency.
    (numerator > 0 && base_mhz > 0).then_some(base_mhz * 1000)
}

fn measure() -> u32 {
    // Interruptions only ever make a reading worse, so the tightest of a few is taken.
    let readings = (0..ATTEMPTS).map(|_| {
        let (begun, first, slack_before) = read_both();
        while begun.elapsed() < MEASURE / ATTEMPTS as u32 {
            std::hint::spin_loop();
        }
        let (ended, last, slack_after) = read_both();
        let nanos = ended.duration_since(begun).as_nanos().max(1);
        let khz = u128::from(last.wrapping_sub(first)) * 1_000_000 / nanos;
        (slack_before + slack_after, u32::try_from(khz).unwrap_or(u32::MAX))
    });
    readings.min().map_or(1, |(_, khz)| khz.max(1))
}

/// Both clocks at one moment, and how far apart the two readings may be.
fn read_both() -> (Instant, u64, u64) {
    let before = os::time_stamp_counter();
    let now = Instant::now();
    let after = os::time_stamp_counter();
    let slack = after.wrapping_sub(before);
    (now, before + slack / 2, slack)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_read_in_the_order_of_their_exactness() {
        let crystal = |leaf| match leaf {
            0x15 => Some([2, 216, 24_000_000, 0]),
            0x16 => Some([2600, 0, 0, 0]),
            _ => None,
        };
        assert_eq!(tell(crystal), Some(2_592_000));
        let base = |leaf| match leaf {
            0x15 => Some([2, 216, 0, 0]),
            0x16 => Some([2600, 3500, 100, 0]),
            _ => None,
        };
        assert_eq!(tell(base), Some(2_600_000));
        let hypervisor = |leaf| (leaf == 0x4000_0010).then_some([2_399_999, 0, 0, 0]);
        assert_eq!(tell(hypervisor), Some(2_399_999));
        assert_eq!(tell(|_| None), None);
        assert_eq!(tell(|_| Some([0; 4])), None);
    }

    #[test]
    fn two_measurements_agree() {
        let (one, two) = (measure(), measure());
        assert!(one.abs_diff(two) < one / 500, "{one} kHz, then {two} kHz");
        assert!(frequency_khz().abs_diff(one) < one / 100);
    }
}
