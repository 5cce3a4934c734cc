//! How fast this processor computes, as a program sees it: what `doctor` compares VMs and their host by.

use offshoot_guest_proto::compute::SAYS;
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// The best of so many spells counts: in others somebody else had the processor as well.
const SPELLS: usize = 4;
const SPELL: Duration = Duration::from_millis(60);
/// Steps of one round.
const STEPS: usize = 2000;
/// Rounds from one look at the clock to the next: where a look is a call of the kernel it must not be what is measured.
const UNTIMED: u64 = 64;
/// 32 KiB: as much as the processor has nearest to it.
const TABLE: usize = 4096;

/// One line for whoever reads our standard error, which is the console in a virtual machine.
pub fn say() {
    crate::console::warn(format_args!("{SAYS}{}", rate()));
}

/// Rounds in a millisecond.
fn rate() -> u64 {
    let mut table: Vec<u64> = (0..TABLE as u64).collect();
    let rounds = |table: &mut [u64]| {
        let began = Instant::now();
        let mut rounds: u64 = 0;
        while began.elapsed() < SPELL {
            (0..UNTIMED).for_each(|_| round(black_box(table)));
            rounds += UNTIMED;
        }
        u64::try_from(u128::from(rounds) * 1_000_000 / began.elapsed().as_nanos().max(1)).unwrap_or(u64::MAX)
    };
    (0..SPELLS).map(|_| rounds(&mut table)).max().unwrap_or_default()
}

/// Multiplications, memory that depends on them, and branches that cannot be foretold: like an interpreter at work.
fn round(table: &mut [u64]) {
    let mut x: u64 = 0x9E37_79B9_7F4A_7C15;
    for _ in 0..STEPS {
        let at = (x >> 32) as usize % TABLE;
        let Some(value) = table.get_mut(at) else { continue };
        x = (x ^ *value).wrapping_mul(0xD134_2543_DE82_EF95).rotate_left(23);
        *value = if x & 1 == 0 { x } else { value.wrapping_add(x >> 7) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_and_leaves_something() {
        let mut table: Vec<u64> = (0..TABLE as u64).collect();
        let before = table.clone();
        round(&mut table);
        assert!(table.iter().zip(&before).filter(|(a, b)| a != b).count() > STEPS / 4);
        assert!(rate() > 0);
    }
}
