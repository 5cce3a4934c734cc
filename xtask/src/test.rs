//! `cargo xtask test`: set-up, then every test, real VMs and the SDKs (each counted as one test) included.
//!
//! Tests whose name contains `heavy_` are the heavy rest: long loops, large images. They run with `--all`, one
//! shard (test) after the other while the budget lasts, starting at a different one for each commit so that a
//! short budget still covers them all over time. What was left out is printed by name.

use crate::{artifacts, gvisor, packages, process, sdk};
use anyhow::{Context, Result, bail};
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub struct Args {
    /// The heavy rest too: soaks, large images, long loops. Implied by CI=true.
    #[arg(long)]
    all: bool,
    /// Stop starting heavy tests when this much time has passed, e.g. `60m`. `60m` is implied by CI=true.
    #[arg(long, value_parser = duration)]
    budget: Option<Duration>,
    /// Only tests matching this nextest filter expression.
    #[arg(short = 'E', long)]
    filter: Option<String>,
}

const HEAVY: &str = "test(heavy_)";
/// A heavy test is not begun with less than this left.
const HEAVY_RESERVE: Duration = Duration::from_secs(240);

#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let ci = std::env::var("CI").is_ok_and(|v| v == "true");
    let all = args.all || ci;
    let budget = args.budget.or(ci.then_some(Duration::from_secs(3600)));

    packages::ensure()?;
    gvisor::offer();
    ensure_nextest()?;
    let built = artifacts::build()?;
    artifacts::image(&built, "base")?;

    let mut counts = Counts::default();
    let light = match &args.filter {
        Some(filter) => filter.clone(),
        None => format!("not {HEAVY}"),
    };
    nextest(&built, &light, &mut counts)?;
    if args.filter.is_none() {
        let (passed, failed) = sdk::test_all(&built);
        counts.passed += passed;
        counts.failed += failed;
    }
    if all && args.filter.is_none() {
        heavy(&built, start, budget, &mut counts)?;
    }
    println!("offshoot: {} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    if counts.failed > 0 || counts.passed == 0 {
        bail!("{} tests failed, {} passed", counts.failed, counts.passed);
    }
    Ok(())
}

fn heavy(
    built: &artifacts::Built,
    start: Instant,
    budget: Option<Duration>,
    counts: &mut Counts,
) -> Result<()> {
    let mut names = heavy_names(built)?;
    if names.is_empty() {
        return Ok(());
    }
    let rotation = commits()? % names.len();
    names.rotate_left(rotation);
    let mut left_out = Vec::new();
    for name in names {
        if budget.is_some_and(|budget| start.elapsed() + HEAVY_RESERVE > budget) {
            left_out.push(name);
            continue;
        }
        nextest(built, &format!("test(={name})"), counts)?;
    }
    for name in left_out {
        eprintln!("left out for want of time: {name}");
        counts.skipped += 1;
    }
    Ok(())
}

/// Runs the tests a filter selects and adds up what nextest says. A failed test is counted, anything else that
/// goes wrong is an error.
fn nextest(built: &artifacts::Built, filter: &str, counts: &mut Counts) -> Result<()> {
    let mut command = process::cargo();
    command
        .args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast", "-E", filter])
        .env("OFFSHOOT_BIN", &built.offshoot)
        .env("OFFSHOOT_GUEST_BIN", &built.guest)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo nextest")?;
    let stderr = child.stderr.take().context("nextest's standard error is not a pipe")?;
    let mut summary = None;
    for line in BufReader::new(stderr).lines() {
        let line = line.context("read nextest's output")?;
        eprintln!("{line}");
        if line.trim_start().starts_with("Summary [") {
            summary = Some(line);
        }
    }
    let status = child.wait().context("wait for nextest")?;
    let Some(summary) = summary else { bail!("nextest ended without a summary: {status}") };
    let (passed, failed) =
        (count(&summary, "passed"), count(&summary, "failed") + count(&summary, "timed out"));
    counts.passed += passed;
    counts.failed += failed;
    if !status.success() && failed == 0 {
        bail!("nextest failed: {status}");
    }
    Ok(())
}

/// The number before `word` in `9 tests run: 8 passed (1 slow), 1 failed, 0 skipped`.
fn count(summary: &str, word: &str) -> u64 {
    let tail = summary.rsplit("run:").next().unwrap_or_default();
    tail.split([',', '(', ')'])
        .filter_map(|part| part.trim().strip_suffix(word))
        .filter_map(|number| number.trim().parse::<u64>().ok())
        .sum()
}

fn heavy_names(built: &artifacts::Built) -> Result<Vec<String>> {
    let mut command = process::cargo();
    command
        .args(["nextest", "list", "--workspace", "--locked", "-E", HEAVY, "--message-format", "json"])
        .env("OFFSHOOT_BIN", &built.offshoot)
        .env("OFFSHOOT_GUEST_BIN", &built.guest);
    let text = process::output(&mut command)?;
    let list: serde_json::Value = serde_json::from_str(&text).context("nextest's list is not JSON")?;
    let suites = list["rust-suites"].as_object().context("nextest's list has no suites")?;
    let mut names: Vec<String> = suites
        .values()
        .filter_map(|suite| suite["testcases"].as_object())
        .flat_map(|cases| cases.iter())
        .filter(|(_, case)| case["filter-match"]["status"] == "matches")
        .map(|(name, _)| name.clone())
        .collect();
    names.sort();
    Ok(names)
}

fn commits() -> Result<usize> {
    let mut git = Command::new("git");
    let text = process::output(git.args(["rev-list", "--count", "HEAD"]).current_dir(process::root()))?;
    text.trim().parse().context("git printed no number")
}

fn ensure_nextest() -> Result<()> {
    let present =
        process::cargo().args(["nextest", "--version"]).output().is_ok_and(|out| out.status.success());
    if present {
        return Ok(());
    }
    eprintln!("installing cargo-nextest (the test runner)");
    process::checked(process::cargo().args(["install", "--locked", "cargo-nextest"]))
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 =
        text[..digits].parse().map_err(|_| format!("`{text}` is not a duration such as `60m`"))?;
    let seconds = match &text[digits..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("`{text}` needs a unit: s, m or h")),
    };
    Ok(Duration::from_secs(number * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nextest_summary_is_counted_with_slow_tests_and_timeouts() {
        let line =
            "     Summary [   9.1s] 10/12 tests run: 7 passed (1 slow), 2 failed, 1 timed out, 2 skipped";
        assert_eq!((count(line, "passed"), count(line, "failed"), count(line, "timed out")), (7, 2, 1));
    }

    #[test]
    fn budgets_need_a_unit() {
        assert_eq!(duration("60m"), Ok(Duration::from_secs(3600)));
        assert!(duration("60").is_err());
        assert!(duration("m").is_err());
    }
}
