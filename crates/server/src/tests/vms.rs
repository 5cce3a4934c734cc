//! The life of VMs over HTTP.

use super::fixture::{Daemon, PATIENCE, Place, patient, refused, vm};
use offshoot_api::v1::{
    Change, CreateVm, DestroyQuery, EventQuery, OperationStateName, OutcomeName, PageQuery, WaitQuery,
};
use offshoot_types::{ErrorCode, VmStateName};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_is_created_started_paused_resumed_stopped_and_destroyed() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    let request = CreateVm { name: "web".into(), memory_mib: Some(256), ..CreateVm::default() };
    let created = client.create(&request).await.unwrap();
    assert_eq!(created.operation.outcome, Some(OutcomeName::Done));
    let made = created.vm.unwrap();
    assert_eq!((made.state, made.memory_mib, made.cpus), (VmStateName::Stopped, 256, 1));

    let web = vm("web");
    let started = client.start(&web, &patient()).await.unwrap().vm.unwrap();
    assert_eq!(started.state, VmStateName::Running);
    assert!(started.generation > made.generation && started.guest.is_some());
    assert_eq!(client.pause(&web, &patient()).await.unwrap().vm.unwrap().state, VmStateName::Paused);
    assert_eq!(client.resume(&web, &patient()).await.unwrap().vm.unwrap().state, VmStateName::Running);
    assert_eq!(client.restart(&web, &patient()).await.unwrap().vm.unwrap().state, VmStateName::Running);
    assert_eq!(client.stop(&web, &patient()).await.unwrap().vm.unwrap().state, VmStateName::Stopped);
    assert_eq!(client.vms().await.unwrap().vms.len(), 1);

    let destroyed = client.destroy(&web, &DestroyQuery::default()).await.unwrap();
    assert!(destroyed.vm.is_none_or(|vm| vm.state == VmStateName::Destroyed));
    assert!(client.vms().await.unwrap().vms.is_empty());
    refused(client.vm(&web).await, ErrorCode::NotFound);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_not_waited_for_is_settled_through_its_operation() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    client.create(&CreateVm { name: "web".into(), ..CreateVm::default() }).await.unwrap();
    let change = Change { wait: Some(false), ..Change::default() };
    let accepted = client.start(&vm("web"), &change).await.unwrap();
    let settled = client.settle(accepted.operation_id(), Some(PATIENCE)).await.unwrap();
    assert_eq!((settled.state, settled.outcome), (OperationStateName::Ended, Some(OutcomeName::Done)));
    let listed = client.operations().await.unwrap().operations;
    assert!(listed.iter().any(|operation| operation.id == settled.id));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_with_the_state_or_with_its_time() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    client.create(&CreateVm { name: "web".into(), ..CreateVm::default() }).await.unwrap();
    let web = vm("web");
    let wait = WaitQuery { state: Some("running".into()), timeout_ms: Some(50), ..WaitQuery::default() };
    assert!(!client.wait_once(&web, &wait).await.unwrap().reached);
    let change = Change { wait: Some(false), ..Change::default() };
    let (waited, started) =
        tokio::join!(client.wait(&web, VmStateName::Running, Some(PATIENCE)), client.start(&web, &change),);
    assert_eq!(waited.unwrap().state, VmStateName::Running);
    started.unwrap();
    let late = client.wait(&web, VmStateName::Paused, Some(Duration::from_millis(50))).await;
    assert_eq!(late.unwrap_err().code(), ErrorCode::Timeout);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_whole_or_in_pages_that_go_on_where_the_last_ended() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    for name in ["a", "b", "c"] {
        client.create(&CreateVm { name: name.into(), ..CreateVm::default() }).await.unwrap();
    }
    let page = async |cursor| {
        let page = PageQuery { limit: Some(2), cursor };
        let listed = client.vms_page(&page).await.unwrap();
        (listed.vms.into_iter().map(|vm| vm.name.to_string()).collect::<Vec<_>>(), listed.next_cursor)
    };
    let (first, cursor) = page(None).await;
    assert_eq!(first, ["a", "b"]);
    client.destroy(&vm("b"), &DestroyQuery::default()).await.unwrap();
    assert_eq!(page(cursor).await, (vec!["c".to_owned()], None));
    assert_eq!(client.vms().await.unwrap().vms.len(), 2);

    let latest = client.operations_page(&PageQuery { limit: Some(1), cursor: None }).await.unwrap();
    assert_eq!(latest.operations[0].kind.to_string(), "destroy");
    let older = PageQuery { limit: Some(1000), cursor: latest.next_cursor };
    let older = client.operations_page(&older).await.unwrap();
    assert_eq!(older.operations.len(), 3);
    assert_eq!(older.next_cursor, None);
    let none = client.vms_page(&PageQuery { limit: Some(0), cursor: None }).await.unwrap_err();
    assert_eq!(none.code(), ErrorCode::InvalidArgument);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_told_in_order_and_a_long_poll_wakes_for_the_next() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    client.create(&CreateVm { name: "web".into(), ..CreateVm::default() }).await.unwrap();
    let page = client.events(&EventQuery::default()).await.unwrap();
    assert!(!page.events.is_empty());
    assert!(page.events.is_sorted_by_key(|event| event.id));
    let next = EventQuery { after: page.next_after, wait_ms: Some(30_000), limit: Some(1) };
    let (web, change) = (vm("web"), patient());
    let (woken, started) = tokio::join!(client.events(&next), client.start(&web, &change));
    started.unwrap();
    let woken = woken.unwrap();
    assert_eq!(woken.events.len(), 1);
    assert!(woken.next_after > page.next_after);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_of_a_boot_can_be_read_and_ends_unless_followed() {
    use futures::StreamExt;
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let mut console = daemon.client.console(&vm("web"), false).await.unwrap();
    while let Some(bytes) = console.next().await {
        bytes.unwrap();
    }
    drop(console);
    daemon.stop().await;
}
