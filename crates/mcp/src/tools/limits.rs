//! Time limits of what runs for a tool.

use offshoot_types::{ErrorCode, Failure};

/// What runs for a tool ends after this, if nothing else is said.
pub const DEFAULT_SECONDS: u64 = 120;
const MOST_SECONDS: u64 = 24 * 3600;

/// As requests carry it.
pub fn milliseconds(seconds: Option<u64>) -> Result<u64, Failure> {
    match seconds.unwrap_or(DEFAULT_SECONDS) {
        seconds @ 1..=MOST_SECONDS => Ok(seconds * 1000),
        seconds => {
            let message = format!("`timeout_seconds`: {seconds} is not between 1 and {MOST_SECONDS}");
            Err(Failure::new(ErrorCode::InvalidArgument, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_second_to_a_day() {
        assert_eq!(milliseconds(None), Ok(120_000));
        assert_eq!(milliseconds(Some(1)), Ok(1000));
        for wrong in [0, MOST_SECONDS + 1, u64::MAX] {
            assert_eq!(milliseconds(Some(wrong)).unwrap_err().code, ErrorCode::InvalidArgument);
        }
    }
}
