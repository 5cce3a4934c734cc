//! State that branches: forks, snapshots, rollbacks, suspension, and what an idle fork takes.
//!
//! Each figure ends with a result from the guest, not with an answer of the daemon: a fork that does not compute is
//! no fork.

use crate::{
    Plan,
    sample::{Row, Unit, ms},
};
use anyhow::{Context, Result, bail, ensure};
use futures::future::{join_all, try_join_all};
use offshoot_api::{
    Client,
    client::CodeEvent,
    v1::{Change, CodeRequest, CreateVm, DestroyQuery, ForkRequest, RollbackRequest, TakeSnapshot},
};
use offshoot_testkit::TestEnv;
use offshoot_types::VmRef;
use std::{collections::BTreeSet, fs, time::Instant};

/// Written before a snapshot, in MiB.
const DIRTY: [u64; 3] = [1, 10, 100];
const DEPTH: [usize; 3] = [1, 5, 20];

/// How much of it is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Of the guests whose snapshots are measured, in MiB.
    pub memory: &'static [u64],
    /// Forks at once.
    pub forks: &'static [u32],
    /// At that many the memory of an idle one is read.
    pub idle: u32,
}

pub async fn measure(
    plan: &Plan,
    sizes: Sizes,
    client: &Client,
    env: &TestEnv,
    wanted: &dyn Fn(&str) -> bool,
    rows: &mut Vec<Row>,
) -> Result<()> {
    if wanted("context") || wanted("fork") || wanted("rollback") || wanted("suspend") {
        let vm = running(client, "tree", 256).await?;
        python(client, &vm, "import json, re, collections, random; x = 41").await?;
        // Continue from a snapshot, so that what is measured is a fork of a fork and not of a cold boot.
        let source = one_fork(client, &vm.to_string(), "source").await?;
        if wanted("context") {
            context(plan, client, &source, rows).await;
        }
        if wanted("fork") {
            forks(plan, sizes, client, env, &source, rows).await?;
        }
        if wanted("rollback") {
            rollbacks(plan, client, &source, rows).await?;
        }
        if wanted("suspend") {
            suspensions(plan, client, &source, rows).await?;
        }
        for vm in [source, vm] {
            destroy(client, &vm).await?;
        }
    }
    if wanted("snapshot") {
        for &mib in sizes.memory {
            snapshots(plan, client, mib, rows).await?;
        }
    }
    if wanted("depth") {
        depth(client, rows).await?;
    }
    Ok(())
}

pub async fn running(client: &Client, name: &str, memory: u64) -> Result<VmRef> {
    let create = CreateVm { name: name.into(), memory_mib: Some(memory), start: true, ..CreateVm::default() };
    client.create(&create).await.with_context(|| format!("create {name}"))?;
    name.parse().context("a valid name")
}

pub async fn destroy(client: &Client, vm: &VmRef) -> Result<()> {
    client.destroy(vm, &DestroyQuery::default()).await.with_context(|| format!("destroy {vm}"))?;
    Ok(())
}

/// Runs Python in the live context `main` and returns what it printed.
pub async fn python(client: &Client, vm: &VmRef, code: &str) -> Result<String> {
    let request = CodeRequest { context: "main".into(), code: code.into(), ..CodeRequest::default() };
    let mut connection = client.run_code(vm, &request).await?;
    let mut printed = Vec::new();
    while let Some(event) = connection.events.next().await? {
        match event {
            CodeEvent::Output(_, data) => printed.extend_from_slice(&data),
            CodeEvent::Error { traceback, .. } => bail!("{traceback}"),
            CodeEvent::Ended { .. } => return Ok(String::from_utf8(printed)?),
            CodeEvent::Started { .. } | CodeEvent::Display { .. } | CodeEvent::Value { .. } => {}
        }
    }
    bail!("the code did not end")
}

async fn one_fork(client: &Client, source: &str, name: &str) -> Result<VmRef> {
    let request = ForkRequest { source: source.into(), name: Some(name.into()), count: Some(1) };
    client.fork(&request).await.with_context(|| format!("fork {source}"))?;
    name.parse().context("a valid name")
}

async fn context(plan: &Plan, client: &Client, vm: &VmRef, rows: &mut Vec<Row>) {
    let (mut values, mut failed) = (Vec::new(), 0);
    for _ in 0..plan.samples(500) {
        let began = Instant::now();
        match python(client, vm, "print(x)").await {
            Ok(out) if out == "41\n" => values.push(ms(began)),
            _ => failed += 1,
        }
    }
    rows.push(Row::new("context: `print(x)` in a live interpreter, end to end", Unit::Ms, values, failed));
}

