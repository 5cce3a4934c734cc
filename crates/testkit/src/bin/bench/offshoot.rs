//! Offshoot itself: cold boot, exec, API, files, memory.

use crate::{
    Plan,
    branch::{self, Sizes, python},
    sample::{Row, Unit, ms},
};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::{StreamExt, future::join_all};
use offshoot_api::{
    Client,
    client::ExecEvent,
    v1::{CreateVm, ExecRequest, ExitStatus, ReadQuery, WriteQuery},
};
use offshoot_testkit::TestEnv;
use offshoot_types::VmRef;
use std::{fs, io::Write, process::Command, time::Instant};

/// Prints how many seconds it computed.
const COMPUTE: &str = "import time\nt = time.perf_counter()\ns = 0\n\
                       for i in range(1_000_000): s += i * i % 7\n\
                       print(time.perf_counter() - t)";

/// Virtual machines, then sandboxes where there are some.
pub async fn measure(
    plan: &Plan,
    wanted: &dyn Fn(&str) -> bool,
    rows: &mut Vec<Row>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let sizes = Sizes { memory: &[256, 1024, 4096], forks: &[10, 50, 100], idle: 50 };
    let env = TestEnv::new();
    if wanted("fsync") {
        rows.push(fsync(plan, &env)?);
    }
    one(plan, sizes, env, wanted, rows, notes).await?;
    if let Some(env) = TestEnv::on_gvisor() {
        let first = rows.len();
        // What a sandbox may use at most is no part of its state.
        let sizes = Sizes { memory: &[256], forks: &[10], idle: 10 };
        one(plan, sizes, env, wanted, rows, notes).await?;
        for row in &mut rows[first..] {
            row.what.insert_str(0, "gVisor: ");
        }
    }
    Ok(())
}

async fn one(
    plan: &Plan,
    sizes: Sizes,
    env: TestEnv,
    wanted: &dyn Fn(&str) -> bool,
    rows: &mut Vec<Row>,
    notes: &mut Vec<String>,
) -> Result<()> {
    env.run(&["list"]).success();
    if wanted("cold") {
        rows.push(cold_run(plan, &env));
    }
    let client = Client::new(socket(&env)?);
    if wanted("boot") {
        concurrent_boots(&client, rows).await?;
    }
    if wanted("api") || wanted("exec") || wanted("files") || wanted("memory") || wanted("compute") {
        let vm: VmRef = "bench".parse().context("a valid name")?;
        client.create(&CreateVm { name: "bench".into(), start: true, ..CreateVm::default() }).await?;
        if wanted("memory") {
            memory(&client, &env, &vm, rows).await?;
        }
        if wanted("api") {
            api(plan, &client, &vm, rows).await;
        }
        if wanted("exec") {
            exec(plan, &client, &vm, rows, notes).await;
        }
        if wanted("files") {
            files(plan, &client, &vm, rows).await?;
        }
        if wanted("compute") {
            compute(plan, &client, &vm, rows).await?;
        }
    }
    branch::measure(plan, sizes, &client, &env, wanted, rows).await?;
    env.finish();
    Ok(())
}

pub fn socket(env: &TestEnv) -> Result<std::path::PathBuf> {
    let record = env.run(&["daemon", "status", "--json"]).success().json();
    let path = record["socket"].as_str().context("`daemon status --json` has no `socket`")?;
    Ok(path.into())
}

/// 4 KiB written and made durable, on the disk that holds the state directory.
fn fsync(plan: &Plan, env: &TestEnv) -> Result<Row> {
    let path = env.state_dir().join("fsync-probe");
    let mut file = fs::File::create(&path).context("make the probe file")?;
    let mut values = Vec::new();
    for _ in 0..plan.samples(200) {
        let began = Instant::now();
        file.write_all(&[0; 4096]).context("write the probe file")?;
        file.sync_data().context("sync the probe file")?;
        values.push(ms(began));
    }
    fs::remove_file(&path).context("remove the probe file")?;
    Ok(Row::new("disk: 4 KiB write + fdatasync", Unit::Ms, values, 0))
}

