//! Samples and their summary.

use serde::Serialize;
use std::{
    fmt,
    time::{Duration, Instant},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Unit {
    #[serde(rename = "ms")]
    Ms,
    #[serde(rename = "MiB")]
    MiB,
    #[serde(rename = "MB/s")]
    MbPerSecond,
    #[serde(rename = "ratio")]
    Ratio,
    #[serde(rename = "1/s")]
    PerSecond,
    #[serde(rename = "count")]
    Count,
}

#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub what: String,
    pub unit: Unit,
    pub samples: usize,
    pub failed: usize,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub min: f64,
    pub max: f64,
}

impl Row {
    /// Summarises samples; percentiles by nearest rank. With no success at all the figures are NaN.
    pub fn new(what: impl Into<String>, unit: Unit, mut values: Vec<f64>, failed: usize) -> Self {
        values.sort_by(f64::total_cmp);
        let rank = |p: f64| {
            let index = (p * values.len() as f64).ceil() as usize;
            values.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
        };
        Self {
            what: what.into(),
            unit,
            samples: values.len(),
            failed,
            p50: rank(0.50),
            p95: rank(0.95),
            p99: rank(0.99),
            min: values.first().copied().unwrap_or(f64::NAN),
            max: values.last().copied().unwrap_or(f64::NAN),
        }
    }

    pub fn single(what: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self::new(what, unit, vec![value], 0)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Ms => "ms",
            Unit::MiB => "MiB",
            Unit::MbPerSecond => "MB/s",
            Unit::Ratio => "x",
            Unit::PerSecond => "1/s",
            Unit::Count => "",
        };
        write!(
            f,
            "| {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {unit} |",
            self.what, self.samples, self.failed, self.p50, self.p95, self.p99, self.min, self.max
        )
    }
}

/// Milliseconds since `began`.
pub fn ms(began: Instant) -> f64 {
    as_ms(began.elapsed())
}

pub fn as_ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank_and_failures_stay_visible() {
        let row = Row::new("x", Unit::Ms, (1..=100).rev().map(f64::from).collect(), 3);
        assert_eq!((row.p50, row.p95, row.p99, row.min, row.max), (50.0, 95.0, 99.0, 1.0, 100.0));
        assert_eq!((row.samples, row.failed), (100, 3));
        assert!(Row::new("none", Unit::Ms, vec![], 5).p50.is_nan());
    }
}