async fn forks(
    plan: &Plan,
    sizes: Sizes,
    client: &Client,
    env: &TestEnv,
    source: &VmRef,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let snapshot = TakeSnapshot { name: Some("bench".into()), ..TakeSnapshot::default() };
    client.snapshot(source, &snapshot).await.context("take a snapshot")?;
    let saved = format!("{source}@bench");
    for (what, from, full) in [
        ("fork: x1 of a snapshot, with thaw, to first result", saved.clone(), 30),
        ("fork: x1 of a running VM, with thaw, to first result", source.to_string(), 30),
    ] {
        let (mut values, mut failed) = (Vec::new(), 0);
        for sample in 0..plan.samples(full) {
            let began = Instant::now();
            let name = format!("one{sample}");
            match answers(client, &from, &name).await {
                Ok(vm) => {
                    values.push(ms(began));
                    destroy(client, &vm).await?;
                }
                Err(error) => {
                    eprintln!("{error:#}");
                    failed += 1;
                }
            }
        }
        rows.push(Row::new(what, Unit::Ms, values, failed));
    }
    for &count in sizes.forks {
        let rounds = if count == 100 { 1 } else { plan.samples(5).min(3) };
        let (mut values, mut failed) = (Vec::new(), 0);
        for round in 0..rounds {
            let began = Instant::now();
            let name = format!("many{count}-{round}");
            let request = ForkRequest { source: saved.clone(), name: Some(name), count: Some(count) };
            // A host without room for them all says so: that is a figure, too.
            let forked = match client.fork(&request).await {
                Ok(forked) => forked,
                Err(error) => {
                    eprintln!("fork x{count}: {error:#}");
                    failed += count as usize;
                    continue;
                }
            };
            let vms: Vec<VmRef> = forked.forks.iter().map(|fork| VmRef::Id(fork.vm)).collect();
            let results = join_all(vms.iter().map(|vm| python(client, vm, "x += 1; print(x)"))).await;
            values.push(ms(began));
            failed += results.iter().filter(|r| !matches!(r, Ok(out) if out == "42\n")).count();
            if count == sizes.idle && round == 0 {
                rows.push(pss(env, &vms, &format!("memory: PSS per idle fork, {count} alive, VMM"))?);
                try_join_all(vms.iter().take(4).map(|vm| python(client, vm, "y = bytearray(64 << 20)")))
                    .await?;
                rows.push(pss(env, &vms[..4], "memory: PSS of a fork after touching 64 MiB, VMM")?);
            }
            try_join_all(vms.iter().map(|vm| destroy(client, vm))).await?;
        }
        rows.push(Row::new(format!("fork: x{count}, all answering"), Unit::Ms, values, failed));
    }
    Ok(())
}

async fn answers(client: &Client, from: &str, name: &str) -> Result<VmRef> {
    let vm = one_fork(client, from, name).await?;
    let out = python(client, &vm, "x += 1; print(x)").await?;
    ensure!(out == "42\n", "the fork answered {out:?}");
    Ok(vm)
}

/// Of all that a VM is made of but its keeper.
pub fn pss(env: &TestEnv, vms: &[VmRef], what: &str) -> Result<Row> {
    let processes = env.processes();
    let mut values = Vec::new();
    for vm in vms {
        let (id, simple) = (vm.to_string(), vm.to_string().replace('-', ""));
        let of_vm = processes.iter().filter(|process| {
            let line = &process.command_line;
            !line.contains(" keeper ") && (line.contains(&id) || line.contains(&simple))
        });
        // Those in which a sandbox runs its guest have no command line.
        let all: BTreeSet<i32> = of_vm.flat_map(|process| with_descendants(process.pid)).collect();
        ensure!(!all.is_empty(), "no process of {id}");
        let sizes: Vec<f64> = all.into_iter().map(pss_of).collect::<Result<_>>()?;
        values.push(sizes.iter().sum());
    }
    Ok(Row::new(what, Unit::MiB, values, 0))
}

fn with_descendants(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        for thread in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
        next += 1;
    }
    found
}

