//! The schema's history. A migration that was released is never edited; a change is a new file.

use rusqlite::Connection;

#[derive(Debug)]
pub(crate) struct Migration {
    pub number: u32,
    pub sql: &'static str,
}

macro_rules! migrations {
    ($($number:literal => $file:literal,)*) => {
        pub(crate) const MIGRATIONS: &[Migration] =
            &[$(Migration { number: $number, sql: include_str!(concat!("../migrations/", $file)) },)*];
        #[cfg(test)]
        const FILES: &[(u32, &str)] = &[$(($number, $file),)*];
    };
}

migrations! {
    1 => "0001_initial.sql",
    2 => "0002_branches.sql",
    3 => "0003_life.sql",
    4 => "0004_starts.sql",
    5 => "0005_keys.sql",
    6 => "0006_requests.sql",
    7 => "0007_history.sql",
    8 => "0008_kept_disks.sql",
}

/// The newest schema this program knows.
pub(crate) const LATEST: u32 = MIGRATIONS[MIGRATIONS.len() - 1].number;

pub(crate) fn schema_version(connection: &Connection) -> Result<u32, rusqlite::Error> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Applies what is missing, each migration in a transaction of its own together with its number.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), rusqlite::Error> {
    let version = schema_version(connection)?;
    for Migration { number, sql } in MIGRATIONS.iter().filter(|migration| migration.number > version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn columns(connection: &Connection) -> BTreeMap<String, BTreeSet<String>> {
        let mut statement = connection
            .prepare(
                "SELECT m.name, c.name FROM sqlite_schema m, pragma_table_info(m.name) c
                 WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'",
            )
            .unwrap();
        let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        for row in rows {
            let (table, column) = row.unwrap();
            tables.entry(table).or_default().insert(column);
        }
        tables
    }

    #[test]
    fn every_file_in_the_folder_is_listed_in_order_without_gaps() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, FILES.iter().map(|(_, file)| *file).collect::<Vec<_>>());
        for (index, (number, file)) in FILES.iter().enumerate() {
            assert_eq!(*number as usize, index + 1);
            assert!(file.starts_with(&format!("{number:04}_")), "{file}");
        }
    }

    #[test]
    fn migration_0001_makes_an_empty_record_whose_things_all_have_owner_labels_and_node() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        assert!(schema_version(&connection).unwrap() >= 1);
        let tables = columns(&connection);
        for table in ["vms", "snapshots", "images", "contexts", "operations", "keys"] {
            for column in ["owner", "labels", "node"] {
                assert!(tables[table].contains(column), "{table}.{column}");
            }
            let rows: u32 =
                connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
            assert_eq!(rows, 0, "{table}");
        }
        for table in ["operation_steps", "instances", "events", "audit", "audit_head", "audit_checkpoint"] {
            assert!(tables.contains_key(table), "{table}");
        }
    }

    /// As a daemon that knew only migration 0001 left it.
    fn first_schema() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(MIGRATIONS[0].sql).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        connection.pragma_update(None, "foreign_keys", true).unwrap();
        connection
    }

    #[test]
    fn migration_0002_gives_each_vm_that_exists_its_disk_as_a_layer_and_keeps_all_else() {
        let mut connection = first_schema();
        let vm = |id: &str, name: &str, state: &str| {
            format!(
                "INSERT INTO vms VALUES ('{id}', 'local', '{{}}', 'local', '{name}', '{{}}', 'sha256:aa', 256, 1, 1024,
                    'qemu', 'emulated-vm', '{state}', NULL, 7, 11, 12, NULL);"
            )
        };
        let (kept, gone) = ("01a1fe7c-2c8e-7496-a268-c6ab187a9c91", "01a1fe7c-2c8e-7496-a268-c6ab187a9c92");
        connection.execute_batch(&vm(kept, "a", "stopped")).unwrap();
        connection.execute_batch(&vm(gone, "b", "destroyed")).unwrap();
        connection
            .execute_batch(&format!(
                "INSERT INTO operations VALUES ('o', 'local', '{{}}', 'local', 'exec', '{kept}', '{{}}', 'r', 'ended',
                    '{{}}', NULL, NULL, 1, 2);
                INSERT INTO instances VALUES ('{kept}', 7, 'qemu', 'emulated-vm', '{{}}', 3);"
            ))
            .unwrap();
        migrate(&mut connection).unwrap();

        type Row = (String, String, u32, bool, i64);
        let layer = |row: &rusqlite::Row<'_>| -> rusqlite::Result<Row> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        };
        let sql = "SELECT id, path, size_mib, frozen, created FROM layers";
        let layers: Vec<Row> =
            connection.prepare(sql).unwrap().query_map([], layer).unwrap().map(Result::unwrap).collect();
        let path = "vms/01a1fe7c2c8e7496a268c6ab187a9c91/disk.qcow2".to_owned();
        assert_eq!(layers, [(kept.to_owned(), path, 1024, false, 11)]);
        let of = |id: &str| -> (Option<String>, Option<String>, String, u64) {
            let sql = "SELECT layer, memory, policy, generation FROM vms WHERE id = ?1";
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
            connection.query_row(sql, [id], read).unwrap()
        };
        let policy = serde_json::to_string(&offshoot_types::SnapshotPolicy::default()).unwrap();
        assert_eq!(of(kept), (Some(kept.to_owned()), None, policy.clone(), 7));
        assert_eq!(of(gone), (None, None, policy, 7));
        let begun: u64 = connection.query_row("SELECT begun FROM operations", [], |row| row.get(0)).unwrap();
        assert_eq!(begun, 0, "before everything that is told by events");
        let tables = columns(&connection);
        for table in ["layers", "snapshots", "transactions", "contexts"] {
            for column in ["owner", "labels", "node"] {
                assert!(tables[table].contains(column), "{table}.{column}");
            }
        }
        let broken: Option<String> =
            connection.query_row("PRAGMA foreign_key_check", [], |row| row.get(0)).ok();
        assert_eq!(broken, None);
    }

    #[test]
    fn migrating_twice_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let before = columns(&connection);
        migrate(&mut connection).unwrap();
        assert_eq!(columns(&connection), before);
        assert_eq!(schema_version(&connection).unwrap(), LATEST);
    }
}
