//! A race, as the person or program in front of it sees it: whole lines, each with the number of its racer.

use super::{Captured, Text};
use crate::{
    context::Context,
    failure::{Result, Stop},
    printer::{Stream, visible},
    trace::TraceEvent,
};
use offshoot_api::{
    client::{RaceEvent, RaceEvents},
    v1::{self, ExitStatus, Problem, RaceOutcome},
};
use offshoot_types::{ErrorCode, Failure, Generation, SnapshotId};
use serde::Serialize;
use std::collections::BTreeMap;

/// A longer line is broken here.
const LONGEST_LINE: usize = 64 * 1024;

/// `race --json`.
#[derive(Debug, Serialize)]
struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    winner: Option<u32>,
    /// What the VM was before.
    #[serde(skip_serializing_if = "Option::is_none")]
    undo: Option<SnapshotId>,
    generation: Generation,
    racers: Vec<Racer>,
}

#[derive(Debug, Default, Serialize)]
struct Racer {
    racer: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// How its command ended; absent for one that was still running when another won.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<ExitStatus>,
    /// Why its command did not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    stdout: String,
    stdout_encoding: &'static str,
    stderr: String,
    stderr_encoding: &'static str,
    /// Output beyond the limit was dropped.
    truncated: bool,
}

/// What is known of one racer so far.
#[derive(Debug, Default)]
struct Lane {
    name: Option<String>,
    exit: Option<ExitStatus>,
    problem: Option<Problem>,
    score: Option<f64>,
    truncated: bool,
    /// With `--json` all output, otherwise the unfinished lines.
    output: Captured,
}

/// Follows the race to its end. Leaving early ends it and leaves the VM as it was.
pub async fn follow(context: &Context, mut events: RaceEvents, vm: &str) -> Result<RaceOutcome> {
    let mut lanes: BTreeMap<u32, Lane> = BTreeMap::new();
    let outcome = loop {
        let event = match context.interrupt.race(events.next()).await {
            Ok(event) => event?,
            Err(_) => {
                context.printer.note(&format!("the race is off; `{vm}` stays as it was"));
                return Err(Stop::Interrupted);
            }
        };
        match event {
            Some(RaceEvent::Ended(outcome)) => break outcome,
            Some(event) => take(context, &mut lanes, event).await?,
            None => return Err(early_end()),
        }
    };
    if context.printer.is_json() {
        context.printer.document(&document(&outcome, lanes))?;
        return Ok(outcome);
    }
    for (racer, lane) in &mut lanes {
        lane.finish_lines(context, *racer).await?;
    }
    context.printer.note(&verdict(&outcome, vm));
    Ok(outcome)
}

async fn take(context: &Context, lanes: &mut BTreeMap<u32, Lane>, event: RaceEvent) -> Result {
    let json = context.printer.is_json();
    match event {
        RaceEvent::Started { racer, name } => {
            TraceEvent::Racing { racer, name: name.as_str() }.emit();
            lanes.entry(racer).or_default().name = Some(name.into());
        }
        RaceEvent::Output { racer, stream, data } => {
            let lane = lanes.entry(racer).or_default();
            let kept = lane.of(stream);
            kept.extend_from_slice(&data);
            if !json {
                let lines = whole_lines(racer, kept);
                context.printer.stream(to(stream), &lines).await?;
            }
        }
        RaceEvent::Lost { racer, stream, bytes } => {
            context.printer.warn(&format!("{bytes} bytes of {stream:?} of racer {racer} were lost"));
        }
        RaceEvent::Finished { racer, status, truncated } => {
            let lane = lanes.entry(racer).or_default();
            (lane.exit, lane.truncated) = (Some(status), truncated);
            if !json {
                lane.finish_lines(context, racer).await?;
                context.printer.note(&format!("[{racer}] {}", ended(status)));
            }
        }
        RaceEvent::GaveUp { racer, problem } => {
            context.printer.note(&format!("[{racer}] gave up: {}", visible(&problem.message)));
            lanes.entry(racer).or_default().problem = Some(problem);
        }
        RaceEvent::Scored { racer, score } => {
            TraceEvent::Scored { racer, score }.emit();
            lanes.entry(racer).or_default().score = Some(score);
        }
        RaceEvent::Ended(_) => {}
    }
    Ok(())
}

impl Lane {
    fn of(&mut self, stream: v1::Stream) -> &mut Vec<u8> {
        match stream {
            v1::Stream::Stdout => &mut self.output.stdout,
            v1::Stream::Stderr => &mut self.output.stderr,
        }
    }