pub fn pss_of(pid: i32) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("read the PSS")?;
    let kib = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no PSS")?;
    let kib: f64 = kib.trim().trim_end_matches(" kB").parse().context("a PSS in kB")?;
    Ok(kib / 1024.0)
}

async fn rollbacks(plan: &Plan, client: &Client, vm: &VmRef, rows: &mut Vec<Row>) -> Result<()> {
    let snapshot = TakeSnapshot { name: Some("good".into()), ..TakeSnapshot::default() };
    client.snapshot(vm, &snapshot).await.context("take a snapshot")?;
    let request = RollbackRequest { snapshot: Some(format!("{vm}@good")), last_good: false };
    let (mut values, mut failed) = (Vec::new(), 0);
    for _ in 0..plan.samples(30) {
        python(client, vm, "x = 999; y = list(range(1000))").await?;
        let began = Instant::now();
        let rolled = async {
            client.rollback(vm, &request).await?;
            python(client, vm, "print(x)").await
        };
        match rolled.await {
            Ok(out) if out == "41\n" => values.push(ms(began)),
            other => {
                eprintln!("rollback: {other:?}");
                failed += 1;
            }
        }
    }
    let what = "rollback: undo snapshot, restore, thaw, to first result";
    rows.push(Row::new(what, Unit::Ms, values, failed));
    Ok(())
}

async fn suspensions(plan: &Plan, client: &Client, vm: &VmRef, rows: &mut Vec<Row>) -> Result<()> {
    let (mut suspend, mut resume, mut failed) = (Vec::new(), Vec::new(), 0);
    for _ in 0..plan.samples(15) {
        let began = Instant::now();
        client.suspend(vm, &Change::default()).await.context("suspend")?;
        suspend.push(ms(began));
        let began = Instant::now();
        client.resume(vm, &Change::default()).await.context("resume")?;
        match python(client, vm, "print(x)").await {
            Ok(out) if out == "41\n" => resume.push(ms(began)),
            other => {
                eprintln!("resume: {other:?}");
                failed += 1;
            }
        }
    }
    rows.push(Row::new("suspend: to disk, process gone", Unit::Ms, suspend, 0));
    rows.push(Row::new("suspend: resume to first result", Unit::Ms, resume, failed));
    Ok(())
}

/// Pause and whole duration by what was written since the VM's process began, and by the size of its memory.
async fn snapshots(plan: &Plan, client: &Client, memory: u64, rows: &mut Vec<Row>) -> Result<()> {
    let cold = running(client, "cold", memory).await?;
    python(client, &cold, "import random").await?;
    for mib in DIRTY {
        let (mut pauses, mut totals) = (Vec::new(), Vec::new());
        for sample in 0..plan.samples(10).min(10) {
            let vm = one_fork(client, "cold", &format!("dirty{sample}")).await?;
            // Random, so that no page is like another.
            python(client, &vm, &format!("y = random.randbytes({mib} << 20)")).await?;
            let began = Instant::now();
            let taken = client.snapshot(&vm, &TakeSnapshot::default()).await.context("take a snapshot")?;
            totals.push(ms(began));
            pauses.push(taken.paused_us.context("a running VM was paused")? as f64 / 1e3);
            destroy(client, &vm).await?;
        }
        let what = |part| format!("snapshot: {part}, {mib} MiB written, {memory} MiB guest");
        rows.push(Row::new(what("pause"), Unit::Ms, pauses, 0));
        rows.push(Row::new(what("durable"), Unit::Ms, totals, 0));
    }
    destroy(client, &cold).await
}

/// A fork of a fork of a fork: to the first result, at each depth.
async fn depth(client: &Client, rows: &mut Vec<Row>) -> Result<()> {
    let mut last = running(client, "deep", 256).await?;
    python(client, &last, "x = 41").await?;
    let mut all = vec![last.clone()];
    let deepest = DEPTH.iter().copied().max().unwrap_or(1);
    for level in 1..=deepest {
        let began = Instant::now();
        last = one_fork(client, &last.to_string(), &format!("deep{level}")).await?;
        let out = python(client, &last, "print(x)").await?;
        ensure!(out == "41\n", "at depth {level}: {out:?}");
        if DEPTH.contains(&level) {
            let what = format!("fork: of a running VM to first result, chain of {level}");
            rows.push(Row::single(what, Unit::Ms, ms(began)));
        }
        all.push(last.clone());
    }
    for vm in all.iter().rev() {
        destroy(client, vm).await?;
    }
    Ok(())
}
