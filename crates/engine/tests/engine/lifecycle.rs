//! What a VM goes through, and what callers are told.

use crate::{host::Faults, stage::*};
use offshoot_engine::{EventStream, OnShutdown};
use offshoot_provider::Exit;
use offshoot_types::{
    Command, ErrorCode, Event, EventId, EventKind, Lifetime, OperationKind, OperationOutcome, SnapshotKind,
    VmRef, VmState, VmStateName,
};
use std::time::{Duration, Instant};

async fn events(engine: &offshoot_engine::Engine) -> EventStream {
    engine.events(permit(engine, Command::Inspect { vm: None }), Some(EventId(0))).await.unwrap()
}

/// All events up to the end of the operation of this kind.
async fn until_ended(stream: &mut EventStream, kind: OperationKind) -> Vec<Event> {
    let mut seen = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), stream.next()).await.unwrap().unwrap();
        let last = matches!(&event.kind, EventKind::OperationEnded { kind: k, .. } if *k == kind);
        seen.push(event);
        if last {
            return seen;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_lifecycle_moves_in_order_with_one_event_reason_and_generation_each() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    let running = view(&engine, "a").await;
    assert_eq!(running.guest.as_ref().unwrap().kernel, "6.1.0-guest");
    assert!(running.started_at.is_some() && running.usage.is_some());
    run(&engine, Command::Stop { vm: named("a"), grace: GRACE }).await.unwrap();
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();

    let mut stream = events(&engine).await;
    let seen = until_ended(&mut stream, OperationKind::Destroy).await;
    let mut moves = Vec::new();
    for event in &seen {
        if let EventKind::StateChanged { to, generation, reason, .. } = &event.kind {
            assert!(!reason.is_empty() && event.operation.is_some());
            moves.push((to.name(), generation.0));
        }
    }
    use VmStateName::*;
    let expected = [Creating, Stopped, Starting, Running, Stopping, Stopped, Destroyed]
        .into_iter()
        .zip(1..)
        .collect::<Vec<_>>();
    assert_eq!(moves, expected);
    assert!(seen.is_sorted_by_key(|event| event.id));
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_disk_is_its_memory_is_not_stopped_but_suspended_or_destroyed() {
    let stage = Stage::new();
    stage.host.set_faults(Faults { no_disk: true, ..Faults::default() });
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    program(&engine, "a", &["save", "kept"]).await;
    let stops =
        [Command::Stop { vm: named("a"), grace: GRACE }, Command::Restart { vm: named("a"), grace: GRACE }];
    for stop in stops {
        let refused = run(&engine, stop).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unsupported, "{refused:?}");
        assert!(
            refused.hint.as_deref().is_some_and(|hint| hint.contains("offshoot suspend a")),
            "{refused:?}"
        );
        assert_eq!(view(&engine, "a").await.state, VmState::Running);
        assert!(stage.host.process(id).is_alive());
    }
    let refused = take(&engine, "a", None, SnapshotKind::DiskOnly).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unsupported, "{refused:?}");
    assert_eq!(program(&engine, "a", &["saved"]).await, "kept");

    run(&engine, Command::Suspend { vm: named("a") }).await.unwrap();
    let refused = run(&engine, Command::Stop { vm: named("a"), grace: GRACE }).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unsupported, "its memory is all there is: {refused:?}");
    run(&engine, Command::Resume { vm: named("a") }).await.unwrap();
    assert_eq!(program(&engine, "a", &["saved"]).await, "kept");
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_keeps_id_and_disk_and_takes_a_new_process() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let disk = stage.state().join("disks").join(format!("{}.qcow2", id.simple()));
    let before = std::fs::metadata(&disk).unwrap();
    let old = stage.host.process(id);
    run(&engine, Command::Restart { vm: named("a"), grace: GRACE }).await.unwrap();
    let after = view(&engine, "a").await;
    assert_eq!((after.id, after.state), (id, VmState::Running));
    assert!(!old.is_alive() && stage.host.boots() == 2 && stage.host.most_of_one_vm() == 1);
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(&disk).unwrap().ino(), before.ino());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_and_resume_are_idempotent_and_a_paused_vm_stops_in_order() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    for _ in 0..2 {
        run(&engine, Command::Pause { vm: named("a") }).await.unwrap();
    }
    assert_eq!(view(&engine, "a").await.state, VmState::Paused);
    let refused = exec(&engine, "a", &["true"]).await.unwrap_err();
    assert_eq!(refused.message, "VM `a` is paused; resume it with `offshoot resume a`");
    for _ in 0..2 {
        run(&engine, Command::Resume { vm: named("a") }).await.unwrap();
    }
    run(&engine, Command::Pause { vm: named("a") }).await.unwrap();
    run(&engine, Command::Stop { vm: named("a"), grace: GRACE }).await.unwrap();
    run(&engine, Command::Stop { vm: named("a"), grace: GRACE }).await.unwrap();
    assert_eq!(view(&engine, "a").await.state, VmState::Stopped);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_vmm_is_failed_with_its_signal_within_a_second_and_can_be_started_again() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    stage.host.process(id).end(Exit::Signal(9));
    let began = Instant::now();
    let failed = wait_for(&engine, "a", &[VmStateName::Failed], Duration::from_secs(5)).await;
    assert!(began.elapsed() < Duration::from_secs(1));
    let VmState::Failed(why) = &failed.state else { panic!("{failed:?}") };
    assert_eq!(why.reason, "the VMM was ended by signal 9");
    assert_eq!(why.step, "observed/vmm-exit");
    let refused = exec(&engine, "a", &["true"]).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::WrongState);
    assert!(refused.cause.unwrap().contains("signal 9"));
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_vm_releases_resources() {
    let mut stage = Stage::new();
    stage.limits.memory = offshoot_types::Bytes(128 << 20);
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    stage.host.process(id).end(Exit::Signal(9));
    wait_for(&engine, "a", &[VmStateName::Failed], Duration::from_secs(5)).await;
    eventually("everything of the dead process is reclaimed", || stage.host.processes().is_empty()).await;
    // All memory there is, which the failed VM no longer holds; its disk is kept.
    create_running(&engine, "b").await;
    assert!(stage.state().join("disks").join(format!("{}.qcow2", id.simple())).exists());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_powers_itself_off_is_stopped_not_failed() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    stage.host.process(id).guest.power_off();
    let stopped = wait_for(&engine, "a", &[VmStateName::Stopped], Duration::from_secs(5)).await;
    assert_eq!(stopped.state, VmState::Stopped);
    eventually("nothing of the process is left", || stage.host.processes().is_empty()).await;
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_that_fails_says_why_leaves_no_process_and_can_be_repeated() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create(&engine, "a").await;
    stage.host.set_faults(Faults { boot_fails: true, ..Faults::default() });
    let failure = run(&engine, Command::Start { vm: named("a") }).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Backend);
    assert!(failure.message.contains("qemu: no such machine"), "{failure:?}");
    assert!(failure.cause.unwrap().contains("last words"));
    let VmState::Failed(why) = view(&engine, "a").await.state else { panic!() };
    assert_eq!(why.step, "start/boot");
    assert!(stage.host.processes().is_empty());
    stage.host.set_faults(Faults::default());
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_answers_is_given_up_at_the_boot_deadline() {
    let mut stage = Stage::new();
    stage.deadlines.boot = Duration::from_millis(300);
    stage.host.set_faults(Faults { guest_mute: true, ..Faults::default() });
    let engine = stage.engine().await;
    create(&engine, "a").await;
    let failure = run(&engine, Command::Start { vm: named("a") }).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Guest);
    assert!(failure.message.contains("did not answer within 300ms"), "{failure:?}");
    assert!(stage.host.processes().is_empty());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_of_another_version_is_given_up_at_once_and_said_to_need_a_new_image() {
    let mut stage = Stage::new();
    stage.deadlines.boot = Duration::from_secs(3600);
    stage.host.set_faults(Faults { guest_old: true, ..Faults::default() });
    let engine = stage.engine().await;
    create(&engine, "a").await;
    let failure = run(&engine, Command::Start { vm: named("a") }).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Guest);
    assert!(failure.message.contains("speaks protocol version"), "{failure:?}");
    assert!(failure.hint.unwrap().contains("offshoot image build"));
    assert!(stage.host.processes().is_empty());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_once_and_free_again_after_destroy() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let first = create(&engine, "a").await;
    let taken = run(&engine, Command::Create { spec: spec("a") }).await.unwrap_err();
    assert_eq!(taken.code, ErrorCode::AlreadyExists);
    assert_eq!(view(&engine, "a").await.id, first);
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    assert_ne!(create(&engine, "a").await, first);
    let unknown = run(&engine, Command::Start { vm: named("b") }).await.unwrap_err();
    assert_eq!((unknown.code, unknown.hint.unwrap().as_str()), (ErrorCode::NotFound, "did you mean `a`?"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn max_vms_counts_creating() {
    let mut stage = Stage::new();
    stage.limits.vms = 1;
    let (reached, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let stage = stage.at_checkpoints(move |checkpoint| {
        let reached = reached.clone();
        Box::pin(async move {
            if checkpoint.step == "data-disk" && checkpoint.phase == offshoot_engine::Phase::BeforeAct {
                reached.send(()).unwrap();
                std::future::pending().await
            }
            offshoot_engine::Fault::Continue
        })
    });
    let engine = stage.engine().await;
    let operation = engine.submit(permit(&engine, Command::Create { spec: spec("a") })).await.unwrap();
    seen.recv().await.unwrap();
    assert_eq!(view(&engine, "a").await.state, VmState::Creating);
    let refused = run(&engine, Command::Create { spec: spec("b") }).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NoResource);
    assert!(refused.hint.is_some());
    // A creation that is stuck does not hold up its own destroy.
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    let cancelled = engine.wait(operation.id, None).await.unwrap();
    assert!(matches!(
        cancelled.state,
        offshoot_types::OperationState::Ended { outcome: OperationOutcome::Failed { failure } }
            if failure.code == ErrorCode::Interrupted
    ));
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn destroy_twice_idempotent() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let both = [VmRef::Id(id), VmRef::Id(id)].map(|vm| permit(&engine, Command::Destroy { vm }));
    let [first, second] = both;
    let (first, second) = tokio::join!(engine.submit(first), engine.submit(second));
    let mut done = 0;
    for operation in [first, second] {
        match operation {
            Ok(operation) => {
                let ended = engine.wait(operation.id, None).await.unwrap();
                assert_eq!(
                    ended.state,
                    offshoot_types::OperationState::Ended { outcome: OperationOutcome::Done }
                );
                done += 1;
            }
            // It came after the end of the first.
            Err(failure) => assert_eq!(failure.code, ErrorCode::NotFound),
        }
    }
    assert!(done >= 1);
    let again = run(&engine, Command::Destroy { vm: VmRef::Id(id) }).await.unwrap_err();
    assert_eq!(again.code, ErrorCode::NotFound);
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn teardown_verified() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    stage.host.set_faults(Faults { reclaim_fails: true, ..Faults::default() });
    let failure = run(&engine, Command::Destroy { vm: named("a") }).await.unwrap_err();
    assert!(failure.message.contains("cgroup: device or resource busy"), "{failure:?}");
    let VmState::Failed(why) = view(&engine, "a").await.state else {
        panic!("it must not be called destroyed")
    };
    assert_eq!(why.step, "destroy/reclaim");
    stage.host.set_faults(Faults::default());
    // The reaper goes on by itself.
    let gone = wait_for(&engine, "a", &[VmStateName::Destroyed], Duration::from_secs(10)).await;
    assert_eq!(gone.state, VmState::Destroyed);
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wedged_pause_blocks_no_destroy() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    stage.host.set_faults(Faults { pause_hangs: true, ..Faults::default() });
    let pause = engine.submit(permit(&engine, Command::Pause { vm: named("a") })).await.unwrap();
    let waiting = exec(&engine, "a", &["true"]);
    let destroyed = run(&engine, Command::Destroy { vm: named("a") });
    let (waiting, destroyed) = tokio::join!(waiting, destroyed);
    destroyed.unwrap();
    // Whoever waited was answered, whichever way it went.
    drop(waiting);
    let pause = engine.wait(pause.id, Some(Duration::from_secs(5))).await.unwrap();
    assert!(matches!(pause.state, offshoot_types::OperationState::Ended { .. }));
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_a_request_goes_with_its_guard() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let of_request = |name| {
        let mut spec = spec(name);
        spec.lifetime = Lifetime::Request;
        permit(&engine, Command::Create { spec })
    };
    let kept = engine.create_for_request(of_request("a")).await.unwrap();
    run(&engine, Command::Start { vm: VmRef::Id(kept.id()) }).await.unwrap();
    kept.destroy().await.unwrap();
    assert!(stage.host.processes().is_empty());

    let dropped = engine.create_for_request(of_request("b")).await.unwrap();
    run(&engine, Command::Start { vm: VmRef::Id(dropped.id()) }).await.unwrap();
    drop(dropped);
    eventually("the reaper destroyed it", || engine.census().vms == 0).await;

    // The daemon dies: the next one destroys it.
    let orphan = engine.create_for_request(of_request("c")).await.unwrap();
    run(&engine, Command::Start { vm: VmRef::Id(orphan.id()) }).await.unwrap();
    engine.crash().await;
    drop(orphan);
    let engine = stage.engine().await;
    eventually("the next engine destroyed it", || engine.census().vms == 0).await;
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_leaves_vms_running_or_stops_them_as_told() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let report = engine.shutdown(OnShutdown::LeaveVms).await;
    assert_eq!((report.left_running, report.interrupted.len()), (vec![id], 0));
    let refused = engine.vms(permit(&engine, Command::Inspect { vm: None }));
    assert!(refused.is_ok(), "reads of what is known still answer");
    drop(engine);
    assert!(stage.host.process(id).is_alive());

    let engine = stage.engine().await;
    let report = engine.shutdown(OnShutdown::StopVms { grace: GRACE }).await;
    assert!(report.not_stopped.is_empty() && report.left_running.is_empty());
    drop(engine);
    assert!(stage.host.processes().is_empty());
    stage.assert_record(|vms, _| assert_eq!(vms[0].state, VmState::Stopped)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_guest_is_ended_by_the_ladder() {
    let stage = Stage::new();
    stage.host.set_faults(Faults { stubborn: true, ..Faults::default() });
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    let grace = Duration::from_millis(100);
    run(&engine, Command::Stop { vm: named("a"), grace }).await.unwrap();
    assert!(stage.host.processes().is_empty());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_is_given_up_leaves_the_vm_in_the_state_its_vmm_is_in() {
    let mut stage = Stage::new();
    stage.deadlines.pause = Duration::from_millis(200);
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    stage.host.set_faults(Faults { pause_hangs: true, ..Faults::default() });
    let failure = run(&engine, Command::Pause { vm: named("a") }).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Timeout);
    let seen = wait_for(&engine, "a", &[VmStateName::Paused], Duration::from_secs(5)).await;
    assert_eq!(seen.state, VmState::Paused, "it did pause, though it never said so");
    run(&engine, Command::Resume { vm: named("a") }).await.unwrap();
    let (_, end) = output(exec(&engine, "a", &["true"]).await.unwrap()).await;
    assert!(matches!(end, offshoot_engine::ExecEvent::Ended(_)));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_of_the_latest_boot_is_read_and_followed_until_the_process_ends() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    let mut console =
        engine.console(permit(&engine, Command::Inspect { vm: Some(named("a")) })).await.unwrap();
    assert_eq!(console.next(offshoot_engine::Follow::No).await.unwrap().unwrap(), "booted\n");
    assert_eq!(console.next(offshoot_engine::Follow::No).await.unwrap(), None);
    let stop = run(&engine, Command::Stop { vm: named("a"), grace: GRACE });
    let (end, stopped) = tokio::join!(console.next(offshoot_engine::Follow::Yes), stop);
    stopped.unwrap();
    assert_eq!(end.unwrap(), None);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_for_another_verb_is_refused_by_name() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create(&engine, "a").await;
    let inspect = || permit(&engine, Command::Inspect { vm: Some(named("a")) });
    assert_eq!(engine.submit(inspect()).await.unwrap_err().code, ErrorCode::Internal);
    assert_eq!(engine.exec(inspect()).await.unwrap_err().code, ErrorCode::Internal);
    let start = permit(&engine, Command::Start { vm: named("a") });
    let refused = engine.vm(start).await.unwrap_err();
    assert_eq!(refused.message, "`vm` was called with a permit for `start`");
    leave(engine).await;
}
