//! What moving an idle VM to a fresh base is worth: its snapshots before and after, and the first code after it.

use crate::{
    Plan,
    branch::{destroy, python, running},
    offshoot::socket,
    sample::{Row, Unit, ms},
};
use anyhow::{Context, Result, ensure};
use offshoot_api::{
    Client,
    v1::{Operation, TakeSnapshot},
};
use offshoot_testkit::TestEnv;
use offshoot_types::{OperationKind, VmRef};
use std::time::{Duration, Instant};

/// Nothing is asked of the VM for so long.
const IDLE: &str = "2s";
/// For the VM to be moved.
const MOVED: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Taken {
    pauses: Vec<f64>,
    totals: Vec<f64>,
    own_memory: Vec<f64>,
}

pub async fn measure(plan: &Plan, rows: &mut Vec<Row>) -> Result<()> {
    let env = TestEnv::with_rebase_idle(IDLE);
    env.run(&["list"]).success();
    let client = Client::new(socket(&env)?);
    let (mut before, mut after) = (Taken::default(), Taken::default());
    let (mut moves, mut first) = (Vec::new(), Vec::new());
    for sample in 0..plan.samples(15) {
        let vm = running(&client, &format!("idle{sample}"), 256).await?;
        python(&client, &vm, "x = 41").await?;
        take(&client, &vm, &mut before).await?;
        moves.push(moved(&client, &vm).await?);
        let began = Instant::now();
        let out = python(&client, &vm, "print(x + 1)").await?;
        first.push(ms(began));
        ensure!(out == "42\n", "after the move: {out:?}");
        take(&client, &vm, &mut after).await?;
        destroy(&client, &vm).await?;
    }
    for (when, taken) in [("before", before), ("after", after)] {
        let what = |part: &str| format!("rebase: {part} of a VM that booted, {when} its rebase");
        rows.push(Row::new(what("memory a snapshot copies"), Unit::MiB, taken.own_memory, 0));
        rows.push(Row::new(what("snapshot pause"), Unit::Ms, taken.pauses, 0));
        rows.push(Row::new(what("durable snapshot"), Unit::Ms, taken.totals, 0));
    }
    rows.push(Row::new("rebase: from its operation's beginning to its end", Unit::Ms, moves, 0));
    rows.push(Row::new("rebase: first code in a live context after it", Unit::Ms, first, 0));
    env.finish();
    Ok(())
}

async fn take(client: &Client, vm: &VmRef, into: &mut Taken) -> Result<()> {
    let usage = client.vm(vm).await.context("read the VM")?.usage.context("it runs")?;
    into.own_memory
        .push(usage.own_memory_bytes.context("it has memory of its own")? as f64 / f64::from(1 << 20));
    let began = Instant::now();
    let taken = client.snapshot(vm, &TakeSnapshot::default()).await.context("take a snapshot")?;
    into.totals.push(ms(began));
    into.pauses.push(taken.paused_us.context("a running VM was paused")? as f64 / 1e3);
    Ok(())
}

/// Waits until the VM was moved, and says how long the move took.
async fn moved(client: &Client, vm: &VmRef) -> Result<f64> {
    let id = client.vm(vm).await.context("read the VM")?.id;
    let until = Instant::now() + MOVED;
    loop {
        let operations = client.operations().await.context("list operations")?.operations;
        let own = |one: &&Operation| one.kind == OperationKind::Rebase && one.vm == Some(id);
        let rebase = operations.iter().find(own).filter(|one| one.outcome.is_some());
        if let Some(rebase) = rebase {
            ensure!(rebase.problem.is_none(), "it was not moved: {:?}", rebase.problem);
            let took = rebase.updated.duration_since(rebase.created);
            return Ok(took.as_secs_f64() * 1e3);
        }
        ensure!(Instant::now() < until, "{vm} was not moved within {MOVED:?}");
        tokio::time::sleep(LOOK).await;
    }
}
