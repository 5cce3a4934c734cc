//! To the disk and back.

use crate::{host::Faults, sagas::state, stage::*};
use offshoot_types::{Command, ErrorCode, SnapshotOrigin, VmState, VmStateName};

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_vm_has_no_process_and_goes_on_where_it_was() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    program(&engine, "a", &["note", "in memory"]).await;
    program(&engine, "a", &["save", "on disk"]).await;
    run(&engine, Command::Suspend { vm: named("a") }).await.unwrap();
    assert!(stage.host.processes().is_empty());
    let suspended = view(&engine, "a").await;
    assert!(suspended.state == VmState::Suspended && suspended.suspended_to.is_some());
    assert_eq!(snapshots(&engine).await[0].origin, SnapshotOrigin::Suspend);
    // Asking again is satisfied; the daemon may come and go.
    run(&engine, Command::Suspend { vm: named("a") }).await.unwrap();
    engine.crash().await;
    let engine = stage.engine().await;
    assert_eq!(state(&engine), Some(VmState::Suspended));
    run(&engine, Command::Resume { vm: named("a") }).await.unwrap();
    assert_eq!(program(&engine, "a", &["notes"]).await, "in memory");
    assert_eq!(program(&engine, "a", &["saved"]).await, "on disk");
    let resumed = view(&engine, "a").await;
    assert!(resumed.suspended_to.is_none() && resumed.attestations.is_some(), "{resumed:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_that_fails_leaves_it_suspended_and_can_be_tried_again() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    program(&engine, "a", &["note", "in memory"]).await;
    run(&engine, Command::Suspend { vm: named("a") }).await.unwrap();
    let faults = [
        (Faults { restore_fails: true, ..Faults::default() }, ErrorCode::Backend),
        (Faults { guest_stale: true, ..Faults::default() }, ErrorCode::Thaw),
    ];
    for (faults, code) in faults {
        stage.host.set_faults(faults);
        let refused = run(&engine, Command::Start { vm: named("a") }).await.unwrap_err();
        assert_eq!(refused.code, code, "{refused:?}");
        assert_eq!(state(&engine), Some(VmState::Suspended));
        assert!(stage.host.processes().is_empty(), "a guest that did not confirm does not run");
    }
    stage.host.set_faults(Faults::default());
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    assert_eq!(program(&engine, "a", &["notes"]).await, "in memory");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_a_suspended_vm_drops_its_memory_and_keeps_its_disk() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    program(&engine, "a", &["note", "in memory"]).await;
    program(&engine, "a", &["save", "on disk"]).await;
    run(&engine, Command::Suspend { vm: named("a") }).await.unwrap();
    run(&engine, Command::Stop { vm: named("a"), grace: GRACE }).await.unwrap();
    assert_eq!(state(&engine).map(|state| state.name()), Some(VmStateName::Stopped));
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    assert_eq!(program(&engine, "a", &["notes"]).await, "");
    assert_eq!(program(&engine, "a", &["saved"]).await, "on disk");
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}
