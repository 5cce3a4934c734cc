//! Prints what an acknowledged operation costs on this disk: alone, and with 32 writers sharing commits.
//!
//! `cargo run --release -p offshoot-store --example commit_latency [FOLDER]`; the record is made in FOLDER (default:
//! the folder for temporary files) and removed afterwards.

use offshoot_store::{AuditDecision, AuditEntry, Limits, NewOperation, Options, Store, StoreError};
use offshoot_types::{Actor, Labels, NodeName, OperationId, OperationKind, Owner};
use std::{
    error::Error,
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

const EACH: usize = 500;

fn operation() -> NewOperation {
    let actor = Actor::LocalUser { uid: 1000, owner: Owner::default() };
    NewOperation {
        id: OperationId::new(),
        kind: OperationKind::Exec,
        owner: Owner::default(),
        labels: Labels::new(),
        node: NodeName::default(),
        vm: None,
        actor: actor.clone(),
        reason: "measuring".into(),
        obligation: None,
        idempotency: None,
        request: None,
        audit: AuditEntry {
            actor,
            action: "exec".into(),
            target: "daemon".into(),
            decision: AuditDecision::Permit,
            rules: vec!["owner-of-socket/owner".into()],
            revision: "owner-of-socket/1".into(),
            detail: String::new(),
        },
    }
}

#[expect(clippy::disallowed_macros, reason = "a program of its own, without the CLI's printer")]
fn print(what: &str, mut times: Vec<Duration>, total: Duration) {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    let rate = times.len() as f64 / total.as_secs_f64();
    println!("{what:28} p50 {:7.3} ms   p99 {:7.3} ms   {rate:8.0} per second", at(50), at(99));
}

/// The floor under every acknowledged write: 4 KiB appended and fsynced.
fn fsync(folder: &Path) -> std::io::Result<()> {
    let path = folder.join("fsync");
    let mut file = File::create(&path)?;
    let (mut times, began) = (Vec::with_capacity(EACH), Instant::now());
    for _ in 0..EACH {
        let start = Instant::now();
        file.write_all(&[0x5A; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    print("fdatasync of 4 KiB", times, began.elapsed());
    std::fs::remove_file(path)
}

async fn operations(store: Store) -> Result<Vec<Duration>, StoreError> {
    let mut times = Vec::with_capacity(EACH);
    for _ in 0..EACH {
        let start = Instant::now();
        store.begin_operation(operation()).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

async fn measure(store: &Store, writers: usize) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..writers {
        tasks.spawn(operations(store.clone()));
    }
    let mut times = Vec::new();
    for done in tasks.join_all().await {
        times.extend(done?);
    }
    print(&format!("operation, {writers} writer(s)"), times, began.elapsed());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let base = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let folder = base.join(format!("offshoot-commit-latency-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    fsync(&folder)?;
    let store = Store::open(Options::new(folder.join("offshoot.db"), Limits::UNBOUNDED))?;
    measure(&store, 1).await?;
    measure(&store, 32).await?;
    store.close().await;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
