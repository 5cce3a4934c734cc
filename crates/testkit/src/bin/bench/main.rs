//! The bench: measures the real binary on this machine, peers in the same run, prints a table and writes JSON.
//!
//! Every row carries its sample count, p50, p95, p99, minimum, maximum and how many attempts failed: a median over
//! less than all successes is worth nothing, so failures are shown, never dropped.

#![expect(clippy::disallowed_macros, reason = "a command-line program of the project, not the product")]

mod blocks;
mod branch;
mod gvisor;
mod history;
mod load;
mod machine;
mod mcp;
mod offshoot;
mod peers;
mod ports;
mod rebase;
mod sample;
mod warm;

use anyhow::{Context, Result};
use clap::Parser;
use sample::{Row, Unit};
use serde::Serialize;
use std::{fs, path::PathBuf};

/// Measures Offshoot on this machine; run through `cargo xtask bench`.
#[derive(Parser)]
struct Args {
    /// The guest agent, for its size.
    #[arg(long)]
    guest: PathBuf,
    /// Revision of the source, for the record.
    #[arg(long)]
    revision: String,
    /// Directory for the JSON record.
    #[arg(long)]
    out: PathBuf,
    /// Only groups whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// A fifth of the samples; the record says so.
    #[arg(long)]
    quick: bool,
}

#[derive(Serialize)]
struct Record {
    revision: String,
    quick: bool,
    machine: machine::Machine,
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// What a group of measurements needs to know.
struct Plan {
    quick: bool,
}

impl Plan {
    fn samples(&self, full: usize) -> usize {
        if self.quick { (full / 5).max(3) } else { full }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let plan = Plan { quick: args.quick };
    let wanted = |group: &str| args.only.as_ref().is_none_or(|only| group.contains(only.as_str()));
    let mut record = Record {
        revision: args.revision.clone(),
        quick: args.quick,
        machine: machine::Machine::read(),
        rows: Vec::new(),
        notes: Vec::new(),
    };
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    if wanted("size") {
        for (name, file) in [
            ("offshoot binary", std::env::var_os("OFFSHOOT_BIN").map(PathBuf::from)),
            ("guest agent", Some(args.guest)),
        ] {
            let file = file.context("OFFSHOOT_BIN is not set")?;
            let size =
                fs::metadata(&file).with_context(|| format!("read the size of {}", file.display()))?.len();
            record.rows.push(Row::single(name, Unit::MiB, size as f64 / f64::from(1 << 20)));
        }
    }
    runtime.block_on(offshoot::measure(&plan, &wanted, &mut record.rows, &mut record.notes))?;
    if wanted("warm") {
        runtime.block_on(warm::measure(&plan, &mut record.rows))?;
    }
    // Needs an image of its own, so only by name.
    if args.only.as_deref().is_some_and(|only| "figure".contains(only)) {
        runtime.block_on(warm::figures(&plan, &mut record.rows))?;
    }
    if wanted("load") {
        runtime.block_on(load::measure(&plan, &mut record.rows))?;
    }
    if wanted("ports") {
        runtime.block_on(ports::measure(&plan, &mut record.rows))?;
    }
    if wanted("mcp") {
        runtime.block_on(mcp::measure(&plan, &mut record.rows))?;
    }
    if wanted("blocks") {
        blocks::measure(&plan, &mut record.rows)?;
    }
    if wanted("history") {
        runtime.block_on(history::measure(&plan, &mut record.rows))?;
    }
    if wanted("rebase") {
        runtime.block_on(rebase::measure(&plan, &mut record.rows))?;
    }
    if wanted("peers") {
        peers::measure(&plan, &mut record.rows, &mut record.notes)?;
    }
    print(&record);
    fs::create_dir_all(&args.out).with_context(|| format!("make {}", args.out.display()))?;
    let file = args.out.join(format!("bench-{}.json", record.revision));
    let json = serde_json::to_string_pretty(&record).context("encode the record")?;
    fs::write(&file, json + "\n").with_context(|| format!("write {}", file.display()))?;
    println!("\nrecord: {}", file.display());
    Ok(())
}

fn print(record: &Record) {
    println!("{}", record.machine);
    println!("revision {}{}\n", record.revision, if record.quick { ", quick: few samples" } else { "" });
    println!("| what | n | failed | p50 | p95 | p99 | min | max | unit |");
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---|");
    for row in &record.rows {
        println!("{row}");
    }
    for note in &record.notes {
        println!("\n{note}");
    }
}
