//! Starts that find something warm: what is claimed, what is not and why, and that nothing of it is left over.

use crate::{host::Process, stage::*};
use offshoot_engine::{Engine, Limits, OnShutdown, PoolOptions, PoolShelf, PoolSize, PoolTemplate, PoolView};
use offshoot_types::{
    Bytes, Command, ErrorCode, Failure, LastStart, Lifetime, MemMib, Owner, SnapshotOrigin, StartedFrom,
    VmId, VmSpec, VmState, VmStateName,
};
use std::{sync::Arc, time::Duration};

/// Nothing waits for others to be quiet, and failures are tried again at once.
pub const EAGER: PoolOptions = PoolOptions {
    size: PoolSize::Fixed(1),
    shrink: Duration::from_secs(60),
    drain: Duration::from_secs(600),
    quiet: Duration::ZERO,
    retry: Duration::from_millis(1),
};

pub fn stage() -> Stage {
    Stage { pool: EAGER, ..Stage::new() }
}

pub fn pool(engine: &Engine) -> PoolView {
    engine.pool(permit(engine, Command::Inspect { vm: None })).unwrap()
}

/// The shelf wanted last.
pub fn shelf(engine: &Engine) -> Option<PoolShelf> {
    pool(engine).shelves.into_iter().next()
}

/// Until so many instances can be claimed, and nothing is being made.
pub async fn ready(engine: &Engine, count: u32) {
    eventually("the pool is ready", || {
        shelf(engine).is_some_and(|shelf| shelf.ready == count && !shelf.making)
    })
    .await;
}

/// An engine whose pool has one instance, by the start of VM `a`, which is destroyed again.
pub async fn warm(stage: &Stage) -> Engine {
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    ready(&engine, 1).await;
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    engine
}

pub async fn last_start(engine: &Engine, name: &str) -> LastStart {
    view(engine, name).await.last_start.expect("it was started")
}

/// The process that writes to a VM's disk.
pub async fn process_of(stage: &Stage, engine: &Engine, id: VmId) -> Arc<Process> {
    let row = engine.store().vm(id).await.unwrap().unwrap();
    let top = format!("{}.qcow2", row.layer.unwrap().simple());
    let found =
        stage.host.processes().into_iter().find(|process| {
            process.is_alive() && process.guest.disk.lock().unwrap().layers[0].ends_with(&top)
        });
    found.expect("the VM has a process")
}