/// A process is started, a VM created, booted, Python run, everything removed: what a user waits for.
fn cold_run(plan: &Plan, env: &TestEnv) -> Row {
    let mut values = Vec::new();
    let mut failed = 0;
    for _ in 0..plan.samples(15) {
        let out = env.run(&["run", "-c", "print(1)"]);
        if out.code == Some(0) && out.stdout == "1\n" {
            values.push(crate::sample::as_ms(out.took));
        } else {
            eprintln!("{out}");
            failed += 1;
        }
    }
    Row::new("cold: `offshoot run` of Python, create to clean-up", Unit::Ms, values, failed)
}

async fn concurrent_boots(client: &Client, rows: &mut Vec<Row>) -> Result<()> {
    for count in [1_usize, 10] {
        let names: Vec<String> = (0..count).map(|i| format!("boot{i}")).collect();
        let began = Instant::now();
        let boots = names.iter().map(|name| async move {
            let began = Instant::now();
            client.create(&CreateVm { name: name.clone(), start: true, ..CreateVm::default() }).await?;
            let vm: VmRef = name.parse().context("a valid name")?;
            run_to_end(client, &vm, &["python3", "-c", "print(1)"]).await?;
            anyhow::Ok(ms(began))
        });
        let results = join_all(boots).await;
        let wall = ms(began);
        let failed = results.iter().filter(|r| r.is_err()).count();
        let values = results.into_iter().filter_map(Result::ok).collect();
        rows.push(Row::new(
            format!("boot: {count} at once, each to its first Python result"),
            Unit::Ms,
            values,
            failed,
        ));
        if count > 1 {
            rows.push(Row::single(format!("boot: {count} at once, all answered"), Unit::Ms, wall));
        }
        for name in &names {
            let vm: VmRef = name.parse().context("a valid name")?;
            client.destroy(&vm, &Default::default()).await?;
        }
    }
    Ok(())
}

async fn api(plan: &Plan, client: &Client, vm: &VmRef, rows: &mut Vec<Row>) {
    let (mut health, mut status, mut failed) = (Vec::new(), Vec::new(), 0);
    for _ in 0..plan.samples(1000) {
        let began = Instant::now();
        match client.health().await {
            Ok(_) => health.push(ms(began)),
            Err(_) => failed += 1,
        }
        let began = Instant::now();
        match client.vm(vm).await {
            Ok(_) => status.push(ms(began)),
            Err(_) => failed += 1,
        }
    }
    rows.push(Row::new("api: GET /v1/health", Unit::Ms, health, failed));
    rows.push(Row::new("api: GET /v1/vms/NAME of a running VM", Unit::Ms, status, failed));
}

/// `true` as a new process: seen from here, and as the guest itself measures fork to reap.
async fn exec(plan: &Plan, client: &Client, vm: &VmRef, rows: &mut Vec<Row>, notes: &mut Vec<String>) {
    let (mut seen, mut inside, mut above, mut failed) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..plan.samples(1000) {
        let began = Instant::now();
        match run_to_end(client, vm, &["true"]).await {
            Ok(guest) => {
                let took = ms(began);
                seen.push(took);
                inside.push(guest);
                above.push(took - guest);
            }
            Err(error) => {
                eprintln!("{error:#}");
                failed += 1;
            }
        }
    }
    rows.push(Row::new("exec: `true` as a new process, end to end", Unit::Ms, seen, failed));
    rows.push(Row::new("exec: of that, spawn to reap inside the guest", Unit::Ms, inside, failed));
    rows.push(Row::new("exec: what Offshoot adds", Unit::Ms, above, failed));
    notes.push("`exec: what Offshoot adds` is the difference per call; target: at most 5 ms at p50.".into());
}