    /// Writes what has no newline and will get none.
    async fn finish_lines(&mut self, context: &Context, racer: u32) -> Result {
        for stream in [v1::Stream::Stdout, v1::Stream::Stderr] {
            let rest = std::mem::take(self.of(stream));
            if !rest.is_empty() {
                context.printer.stream(to(stream), &labelled(racer, &rest)).await?;
            }
        }
        Ok(())
    }
}

/// Takes the whole lines out of `kept`, each with its racer's number in front.
fn whole_lines(racer: u32, kept: &mut Vec<u8>) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut begun = 0;
    loop {
        let rest = &kept[begun..];
        let length = match rest.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n') {
            Some(newline) => newline + 1,
            None if rest.len() >= LONGEST_LINE => LONGEST_LINE,
            None => break,
        };
        lines.extend(labelled(racer, &rest[..length]));
        begun += length;
    }
    kept.drain(..begun);
    lines
}

fn labelled(racer: u32, line: &[u8]) -> Vec<u8> {
    let mut text = format!("[{racer}] ").into_bytes();
    text.extend_from_slice(line);
    if !line.ends_with(b"\n") {
        text.push(b'\n');
    }
    text
}

fn to(stream: v1::Stream) -> Stream {
    match stream {
        v1::Stream::Stdout => Stream::Stdout,
        v1::Stream::Stderr => Stream::Stderr,
    }
}

fn ended(status: ExitStatus) -> String {
    match status {
        ExitStatus::Exited { code } => format!("exited with {code}"),
        ExitStatus::Signaled { signal } => format!("ended by signal {signal}"),
        ExitStatus::TimedOut => "its time was up".into(),
    }
}

fn verdict(outcome: &RaceOutcome, vm: &str) -> String {
    let Some(winner) = outcome.winner else { return format!("nobody won; `{vm}` is as it was") };
    let score = outcome.scores.iter().find(|scored| scored.racer == winner);
    let score = score.map_or_else(String::new, |scored| format!(" with {}", scored.score));
    let undo = match outcome.undo {
        Some(_) => format!("; `offshoot undo {vm}` takes that back"),
        None => String::new(),
    };
    format!("racer {winner} won{score}: `{vm}` continues as it{undo}")
}

fn document(outcome: &RaceOutcome, lanes: BTreeMap<u32, Lane>) -> Document {
    let racer = |(racer, lane): (u32, Lane)| {
        let Text { data: stdout, encoding: stdout_encoding } = lane.output.stdout.into();
        let Text { data: stderr, encoding: stderr_encoding } = lane.output.stderr.into();
        let told = outcome.scores.iter().find(|scored| scored.racer == racer).map(|scored| scored.score);
        Racer {
            racer,
            name: lane.name,
            exit: lane.exit,
            problem: lane.problem,
            score: told.or(lane.score),
            stdout,
            stdout_encoding,
            stderr,
            stderr_encoding,
            truncated: lane.truncated,
        }
    };
    Document {
        winner: outcome.winner,
        undo: outcome.undo,
        generation: outcome.generation,
        racers: lanes.into_iter().map(racer).collect(),
    }
}

fn early_end() -> Stop {
    Failure::new(ErrorCode::Internal, "the daemon ended the stream without saying how the race ended").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_begin_with_their_racer() {
        let mut kept = b"one\ntwo\nthr".to_vec();
        assert_eq!(whole_lines(2, &mut kept), b"[2] one\n[2] two\n");
        assert_eq!(kept, b"thr");
        assert_eq!(labelled(2, &kept), b"[2] thr\n");
        assert_eq!(whole_lines(2, &mut kept), b"");
        let mut endless = vec![b'x'; LONGEST_LINE + 5];
        assert_eq!(whole_lines(1, &mut endless).len(), LONGEST_LINE + "[1] \n".len());
        assert_eq!(endless, b"xxxxx");
    }

    #[test]
    fn the_verdict_names_winner_score_and_way_back() {
        let won = RaceOutcome {
            winner: Some(3),
            scores: vec![v1::RacerScore { racer: 3, score: 93.0 }, v1::RacerScore { racer: 1, score: 5.5 }],
            undo: Some(SnapshotId::new()),
            generation: Generation(4),
        };
        assert_eq!(
            verdict(&won, "web"),
            "racer 3 won with 93: `web` continues as it; `offshoot undo web` takes that back"
        );
        let none = RaceOutcome { winner: None, scores: Vec::new(), undo: None, generation: Generation(4) };
        assert_eq!(verdict(&none, "web"), "nobody won; `web` is as it was");
    }
}
