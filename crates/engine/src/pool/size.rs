//! How many instances are kept ready for one key: a function of when somebody wanted one, and found none.

use std::time::Duration;
use tokio::time::Instant;

/// How large the pool of one kind of VM may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolSize {
    /// No template is made, and none is used.
    Off,
    /// So many, from the first start that could have used one until the daemon ends.
    Fixed(u32),
    /// Grows with starts that found none, up to so many, and shrinks to none when nobody starts anything.
    Adaptive { most: u32 },
}

/// When the adaptive size changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    /// One instance fewer, each time nobody wanted one for so long.
    pub shrink: Duration,
    /// None at all, once nobody wanted one for so long.
    pub drain: Duration,
}

/// What was asked of one shelf.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Demand {
    grown: u32,
    last: Option<Instant>,
}

impl Demand {
    /// A start could have used an instance; `found`: there was one.
    pub fn wanted(&mut self, size: PoolSize, pace: Pace, found: bool, now: Instant) {
        let held = self.target(size, pace, now).0;
        self.grown = match size {
            PoolSize::Adaptive { most } if found => held.clamp(1, most.max(1)),
            PoolSize::Adaptive { most } => (held + 1).min(most.max(1)),
            PoolSize::Off | PoolSize::Fixed(_) => 0,
        };
        self.last = Some(now);
    }

    /// How many are to be ready, and when that will be fewer.
    pub fn target(&self, size: PoolSize, pace: Pace, now: Instant) -> (u32, Option<Instant>) {
        let Some(last) = self.last else { return (0, None) };
        match size {
            PoolSize::Off => (0, None),
            PoolSize::Fixed(count) => (count, None),
            PoolSize::Adaptive { .. } => {
                let idle = now.saturating_duration_since(last);
                let drained = last + pace.drain;
                if idle >= pace.drain {
                    return (0, None);
                }
                let rounds = idle.as_nanos() / pace.shrink.as_nanos().max(1);
                let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
                let target = self.grown.saturating_sub(rounds).max(1);
                let next = if target > 1 { last + pace.shrink.saturating_mul(rounds + 1) } else { drained };
                (target, Some(next.min(drained)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { shrink: Duration::from_secs(30), drain: Duration::from_secs(600) };
    const SIZE: PoolSize = PoolSize::Adaptive { most: 3 };

    fn at(demand: &Demand, size: PoolSize, now: Instant) -> u32 {
        demand.target(size, PACE, now).0
    }

    #[test]
    fn nothing_is_kept_before_somebody_wanted_it_and_nothing_ever_when_off() {
        let (now, mut demand) = (Instant::now(), Demand::default());
        for size in [PoolSize::Off, PoolSize::Fixed(2), SIZE] {
            assert_eq!(at(&demand, size, now), 0);
        }
        demand.wanted(PoolSize::Off, PACE, false, now);
        assert_eq!(at(&demand, PoolSize::Off, now), 0);
    }

    #[test]
    fn it_grows_with_what_was_missed_up_to_its_bound_and_stays_with_what_was_found() {
        let (now, mut demand) = (Instant::now(), Demand::default());
        for (found, expected) in [(false, 1), (true, 1), (false, 2), (true, 2), (false, 3), (false, 3)] {
            demand.wanted(SIZE, PACE, found, now);
            assert_eq!(at(&demand, SIZE, now), expected);
        }
    }

    #[test]
    fn it_shrinks_step_by_step_to_one_and_drains_in_the_end() {
        let (now, mut demand) = (Instant::now(), Demand::default());
        for _ in 0..3 {
            demand.wanted(SIZE, PACE, false, now);
        }
        let after = |seconds| now + Duration::from_secs(seconds);
        for (seconds, expected) in
            [(0, 3), (29, 3), (30, 2), (60, 1), (300, 1), (599, 1), (600, 0), (9999, 0)]
        {
            assert_eq!(at(&demand, SIZE, after(seconds)), expected, "after {seconds} s");
        }
        assert_eq!(demand.target(SIZE, PACE, after(31)).1, Some(after(60)), "when it changes next");
        assert_eq!(demand.target(SIZE, PACE, after(61)).1, Some(after(600)));
        // What was shrunk meanwhile has to be missed again.
        demand.wanted(SIZE, PACE, false, after(60));
        assert_eq!(at(&demand, SIZE, after(60)), 2);
    }

    #[test]
    fn a_fixed_size_neither_grows_nor_shrinks() {
        let (now, mut demand) = (Instant::now(), Demand::default());
        demand.wanted(PoolSize::Fixed(2), PACE, false, now);
        assert_eq!(demand.target(PoolSize::Fixed(2), PACE, now + PACE.drain * 9), (2, None));
        assert_eq!(at(&demand, PoolSize::Fixed(0), now), 0);
    }
}