/// Runs to the end; milliseconds from fork to reap as the guest measured them.
async fn run_to_end(client: &Client, vm: &VmRef, argv: &[&str]) -> Result<f64> {
    let request =
        ExecRequest { argv: Some(argv.iter().map(|a| (*a).to_owned()).collect()), ..ExecRequest::default() };
    let mut connection = client.exec(vm, &request).await?;
    while let Some(event) = connection.events.next().await? {
        if let ExecEvent::Ended(ended) = event {
            if !matches!(ended.status, ExitStatus::Exited { code: 0 }) {
                bail!("`{}` ended with {:?}", argv.join(" "), ended.status);
            }
            return Ok(ended.durations.guest_wall_us as f64 / 1e3);
        }
    }
    bail!("the stream ended without an end of the process")
}

async fn files(plan: &Plan, client: &Client, vm: &VmRef, rows: &mut Vec<Row>) -> Result<()> {
    // Twice this fits into the guest: the old file stays until the new one is whole.
    const SIZE: usize = 32 << 20;
    const CHUNK: usize = 128 << 10;
    let block = Bytes::from(vec![0xA5; CHUNK]);
    let (mut into, mut out) = (Vec::new(), Vec::new());
    for _ in 0..plan.samples(5) {
        let content = futures::stream::iter((0..SIZE / CHUNK).map({
            let block = block.clone();
            move |_| Ok(block.clone())
        }));
        let write = WriteQuery { path: "/dev/shm/probe".into(), ..WriteQuery::default() };
        let began = Instant::now();
        client.write_file(vm, &write, content).await?;
        into.push(SIZE as f64 / 1e6 / began.elapsed().as_secs_f64());
        let began = Instant::now();
        let read = ReadQuery { path: "/dev/shm/probe".into(), ..ReadQuery::default() };
        let mut download = client.read_file(vm, &read).await?;
        let mut got = 0;
        while let Some(chunk) = download.content.next().await {
            got += chunk?.len();
        }
        if got != SIZE {
            bail!("{got} bytes came back of {SIZE}");
        }
        out.push(SIZE as f64 / 1e6 / began.elapsed().as_secs_f64());
    }
    rows.push(Row::new("files: 32 MiB into guest memory", Unit::MbPerSecond, into, 0));
    rows.push(Row::new("files: 32 MiB out of guest memory", Unit::MbPerSecond, out, 0));
    Ok(())
}

async fn memory(client: &Client, env: &TestEnv, vm: &VmRef, rows: &mut Vec<Row>) -> Result<()> {
    let id = VmRef::Id(client.vm(vm).await?.id);
    rows.push(branch::pss(env, &[id], "memory: PSS of an idle VM's VMM, 256 MiB guest after cold boot")?);
    for process in env.processes() {
        let what = if process.command_line.contains(" keeper ") {
            "memory: PSS of its keeper"
        } else if process.command_line.contains(" serve") {
            "memory: PSS of the daemon"
        } else {
            continue;
        };
        rows.push(Row::single(what, Unit::MiB, branch::pss_of(process.pid)?));
    }
    Ok(())
}

/// The same loop of Python here and there, alternately: how many times as long it takes there.
async fn compute(plan: &Plan, client: &Client, vm: &VmRef, rows: &mut Vec<Row>) -> Result<()> {
    let mut ratios = Vec::new();
    for _ in 0..plan.samples(25) {
        let host = Command::new("python3").args(["-c", COMPUTE]).output().context("start python3 here")?;
        let host: f64 = String::from_utf8_lossy(&host.stdout).trim().parse().context("what python3 took")?;
        let guest: f64 = python(client, vm, COMPUTE).await?.trim().parse().context("what the guest took")?;
        ratios.push(guest / host);
    }
    rows.push(Row::new("compute: a loop of Python in the guest, of the host's time", Unit::Ratio, ratios, 0));
    Ok(())
}
