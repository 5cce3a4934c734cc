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
/// One of the image `interpreter` loads libraries of megabytes on an emulated CPU.
const READY_WITH_LIBRARIES: Duration = Duration::from_secs(900);
/// Instances that are kept: enough for the next start to find one, and none is made while it is measured.
const POOL: u32 = 2;

/// What is asked of a VM that has just been begun.
struct Question {
    image: Option<&'static str>,
    code: &'static str,
    answer: &'static str,
    samples: usize,
    ready: Duration,
    /// For the rows: what is begun, its first result, the size of its template.
    names: [&'static str; 3],
}

pub async fn measure(plan: &Plan, rows: &mut Vec<Row>) -> Result<()> {
    let question = Question {
        image: None,
        code: "print(6 * 7)",
        answer: "42\n",
        samples: plan.samples(200),
        ready: READY,
        names: [
            "warm: create and start from the pool",
            "warm: create to first result of a live interpreter",
            "warm: size of a template's memory, 256 MiB guest",
        ],
    };
    let env = TestEnv::new();
    ask(&question, env, rows).await?;
    if let Some(env) = TestEnv::on_gvisor() {
        let first = rows.len();
        ask(&question, env, rows).await?;
        for row in &mut rows[first..] {
            row.what.insert_str(0, "gVisor: ");
        }
    }
    Ok(())
}

/// With the image `interpreter`, which must be built: the first figure of a VM that has just been begun.
pub async fn figures(plan: &Plan, rows: &mut Vec<Row>) -> Result<()> {
    let question = Question {
        image: Some("interpreter"),
        code: "import matplotlib.pyplot as plt\nplt.plot([3, 1, 2]); plt.title('first'); plt.show()\nprint('drawn')",
        answer: "drawn\n",
        samples: plan.samples(50),
        ready: READY_WITH_LIBRARIES,
        names: [
            "figure: create and start from the pool, image interpreter",
            "figure: create to first figure of matplotlib",
            "figure: size of a template's memory, 512 MiB guest",
        ],
    };
    ask(&question, TestEnv::new(), rows).await
}

async fn ask(question: &Question, mut env: TestEnv, rows: &mut Vec<Row>) -> Result<()> {
    env.set_pool(POOL);
    env.run(&["list"]).success();
    let client = Client::new(socket(&env)?);
    // The first one that could have used it starts the pool.
    let first = start(&client, "first", question.image).await?;
    let (mut running, mut computed, mut failed) = (Vec::new(), Vec::new(), 0);
    for sample in 0..question.samples {
        ready(&client, question.ready).await?;
        let began = Instant::now();
        let vm = start(&client, &format!("warm{sample}"), question.image).await?;
        let started = ms(began);
        let out = python(&client, &vm, question.code).await;
        let computed_after = ms(began);
        let begun = client.vm(&vm).await.context("read the VM")?.last_start;
        match (&out, begun) {
            (Ok(out), Some(LastStart { from: StartedFrom::Pool, .. })) if out == question.answer => {
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
    let [begun, result, size] = question.names;
    rows.push(Row::new(begun, Unit::Ms, running, failed));
    rows.push(Row::new(result, Unit::Ms, computed, failed));
    rows.push(Row::single(size, Unit::MiB, template(&env)?));
    destroy(&client, &first).await?;
    env.finish();
    Ok(())
}

async fn start(client: &Client, name: &str, image: Option<&str>) -> Result<VmRef> {
    let image = image.map(str::to_owned);
    let create = CreateVm { name: name.into(), image, start: true, ..CreateVm::default() };
    client.create(&create).await.with_context(|| format!("create {name}"))?;
    name.parse().context("a valid name")
}

/// Returns once the pool has all it keeps, and does nothing.
async fn ready(client: &Client, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        let pool = client.daemon().await.context("read the pool")?.pool;
        if pool.shelves.iter().any(|shelf| shelf.ready == u64::from(POOL) && !shelf.making) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("the pool has no instance after {limit:?}")
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
