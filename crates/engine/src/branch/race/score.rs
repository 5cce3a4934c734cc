//! Which racer is better, and what a score is.

use std::cmp::Ordering;

/// What a score program may print: more is no number.
pub(super) const MOST_BYTES: u64 = 1024;

/// The number a score program printed, if it is one: nothing else but white space around it, and finite.
pub(super) fn parse(printed: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(printed).ok()?.trim();
    text.parse().ok().filter(|score: &f64| score.is_finite())
}

/// The highest score wins, among equals the lowest racer.
pub(super) fn better((racer, score): (u32, f64), (best, best_score): (u32, f64)) -> bool {
    match score.total_cmp(&best_score) {
        // 0 and -0 are the same score, which `total_cmp` tells apart.
        _ if score == best_score => racer < best,
        Ordering::Greater => true,
        Ordering::Less | Ordering::Equal => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_one_finite_number_and_nothing_else() {
        for (printed, score) in [("7", 7.0), (" -1.5e3\n", -1500.0), ("0.25\r\n", 0.25), ("+3", 3.0)] {
            assert_eq!(parse(printed.as_bytes()), Some(score), "{printed:?}");
        }
        for printed in ["", "\n", "1 2", "7 points", "NaN", "inf", "-infinity", "1e999", "0x10", "1,5"] {
            assert_eq!(parse(printed.as_bytes()), None, "{printed:?}");
        }
        assert_eq!(parse(&[0xff, b'1']), None);
    }

    #[test]
    fn the_highest_wins_and_of_equals_the_lowest_racer_whoever_is_scored_first() {
        assert!(better((2, 5.0), (1, 4.0)) && !better((1, 4.0), (2, 5.0)));
        assert!(better((1, 5.0), (2, 5.0)) && !better((2, 5.0), (1, 5.0)));
        assert!(better((1, -0.0), (2, 0.0)) && !better((2, 0.0), (1, -0.0)));
        assert!(better((3, -1.0), (1, -2.0)));
    }
}
