//! A record that any earlier version of the schema holds is opened by this one, and everything in it is read.

use crate::{
    AuditVerdict, Limits, NewTransaction, Options, Store,
    database::APPLICATION_ID,
    fixture::{Fixture, instance, operation},
    migrations::{LATEST, MIGRATIONS},
};
use offshoot_types::*;
use rusqlite::Connection;
use std::path::Path;

/// One of everything, and who it is.
struct Filled {
    running: VmId,
    stopped: VmId,
    ended: OperationId,
    begun: OperationId,
    snapshots: Vec<SnapshotId>,
    transaction: TransactionId,
}

async fn fill(f: &Fixture) -> Filled {
    let (stopped, _) = f.stopped("a").await;
    let (running, at) = f.stopped("b").await;
    f.layer_on(running).await;
    let snapshots = vec![f.take_named(stopped, "first").await, f.take(stopped, SnapshotOrigin::Auto).await];
    f.store.snapshot_durable(snapshots[0], serde_json::json!({ "format": 1 }), Bytes(9)).await.unwrap();
    let at = f.go(running, at, VmState::Starting).await.unwrap();
    f.store.record_instance(instance(running, at)).await.unwrap();
    f.go(running, at, VmState::Running).await.unwrap();
    let (ended, begun) =
        (f.begun(OperationKind::Stop, stopped).await, f.begun(OperationKind::Exec, running).await);
    f.store.step_begun(ended, 0, "stop", serde_json::json!({})).await.unwrap();
    f.store.end_operation(ended, OperationOutcome::Done).await.unwrap();
    f.store.step_begun(begun, 0, "exec", serde_json::json!({ "pid": 7 })).await.unwrap();
    let new = operation(OperationKind::Transaction, Some(stopped));
    let transaction = NewTransaction {
        id: TransactionId::new(),
        owner: Owner::default(),
        node: NodeName::default(),
        vm: stopped,
        parent: None,
        operation: new.id,
        snapshot: snapshots[0],
        deadline: f.store.vm(stopped).await.unwrap().unwrap().created,
    };
    f.store.begin_operation(new).await.unwrap();
    f.store.begin_transaction(transaction.clone()).await.unwrap();
    f.store.put_context(running, "main".parse().unwrap(), Language::Python).await.unwrap();
    Filled { running, stopped, ended, begun, snapshots, transaction: transaction.id }
}

fn names(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// Writes to `to` what `full` holds, as far as the schema of `version` knows it.
fn as_of(version: u32, full: &Path, to: &Path) {
    let connection = Connection::open(to).unwrap();
    connection.pragma_update(None, "foreign_keys", false).unwrap();
    for migration in MIGRATIONS.iter().filter(|migration| migration.number <= version) {
        connection.execute_batch(migration.sql).unwrap();
    }
    connection.pragma_update(None, "user_version", version).unwrap();
    connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
    connection.execute("ATTACH ?1 AS full", [full.to_str().unwrap()]).unwrap();
    let tables = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    for table in names(&connection, tables) {
        // Nothing wrote these yet.
        if version == 1 && matches!(table.as_str(), "snapshots" | "contexts") {
            continue;
        }
        let columns = names(
            &connection,
            &format!(
                "SELECT name FROM pragma_table_info('{table}', 'main') INTERSECT
                 SELECT name FROM pragma_table_info('{table}', 'full')"
            ),
        );
        let columns = columns.join(", ");
        let copy = format!(
            "DELETE FROM main.{table}; INSERT INTO main.{table} ({columns}) SELECT {columns} FROM full.{table}"
        );
        connection.execute_batch(&copy).unwrap();
    }
    // What a VM was asked to be did not say this before there was a column for it.
    for (field, since) in [("policy", 2), ("life", 3)] {
        if version < since {
            let sql = format!("UPDATE vms SET spec = json_remove(spec, '$.{field}')");
            connection.execute_batch(&sql).unwrap();
        }
    }
}

#[tokio::test]
async fn upgrade_sees_every_old_record() {
    let f = Fixture::new();
    let known = fill(&f).await;
    let (vms, instances) = (f.store.vms().await.unwrap(), f.store.instances().await.unwrap());
    let (head, events) =
        (f.store.audit_head().await.unwrap(), f.store.events(EventId(0), 999).await.unwrap());
    f.store.close().await;
    for version in 1..=LATEST {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offshoot.db");
        as_of(version, &f.path, &path);
        let store = Store::open(Options::new(path, Limits::UNBOUNDED)).unwrap();

        let now = store.vms().await.unwrap();
        assert_eq!(now.len(), 2, "{version}");
        for (old, new) in vms.iter().zip(&now) {
            assert_eq!(
                (old.id, &old.name, &old.state, old.generation, &old.spec, old.created),
                (new.id, &new.name, &new.state, new.generation, &new.spec, new.created),
                "{version}"
            );
            let chain = store.layer_chain(new.layer.expect("each has a disk")).await.unwrap();
            match version {
                1 => assert_eq!(chain.len(), 1, "the disk it had"),
                _ => assert_eq!(old.layer, new.layer, "{version}"),
            }
        }
        assert_eq!(store.instances().await.unwrap().len(), instances.len(), "{version}");
        assert_eq!(store.audit_head().await.unwrap(), head, "{version}");
        assert!(matches!(store.audit_verify(None).await.unwrap(), AuditVerdict::Intact(_)), "{version}");
        assert_eq!(store.events(EventId(0), 999).await.unwrap(), events, "{version}");
        let ended = store.operation(known.ended).await.unwrap().unwrap();
        assert_eq!(ended.state, OperationState::Ended { outcome: OperationOutcome::Done }, "{version}");
        assert_eq!(store.steps(known.ended).await.unwrap().len(), 1, "{version}");
        assert!(store.unfinished_operations().await.unwrap().iter().any(|one| one.id == known.begun));
        if version > 1 {
            let there = store.snapshots(Some(known.stopped)).await.unwrap();
            assert_eq!(there.iter().map(|one| one.id).collect::<Vec<_>>(), known.snapshots, "{version}");
            assert_eq!(there[0].state, SnapshotState::Durable, "{version}");
            let open = store.open_transactions(known.stopped).await.unwrap();
            assert_eq!(open.iter().map(|one| one.id).collect::<Vec<_>>(), [known.transaction], "{version}");
            let vm = known.running;
            assert_eq!(store.read(move |view| view.contexts(vm)).await.unwrap().len(), 1, "{version}");
        }
        // And it is written to: each VM goes on from where it is.
        let at = now.iter().find(|vm| vm.id == known.stopped).unwrap().generation;
        store.move_vm(crate::fixture::move_to(known.stopped, at, VmState::Starting)).await.unwrap();
        store.close().await;
    }
}
