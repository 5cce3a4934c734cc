//! VMs that are begun from the warm pool: from the request for one to its first result, and what a template takes.

use crate::{
    Plan,
    branch::{destroy, python},
    offshoot::socket,
    sample::{Row, Unit, ms},
};
use anyhow::{Context, Result, bail};
use offshoot_api::{
    Client,
    v1::{CreateVm, LastStart},
};
use offshoot_testkit::TestEnv;
use offshoot_types::{StartedFrom, VmRef};
use std::{
    fs,
    time::{Duration, Instant},
};

/// For a template to be made, and an instance of it.
const READY: Duration = Duration::from_secs(120);
/// Instances that are kept: enough for the next start to find one, and none is made while it is measured.
const POOL: u32 = 2;

pub async fn measure(plan: &Plan, rows: &mut Vec<Row>) -> Result<()> {
    let env = TestEnv::with_pool(POOL);
    env.run(&["list"]).success();
    let client = Client::new(socket(&env)?);
    // The first one that could have used it starts the pool.
    let first = start(&client, "first").await?;
    let (mut running, mut computed, mut failed) = (Vec::new(), Vec::new(), 0);
    for sample in 0..plan.samples(200) {
        ready(&client).await?;
        let began = Instant::now();
        let vm = start(&client, &format!("warm{sample}")).await?;
        let started = ms(began);
        let out = python(&client, &vm, "print(6 * 7)").await;
        let computed_after = ms(began);
        let begun = client.vm(&vm).await.context("read the VM")?.last_start;
        match (&out, begun) {
            (Ok(out), Some(LastStart { from: StartedFrom::Pool, .. })) if out == "42\n" => {
                running.push(started);
                computed.push(computed_after);
            }
            (_, begun) => {
                eprintln!("{vm}: {out:?}, {begun:?}");
                failed += 1;
            }
        }
        destroy(&client, &vm).await?;
    }
    rows.push(Row::new("warm: create and start from the pool", Unit::Ms, running, failed));
    rows.push(Row::new("warm: create to first result of a live interpreter", Unit::Ms, computed, failed));
    rows.push(Row::single("warm: size of a template's memory, 256 MiB guest", Unit::MiB, template(&env)?));
    destroy(&client, &first).await?;
    env.finish();
    Ok(())
}

async fn start(client: &Client, name: &str) -> Result<VmRef> {
    let create = CreateVm { name: name.into(), start: true, ..CreateVm::default() };
    client.create(&create).await.with_context(|| format!("create {name}"))?;
    name.parse().context("a valid name")
}

/// Returns once the pool has all it keeps, and does nothing.
async fn ready(client: &Client) -> Result<()> {
    let until = Instant::now() + READY;
    while Instant::now() < until {
        let pool = client.daemon().await.context("read the pool")?.pool;
        if pool.shelves.iter().any(|shelf| shelf.ready == u64::from(POOL) && !shelf.making) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("the pool has no instance after {READY:?}")
}

/// In MiB. Of this daemon's snapshots all are templates.
fn template(env: &TestEnv) -> Result<f64> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(env.state_dir().join("snapshots")).context("list the snapshots")? {
        let path = entry.context("list the snapshots")?.path().join("ram.delta");
        sizes.push(fs::metadata(&path).with_context(|| format!("read {}", path.display()))?.len());
    }
    match sizes[..] {
        [size] => Ok(size as f64 / f64::from(1 << 20)),
        _ => bail!("{} templates where one was made", sizes.len()),
    }
}
