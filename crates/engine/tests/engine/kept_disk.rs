//! VMs whose disk is their memory: a stop keeps what they have written, and a start puts it back.

use crate::{
    crash::stage_that_stops,
    host::Faults,
    sagas::{command, newest, perform, state},
    stage::*,
};
use offshoot_engine::{Checkpoint, Engine, Fault, OnShutdown, Phase, steps_of};
use offshoot_provider::Exit;
use offshoot_types::{Command, ErrorCode, Failure, OperationKind, RollbackTo, VmState, VmStateName};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

const IN_MEMORY: Faults = Faults {
    boot_fails: false,
    guest_mute: false,
    guest_old: false,
    pause_hangs: false,
    reclaim_fails: false,
    no_disk: true,
    carries: true,
    putting_back_fails: false,
    checkpoint_fails: false,
    restore_fails: false,
    another_vmm: false,
    guest_stale: false,
    stubborn: false,
};

async fn stop(engine: &Engine) -> Result<(), Failure> {
    run(engine, command(OperationKind::Stop)).await.map(drop)
}

async fn start(engine: &Engine) -> Result<(), Failure> {
    run(engine, command(OperationKind::Start)).await.map(drop)
}

/// The archives in the directories of VMs, finished or not.
fn archives(stage: &Stage) -> Vec<PathBuf> {
    let vms = std::fs::read_dir(stage.state().join("vms")).unwrap().map(|vm| vm.unwrap().path());
    let files = vms.flat_map(|vm| std::fs::read_dir(vm).unwrap().map(|file| file.unwrap().path()));
    files.filter(|file| file.file_name().unwrap().to_str().unwrap().starts_with("disk-")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_keeps_what_lies_in_memory_and_a_start_puts_it_back() {
    let stage = Stage::new();
    stage.host.set_faults(IN_MEMORY);
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    program(&engine, "a", &["save", "one"]).await;
    stop(&engine).await.unwrap();
    assert_eq!(view(&engine, "a").await.state, VmState::Stopped);
    assert!(stage.host.processes().is_empty());
    let first = archives(&stage);
    assert_eq!(first.len(), 1);
    // The daemon that starts it need not be the one that stopped it.
    leave(engine).await;
    let engine = stage.engine().await;
    start(&engine).await.unwrap();
    assert_eq!(program(&engine, "a", &["saved"]).await, "one");
    program(&engine, "a", &["save", "two"]).await;
    run(&engine, command(OperationKind::Restart)).await.unwrap();
    assert_eq!(program(&engine, "a", &["saved"]).await, "onetwo");
    let second = archives(&stage);
    assert!(second.len() == 1 && second != first, "a later stop takes the place of an earlier one");

    // A VM that stood still is stopped with all it has, too.
    run(&engine, command(OperationKind::Pause)).await.unwrap();
    stop(&engine).await.unwrap();
    start(&engine).await.unwrap();
    assert_eq!(program(&engine, "a", &["saved"]).await, "onetwo");
    stop(&engine).await.unwrap();
    run(&engine, command(OperationKind::Destroy)).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_cannot_keep_it_leaves_the_vm_running_with_all_it_has() {
    let stage = Stage::new();
    stage.host.set_faults(IN_MEMORY);
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    program(&engine, "a", &["save", "one"]).await;
    let goes_on = async |why: &str| {
        assert_eq!(state(&engine), Some(VmState::Running), "{why}");
        assert!(!stage.host.process(id).guest.is_frozen(), "{why}");
        assert!(archives(&stage).is_empty(), "{why}: {:?}", archives(&stage));
        assert_eq!(program(&engine, "a", &["saved"]).await, "one", "{why}");
    };
    let forced = Command::Stop { vm: named("a"), grace: Duration::ZERO };
    let refused = run(&engine, forced).await.unwrap_err();
    assert!(refused.code == ErrorCode::Unsupported && refused.message.contains("lost"), "{refused:?}");
    goes_on("without a grace").await;

    let guest = stage.host.process(id).guest.clone();
    guest.carrying_fails.store(true, Ordering::SeqCst);
    let refused = stop(&engine).await.unwrap_err();
    assert!(refused.message.contains("runs on") && refused.message.contains("half of it"), "{refused:?}");
    goes_on("half-way").await;
    guest.carrying_fails.store(false, Ordering::SeqCst);

    guest.restless.store(true, Ordering::SeqCst);
    guest.carries.store(false, Ordering::SeqCst);
    let refused = run(&engine, command(OperationKind::Restart)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unsupported, "an agent of before: {refused:?}");
    goes_on("not by this agent").await;
    guest.restless.store(false, Ordering::SeqCst);
    guest.carries.store(true, Ordering::SeqCst);

    // In place of the directory for it, something that is none.
    let vm = stage.state().join("vms").join(id.simple());
    let permissions = std::fs::metadata(&vm).unwrap().permissions();
    let aside = vm.with_extension("aside");
    std::fs::rename(&vm, &aside).unwrap();
    std::fs::write(&vm, "").unwrap();
    let refused = stop(&engine).await.unwrap_err();
    std::fs::remove_file(&vm).unwrap();
    std::fs::rename(&aside, &vm).unwrap();
    assert_eq!(std::fs::metadata(&vm).unwrap().permissions(), permissions);
    assert!(refused.message.contains("runs on"), "{refused:?}");
    goes_on("no place for it").await;

    stop(&engine).await.unwrap();
    start(&engine).await.unwrap();
    assert_eq!(program(&engine, "a", &["saved"]).await, "one");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_start_goes_back_to_an_older_disk_by_itself() {
    let stage = Stage::new();
    stage.host.set_faults(IN_MEMORY);
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    program(&engine, "a", &["save", "one"]).await;
    snapshot(&engine, "a", Some("first")).await.unwrap();
    program(&engine, "a", &["save", "two"]).await;
    for (exit, left) in [(Exit::Signal(9), VmStateName::Failed), (Exit::PoweredOff, VmStateName::Stopped)] {
        stop(&engine).await.unwrap();
        start(&engine).await.unwrap();
        program(&engine, "a", &["save", "three"]).await;
        stage.host.process(id).end(exit);
        wait_for(&engine, "a", &[left], Duration::from_secs(10)).await;
        let refused = start(&engine).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::WrongState, "{refused:?}");
        assert!(refused.message.contains("lost") && refused.hint.unwrap().contains("rollback"));
        assert_eq!(view(&engine, "a").await.state.name(), left, "it is where it was");
        assert!(stage.host.processes().is_empty());
        rollback(&engine, "a", RollbackTo::Snapshot("a@first".parse().unwrap())).await.unwrap();
        assert!(archives(&stage).is_empty(), "the snapshot is what counts");
        run(&engine, Command::Resume { vm: named("a") }).await.unwrap();
        assert_eq!(program(&engine, "a", &["saved"]).await, "one", "the snapshot's disk, and no archive's");
    }
    // Nor one that was never stopped.
    run(&engine, Command::Create { spec: spec("b") }).await.unwrap();
    run(&engine, Command::Start { vm: named("b") }).await.unwrap();
    let other = view(&engine, "b").await.id;
    stage.host.process(other).end(Exit::Signal(9));
    wait_for(&engine, "b", &[VmStateName::Failed], Duration::from_secs(10)).await;
    let refused = run(&engine, Command::Start { vm: named("b") }).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::WrongState, "{refused:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_damaged_is_refused_by_name_and_taken_when_it_is_whole_again() {
    let stage = Stage::new();
    stage.host.set_faults(IN_MEMORY);
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    program(&engine, "a", &["save", "one"]).await;
    stop(&engine).await.unwrap();
    let [archive] = archives(&stage).try_into().unwrap();
    let whole = std::fs::read(&archive).unwrap();
    let mut bad = whole.clone();
    *bad.last_mut().unwrap() ^= 1;
    std::fs::write(&archive, bad).unwrap();
    let boots = stage.host.boots();
    let refused = start(&engine).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Snapshot, "{refused:?}");
    assert!(refused.message.contains(archive.to_str().unwrap()), "{refused:?}");
    assert_eq!((state(&engine), stage.host.boots()), (Some(VmState::Stopped), boots), "nothing was begun");
    std::fs::write(&archive, whole).unwrap();

    stage.host.set_faults(Faults { putting_back_fails: true, ..IN_MEMORY });
    let refused = start(&engine).await.unwrap_err();
    assert!(refused.message.contains("half of it"), "{refused:?}");
    assert_eq!(state(&engine), Some(VmState::Stopped), "to be tried again");
    assert!(stage.host.processes().is_empty(), "half a disk is nobody's");
    stage.host.set_faults(IN_MEMORY);
    start(&engine).await.unwrap();
    assert_eq!(program(&engine, "a", &["saved"]).await, "one");
    leave(engine).await;
}

/// What carries a disk: a stop, a restart, and a start of a VM that was stopped.
const KINDS: [OperationKind; 3] = [OperationKind::Stop, OperationKind::Restart, OperationKind::Start];

async fn prepare(engine: &Engine, kind: OperationKind) {
    create_running(engine, "a").await;
    program(engine, "a", &["save", "one"]).await;
    if kind == OperationKind::Start {
        stop(engine).await.unwrap();
    }
}

/// However a change ended: the VM can be brought to run, and has what it had.
async fn assert_nothing_lost(engine: &Engine, at: &str) {
    if state(engine).is_some_and(|state| state != VmState::Running) {
        start(engine).await.unwrap_or_else(|failure| panic!("{at}: {failure:?}"));
    }
    assert_eq!(program(engine, "a", &["saved"]).await, "one", "{at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_may_be_repeated_and_may_fail_without_losing_anything() {
    for kind in KINDS {
        for (step, _) in steps_of(kind) {
            for (phase, repeats) in
                [(Phase::AfterAct, true), (Phase::BeforeAct, false), (Phase::AfterAct, false)]
            {
                // After the last move the change is complete: nothing fails there.
                if (step, phase, repeats) == ("running", Phase::AfterAct, false) {
                    continue;
                }
                let at = format!("{kind}/{step} {phase:?} repeated: {repeats}");
                let armed = Arc::new(Mutex::new(false));
                let stage = Stage::new().at_checkpoints({
                    let armed = armed.clone();
                    move |checkpoint| {
                        let here = *armed.lock().unwrap() && checkpoint == Checkpoint { kind, step, phase };
                        let fault = match (here, repeats) {
                            (false, _) => Fault::Continue,
                            (true, true) => Fault::Repeat,
                            (true, false) => Fault::Fail(Failure::new(ErrorCode::Backend, "on purpose")),
                        };
                        Box::pin(async move { fault })
                    }
                });
                stage.host.set_faults(IN_MEMORY);
                let engine = stage.engine().await;
                prepare(&engine, kind).await;
                *armed.lock().unwrap() = true;
                let done = perform(&stage.host, &engine, kind).await;
                *armed.lock().unwrap() = false;
                assert_eq!(done.is_ok(), repeats, "{at}: {done:?}");
                assert_nothing_lost(&engine, &at).await;
                run(&engine, command(OperationKind::Destroy)).await.unwrap();
                engine.shutdown(OnShutdown::LeaveVms).await;
                drop(engine);
                stage.assert_nothing_left().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill9_leaves_the_running_vm_or_the_stopped_one_with_its_archive() {
    for kind in KINDS {
        for (step, _) in steps_of(kind) {
            for phase in [Phase::BeforeJournal, Phase::BeforeAct, Phase::AfterAct] {
                let name = format!("{kind}/{step} {phase:?}");
                let at = Arc::new(Mutex::new(None));
                let (stage, mut reached) = stage_that_stops(at.clone());
                stage.host.set_faults(IN_MEMORY);
                let engine = stage.engine().await;
                prepare(&engine, kind).await;
                *at.lock().unwrap() = Some(Checkpoint { kind, step, phase });
                let asked = tokio::spawn({
                    let (host, engine) = (stage.host.clone(), engine.clone());
                    async move { perform(&host, &engine, kind).await }
                });
                reached.recv().await.unwrap();
                asked.abort();
                let _cancelled = asked.await;
                let operation = newest(&engine, kind).await.unwrap().id;
                engine.crash().await;
                *at.lock().unwrap() = None;
                let engine = stage.engine().await;
                tokio::time::timeout(Duration::from_secs(20), engine.settled()).await.expect("it settles");
                engine.wait(operation, Some(Duration::ZERO)).await.unwrap();
                assert_nothing_lost(&engine, &name).await;
                assert!(archives(&stage).len() <= 1, "{name}: {:?}", archives(&stage));
                run(&engine, command(OperationKind::Destroy)).await.unwrap();
                leave(engine).await;
                stage.assert_nothing_left().await;
            }
        }
    }
}