/// Ends the engine: what is left is nobody's VM, file, socket or process, but for templates and their files.
pub async fn ends_clean(stage: &Stage, engine: Engine) {
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    assert!(stage.host.processes().is_empty(), "processes: {:?}", stage.host.processes());
    for dir in [stage.state().join("vms"), stage.runtime()] {
        let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "files: {left:?}");
    }
    let store = stage.record().await;
    assert_eq!(store.vms().await.unwrap(), []);
    assert!(store.unfinished_operations().await.unwrap().is_empty());
    let (snapshots, layers) = store.read(|view| Ok((view.snapshots(None)?, view.layers()?))).await.unwrap();
    assert!(snapshots.iter().all(|snapshot| snapshot.origin == SnapshotOrigin::Template), "{snapshots:?}");
    assert!(snapshots.len() <= 1, "one template of one key: {snapshots:?}");
    assert_eq!(layers.len(), snapshots.len(), "{layers:?}");
    store.close().await;
    let files = std::fs::read_dir(stage.state().join("disks")).unwrap().count();
    assert_eq!(files, layers.len(), "a file for each layer and no other");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_start_is_claimed_and_is_a_machine_of_its_own() {
    let stage = stage();
    let engine = stage.engine().await;
    assert_eq!(
        pool(&engine),
        PoolView { size: PoolSize::Fixed(1), shelves: vec![] },
        "off until it is wanted"
    );
    create_running(&engine, "a").await;
    let first = last_start(&engine, "a").await;
    assert_eq!(first.from, StartedFrom::Boot);
    assert!(first.not_pooled.unwrap().contains("first start"));
    ready(&engine, 1).await;
    let warm =
        stage.host.processes().into_iter().find(|p| !p.guest.thaws.lock().unwrap().is_empty()).unwrap();
    assert_eq!(warm.durability, offshoot_provider::Durability::Flushed, "whoever claims it may keep it");

    let b = create(&engine, "b").await;
    run(&engine, Command::Start { vm: named("b") }).await.unwrap();
    assert_eq!(last_start(&engine, "b").await, LastStart { from: StartedFrom::Pool, not_pooled: None });
    let process = process_of(&stage, &engine, b).await;
    assert!(Arc::ptr_eq(&process, &warm), "that very instance is the VM's");
    let told = view(&engine, "b").await.attestations.expect("what was claimed attests");
    assert_eq!(told.hostname, "b");
    {
        let thaws = process.guest.thaws.lock().unwrap();
        assert_eq!(thaws.len(), 2, "renewed when it was made, and again as its VM");
        assert_ne!(thaws[0].entropy.0, thaws[1].entropy.0);
        assert_ne!(thaws[0].instance, thaws[1].instance);
        assert_ne!(thaws[0].identity, thaws[1].identity);
    }
    // It is a VM like any other.
    program(&engine, "b", &["note", "mine"]).await;
    program(&engine, "b", &["save", "disk"]).await;
    // A session that is lost does not rename it back: the guest refuses another name than its own.
    process.cut_channel();
    assert_eq!(program(&engine, "b", &["notes"]).await, "mine");
    snapshot(&engine, "b", Some("kept")).await.unwrap();
    rollback(&engine, "b", offshoot_types::RollbackTo::Snapshot("b@kept".parse().unwrap())).await.unwrap();
    assert_eq!(program(&engine, "b", &["notes"]).await, "mine");
    run(&engine, Command::Stop { vm: named("b"), grace: GRACE }).await.unwrap();
    run(&engine, Command::Start { vm: named("b") }).await.unwrap();
    assert_eq!(program(&engine, "b", &["saved"]).await, "disk");
    let again = last_start(&engine, "b").await;
    assert_eq!(again.from, StartedFrom::Boot);
    assert!(again.not_pooled.unwrap().contains("disk"), "what ran is not new any more");

    ready(&engine, 1).await;
    let counts = shelf(&engine).unwrap();
    assert_eq!((counts.claimed, counts.missed, counts.target), (1, 1, 1));
    for (name, command) in [("a", false), ("b", true)] {
        let destroy = Command::Destroy { vm: named(name) };
        if command {
            let operation = engine.destroy_with_snapshots(permit(&engine, destroy)).await.unwrap();
            engine.wait(operation.id, None).await.unwrap();
        } else {
            run(&engine, destroy).await.unwrap();
        }
    }
    assert_eq!(stage.host.most_of_one_vm(), 1, "no two write to one layer");
    ends_clean(&stage, engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_the_vms_and_snapshots_of_the_pool() {
    let stage = stage();
    let engine = warm(&stage).await;
    assert!(engine.vms(permit(&engine, Command::Inspect { vm: None })).unwrap().is_empty());
    assert!(snapshots(&engine).await.is_empty());
    let Some(PoolTemplate::Ready(template)) = shelf(&engine).map(|shelf| shelf.template) else {
        panic!("{:?}", pool(&engine))
    };
    let hidden = remove_snapshot(&engine, template).await.unwrap_err();
    assert_eq!(hidden.code, ErrorCode::NotFound, "{hidden:?}");
    let rows = engine.store().vms().await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].owner.clone(), rows[0].spec.lifetime), (Owner::daemon(), Lifetime::Request));
    let id = offshoot_types::VmRef::Id(rows[0].id);
    let refused = engine.submit(permit(&engine, Command::Destroy { vm: id })).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotFound);
    ends_clean(&stage, engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_vm_outlives_the_daemon_and_its_files_go_with_it() {
    let stage = stage();
    let engine = warm(&stage).await;
    let b = create_running(&engine, "b").await;
    assert_eq!(last_start(&engine, "b").await.from, StartedFrom::Pool);
    program(&engine, "b", &["note", "mine"]).await;
    let before = process_of(&stage, &engine, b).await;
    ready(&engine, 1).await;
    engine.crash().await;
    let engine = stage.engine().await;
    assert_eq!(last_start(&engine, "b").await.from, StartedFrom::Pool, "it is known who it was");
    assert!(Arc::ptr_eq(&before, &process_of(&stage, &engine, b).await), "it was adopted undisturbed");
    assert!(before.record.state_dir.is_dir(), "its files are where it was started");
    assert_eq!(program(&engine, "b", &["notes"]).await, "mine");
    // The instance nobody had claimed went with the daemon that had it.
    eventually("only the VM's process is left", || stage.host.processes().len() == 1).await;
    let mut console =
        engine.console(permit(&engine, Command::Inspect { vm: Some(named("b")) })).await.unwrap();
    assert_eq!(console.next(offshoot_engine::Follow::No).await.unwrap().as_deref(), Some(&b"booted\n"[..]));
    run(&engine, Command::Stop { vm: named("b"), grace: GRACE }).await.unwrap();
    let mut console =
        engine.console(permit(&engine, Command::Inspect { vm: Some(named("b")) })).await.unwrap();
    assert_eq!(console.next(offshoot_engine::Follow::No).await.unwrap().as_deref(), Some(&b"booted\n"[..]));
    assert!(!before.record.state_dir.exists(), "its files are among its VM's own");
    run(&engine, Command::Destroy { vm: named("b") }).await.unwrap();
    ends_clean(&stage, engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_instance_a_vm_starts_from_the_template_of_an_earlier_daemon() {
    let stage = stage();
    let engine = warm(&stage).await;
    let boots = stage.host.boots();
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    let engine = stage.engine().await;
    let b = create_running(&engine, "b").await;
    let start = last_start(&engine, "b").await;
    assert_eq!(start.from, StartedFrom::Template);
    assert!(start.not_pooled.unwrap().contains("no instance was ready"));
    let process = process_of(&stage, &engine, b).await;
    assert_eq!(process.guest.thaws.lock().unwrap().len(), 1);
    assert_eq!(view(&engine, "b").await.attestations.unwrap().hostname, "b");
    assert!(process.record.memory_base.is_some(), "its first snapshot is a difference to the template");
    program(&engine, "b", &["save", "disk"]).await;
    let first = snapshot(&engine, "b", Some("first")).await.unwrap();
    assert_eq!(first.parent, None, "the template is not in its tree");
    ready(&engine, 1).await;
    assert_eq!(stage.host.boots(), boots + 2, "two restores, no boot");
    run(&engine, Command::Stop { vm: named("b"), grace: GRACE }).await.unwrap();
    run(&engine, Command::Start { vm: named("b") }).await.unwrap();
    assert_eq!(program(&engine, "b", &["saved"]).await, "disk");
    let destroy = permit(&engine, Command::Destroy { vm: named("b") });
    let operation = engine.destroy_with_snapshots(destroy).await.unwrap();
    engine.wait(operation.id, None).await.unwrap();
    ends_clean(&stage, engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_starts_at_once_share_nothing() {
    let stage = stage();
    let engine = warm(&stage).await;
    let (b, c) = (create(&engine, "b").await, create(&engine, "c").await);
    let start = |name| run(&engine, Command::Start { vm: named(name) });
    let (first, second) = tokio::join!(start("b"), start("c"));
    first.and(second).unwrap();
    let mut from = [last_start(&engine, "b").await.from, last_start(&engine, "c").await.from];
    from.sort_by_key(|from| *from != StartedFrom::Pool);
    assert_eq!(from, [StartedFrom::Pool, StartedFrom::Template]);
    let (b, c) = (process_of(&stage, &engine, b).await, process_of(&stage, &engine, c).await);
    assert!(!Arc::ptr_eq(&b, &c));
    assert_eq!(stage.host.most_of_one_vm(), 1);
    for name in ["b", "c"] {
        run(&engine, Command::Destroy { vm: named(name) }).await.unwrap();
    }
    ends_clean(&stage, engine).await;
}

async fn start_as(engine: &Engine, spec: VmSpec) -> Result<LastStart, Failure> {
    let name = spec.name.clone();
    run(engine, Command::Create { spec: Box::new(spec) }).await?;
    run(engine, Command::Start { vm: named(name.as_str()) }).await?;
    Ok(last_start(engine, name.as_str()).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_size_is_not_claimed_and_says_so() {
    let stage = stage();
    let engine = warm(&stage).await;
    let larger = VmSpec { memory: MemMib::from_mib(256).unwrap(), ..*spec("b") };
    let start = start_as(&engine, larger).await.unwrap();
    assert_eq!(start.from, StartedFrom::Boot);
    let why = start.not_pooled.unwrap();
    assert!(why.contains("its memory is 256") && why.contains("not 128"), "{why}");
    // From now on there is one of that size too.
    ready(&engine, 1).await;
    let again = VmSpec { memory: MemMib::from_mib(256).unwrap(), ..*spec("c") };
    assert_eq!(start_as(&engine, again).await.unwrap().from, StartedFrom::Pool);
    assert_eq!(start_as(&engine, *spec("d")).await.unwrap().from, StartedFrom::Pool);
    assert_eq!(pool(&engine).shelves.len(), 2);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_off_makes_nothing_and_uses_nothing() {
    let mut stage = stage();
    let engine = warm(&stage).await;
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    stage.pool = PoolOptions::of(PoolSize::Off);
    let engine = stage.engine().await;
    create_running(&engine, "b").await;
    let start = last_start(&engine, "b").await;
    assert_eq!((start.from, start.not_pooled), (StartedFrom::Boot, Some("the pool is off".into())));
    assert_eq!(pool(&engine).shelves, []);
    assert_eq!(stage.host.processes().len(), 1);
    run(&engine, Command::Destroy { vm: named("b") }).await.unwrap();
    ends_clean(&stage, engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_goes_before_the_pool_when_memory_is_short() {
    let mut stage = stage();
    let vms = |count: u64| Bytes(count * (128 << 20));
    stage.limits = Limits { memory: vms(2), ..Limits::UNBOUNDED };
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    ready(&engine, 1).await;
    // A claim frees what it takes: the third one of three does not fit, and the pool's makes room for it.
    create_running(&engine, "b").await;
    let start = last_start(&engine, "b").await;
    assert_eq!(start.from, StartedFrom::Template, "{start:?}");
    eventually("the instance is gone", || stage.host.processes().len() == 2).await;
    let full = run(&engine, Command::Create { spec: spec("c") }).await.unwrap_err();
    assert_eq!(full.code, ErrorCode::NoResource, "{full:?}");
    for name in ["a", "b"] {
        run(&engine, Command::Destroy { vm: named(name) }).await.unwrap();
    }
    ends_clean(&stage, engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adaptive_pool_grows_with_what_it_lacked_and_empties_when_nobody_starts_anything() {
    let mut stage = stage();
    let size = PoolSize::Adaptive { most: 2 };
    stage.pool =
        PoolOptions { size, shrink: Duration::from_secs(60), drain: Duration::from_secs(600), ..EAGER };
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    ready(&engine, 1).await;
    let start = |name: &'static str| {
        let engine = engine.clone();
        async move { create_running(&engine, name).await }
    };
    tokio::join!(start("b"), start("c"), start("d"));
    ready(&engine, 2).await;
    assert_eq!(shelf(&engine).unwrap().target, 2, "bounded");
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    stage.pool =
        PoolOptions { size, shrink: Duration::from_millis(20), drain: Duration::from_millis(60), ..EAGER };
    let engine = stage.engine().await;
    create_running(&engine, "e").await;
    eventually("it is drained", || shelf(&engine).is_some_and(|shelf| shelf.target == 0 && shelf.ready == 0))
        .await;
    eventually("only VMs have processes", || stage.host.processes().len() == 5).await;
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_pool_has_and_does_keeps_no_daemon() {
    let mut stage = stage();
    let engine = warm(&stage).await;
    ready(&engine, 1).await;
    eventually("nobody wants anything", || engine.census().is_idle()).await;
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    stage.pool = PoolOptions {
        size: PoolSize::Adaptive { most: 2 },
        shrink: Duration::from_millis(20),
        drain: Duration::from_millis(60),
        ..EAGER
    };
    let engine = stage.engine().await;
    create_running(&engine, "b").await;
    run(&engine, Command::Destroy { vm: named("b") }).await.unwrap();
    eventually("nobody wants anything", || engine.census().is_idle()).await;
    let mut census = engine.census_changes();
    eventually("it is drained", || {
        assert!(census.borrow_and_update().is_idle());
        stage.host.processes().is_empty()
    })
    .await;
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_never_returns() {
    let stage = stage();
    let engine = warm(&stage).await;
    let b = create_running(&engine, "b").await;
    let used = process_of(&stage, &engine, b).await;
    for command in [Command::Stop { vm: named("b"), grace: GRACE }, Command::Destroy { vm: named("b") }] {
        run(&engine, command).await.unwrap();
        assert!(!used.is_alive());
    }
    ready(&engine, 1).await;
    let c = create_running(&engine, "c").await;
    assert_eq!(last_start(&engine, "c").await.from, StartedFrom::Pool);
    assert!(!Arc::ptr_eq(&used, &process_of(&stage, &engine, c).await));
    assert_eq!(view(&engine, "c").await.state.name(), VmStateName::Running);
    assert_ne!(view(&engine, "c").await.state, VmState::Stopped);
    run(&engine, Command::Destroy { vm: named("c") }).await.unwrap();
    ends_clean(&stage, engine).await;
}
