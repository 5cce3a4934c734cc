//! Instances: what finds a VMM process again. Recorded before the process exists, forgotten after it was seen gone.

use crate::{
    StoreError, Tx, View,
    row::{json, named, parsed, parsed_option, time, to_json, to_name},
};
use jiff::Timestamp;
use offshoot_types::{Generation, IsolationClass, ProviderKind, SnapshotId, VmId};
use rusqlite::{Row, params};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// An instance about to be booted. `record` is the provider's own, opaque here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInstance {
    pub vm: VmId,
    pub generation: Generation,
    pub provider: ProviderKind,
    pub isolation: IsolationClass,
    /// The snapshot whose complete memory the process maps; `None`: it began with zeros.
    pub memory_base: Option<SnapshotId>,
    pub record: Value,
}

impl NewInstance {
    pub fn new(
        vm: VmId,
        generation: Generation,
        provider: ProviderKind,
        isolation: IsolationClass,
        memory_base: Option<SnapshotId>,
        record: &impl Serialize,
    ) -> Result<Self, StoreError> {
        let record = serde_json::to_value(record)
            .map_err(|error| StoreError::Invalid { what: "instance record", detail: error.to_string() })?;
        Ok(Self { vm, generation, provider, isolation, memory_base, record })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRow {
    pub vm: VmId,
    pub generation: Generation,
    pub provider: ProviderKind,
    pub isolation: IsolationClass,
    pub memory_base: Option<SnapshotId>,
    pub record: Value,
    pub recorded: Timestamp,
}

impl InstanceRow {
    /// The provider's record in its own type.
    pub fn decode<R: DeserializeOwned>(&self) -> Result<R, StoreError> {
        R::deserialize(&self.record).map_err(|error| StoreError::Invalid {
            what: "instance record",
            detail: format!("VM {} generation {}: {error}", self.vm, self.generation),
        })
    }
}

const COLUMNS: &str = "vm, generation, provider, isolation, memory_base, record, recorded";

fn from_row(row: &Row<'_>) -> Result<InstanceRow, rusqlite::Error> {
    Ok(InstanceRow {
        vm: parsed(row, "vm")?,
        generation: Generation(row.get("generation")?),
        provider: named(row, "provider")?,
        isolation: named(row, "isolation")?,
        memory_base: parsed_option(row, "memory_base")?,
        record: json(row, "record")?,
        recorded: time(row, "recorded")?,
    })
}

impl View<'_> {
    /// Every recorded instance, by VM and generation.
    pub fn instances(&self) -> Result<Vec<InstanceRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM instances ORDER BY vm, generation");
        self.many("list instances", &sql, [], from_row)
    }

    pub fn instances_of(&self, vm: VmId) -> Result<Vec<InstanceRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM instances WHERE vm = ?1 ORDER BY generation");
        self.many("list a VM's instances", &sql, params![vm.to_string()], from_row)
    }
}

impl Tx<'_> {
    /// Records an instance; its VM takes over provider and isolation class. Call it, and await its answer, before
    /// the process is started. The VM must be in a state that has a process. Repeating it replaces the record.
    pub fn record_instance(&self, instance: &NewInstance) -> Result<(), StoreError> {
        let vm = self.expect_vm(instance.vm)?;
        if !vm.state.name().has_process() {
            return Err(StoreError::NoProcessInState { vm: vm.id, state: vm.state.name() });
        }
        let (provider, isolation) = (to_name(&instance.provider), to_name(&instance.isolation));
        if let Some(base) = instance.memory_base {
            self.expect_snapshot(base)?;
        }
        let sql = "INSERT INTO instances (vm, generation, provider, isolation, record, recorded, memory_base)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
            ON CONFLICT (vm, generation) DO UPDATE SET provider = excluded.provider,
                isolation = excluded.isolation, record = excluded.record, recorded = excluded.recorded,
                memory_base = excluded.memory_base";
        let params = params![
            instance.vm.to_string(),
            instance.generation.0,
            provider,
            isolation,
            to_json(&instance.record),
            self.now_micros(),
            instance.memory_base.map(|base| base.to_string()),
        ];
        self.execute("record an instance", sql, params)?;
        let sql = "UPDATE vms SET provider = ?2, isolation = ?3 WHERE id = ?1";
        let params = params![instance.vm.to_string(), provider, isolation];
        self.execute("bind a VM to its instance", sql, params).map(drop)
    }

    /// Forgets an instance whose process was seen gone. Forgetting what is not recorded changes nothing.
    pub fn forget_instance(&self, vm: VmId, generation: Generation) -> Result<(), StoreError> {
        let sql = "DELETE FROM instances WHERE vm = ?1 AND generation = ?2";
        self.execute("forget an instance", sql, params![vm.to_string(), generation.0]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, instance};
    use offshoot_types::VmState;

    #[tokio::test]
    async fn an_instance_is_recorded_decoded_and_forgotten_and_its_vm_takes_over_the_class() {
        #[derive(serde::Deserialize)]
        struct Record {
            state_dir: String,
        }
        let mut f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let early = f.store.record_instance(instance(vm, at)).await.unwrap_err();
        assert!(matches!(early, StoreError::NoProcessInState { .. }), "{early}");
        let at = f.go(vm, at, VmState::Starting).await.unwrap();
        for _ in 0..2 {
            f.store.record_instance(instance(vm, at)).await.unwrap();
        }
        f.reopen().await;
        let rows = f.store.instances().await.unwrap();
        assert_eq!(rows, f.store.instances_of(vm).await.unwrap());
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].decode::<Record>().unwrap().state_dir, format!("vms/{vm}/g{at}"));
        assert!(rows[0].decode::<Vec<u8>>().is_err());
        let row = f.store.vm(vm).await.unwrap().unwrap();
        assert_eq!((row.provider, row.isolation), (ProviderKind::Qemu, IsolationClass::HardwareVm));
        for _ in 0..2 {
            f.store.forget_instance(vm, at).await.unwrap();
        }
        assert_eq!(f.store.instances().await.unwrap(), []);
    }
}
