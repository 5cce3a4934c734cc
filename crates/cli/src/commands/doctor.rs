use crate::{
    context::Context,
    doctor::{self, Verdict},
    exit_code::{ExitCode, Status},
    failure::Result,
    printer::{Style, visible},
};
use serde::Serialize;

const EXAMPLES: &str = "Examples:
  offshoot doctor
  offshoot doctor --json

Exit status 0 unless a check failed, then 1.";

/// Check what this host gives, and say what to do about what it lacks
///
/// Starts no daemon and changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// `doctor --json`.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<doctor::Check>,
}

pub async fn run(context: &Context, _: Args) -> Result<Status> {
    let progress = context.printer.progress("checking this host");
    let checks = progress.during(doctor::examine(context)).await;
    drop(progress);
    let ok = checks.iter().all(|check| check.verdict != Verdict::Fail);
    let report = Report { ok, checks };
    context.printer.answer(&report, || text(context, &report.checks))?;
    Ok(Status::Own(if ok { ExitCode::Done } else { ExitCode::CheckFailed }))
}

fn text(context: &Context, checks: &[doctor::Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let (style, word) = match check.verdict {
            Verdict::Ok => (Style::Green, "ok  "),
            Verdict::Warn => (Style::Yellow, "warn"),
            Verdict::Fail => (Style::Red, "fail"),
        };
        let word = context.printer.out_styled(style, word);
        text += &format!("{word}  {:<width$}  {}\n", check.name, visible(&check.detail));
        for line in check.remedy.iter().flat_map(|remedy| remedy.lines()) {
            text += &format!("{:6}{:width$}  {line}\n", "", "");
        }
    }
    text
}
