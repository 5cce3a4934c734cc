//! Schemas of the words that `offshoot-types` owns: their texts are the contract, written down from the code.

use offshoot_types::{
    AutoSnapshot, ErrorCode, IsolationClass, Language, OnTimeout, ProviderKind, SnapshotKind, SnapshotOrigin,
    SnapshotState, StartedFrom, TransactionState, VmStateName, Wake,
};
use serde::Serialize;
use utoipa::openapi::schema::{KnownFormat, Object, ObjectBuilder, SchemaFormat, Type};

fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).build()
}

pub fn error_code() -> Object {
    words(ErrorCode::ALL.iter().map(|code| code.as_str()))
}

pub fn vm_state() -> Object {
    words(VmStateName::ALL.iter().map(|state| state.as_str()))
}

pub fn isolation() -> Object {
    use IsolationClass::*;
    words([HardwareVm, EmulatedVm, UserSpaceKernel].map(IsolationClass::as_str))
}

pub fn provider() -> Object {
    use ProviderKind::*;
    words([Qemu, Gvisor, Firecracker, CloudHypervisor, Fake].map(ProviderKind::as_str))
}

/// The words of a type that has no list of its own, by how it is written.
fn serialised<T: Serialize>(values: impl IntoIterator<Item = T>) -> Object {
    let words = values.into_iter().filter_map(|value| serde_json::to_value(value).ok());
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).build()
}

pub fn started_from() -> Object {
    use StartedFrom::*;
    words([Pool, Template, Snapshot, Boot].map(StartedFrom::as_str))
}

pub fn snapshot_kind() -> Object {
    serialised([SnapshotKind::Full, SnapshotKind::DiskOnly])
}

pub fn snapshot_origin() -> Object {
    use SnapshotOrigin::*;
    words([Manual, Auto, Undo, Fork, Suspend, Template, Rebase].map(SnapshotOrigin::as_str))
}

pub fn snapshot_state() -> Object {
    use SnapshotState::*;
    serialised([Volatile, Durable, Damaged])
}

pub fn auto_snapshot() -> Object {
    words(AutoSnapshot::ALL.map(AutoSnapshot::as_str))
}

pub fn wake() -> Object {
    words(Wake::ALL.iter().map(|wake| wake.as_str()))
}

pub fn on_timeout() -> Object {
    words(OnTimeout::ALL.iter().map(|on| on.as_str()))
}

pub fn transaction_state() -> Object {
    use TransactionState::*;
    serialised([Open, Committed, RolledBack, RollingBack])
}

pub fn language() -> Object {
    words(Language::ALL.map(Language::as_str))
}

pub fn uuid() -> Object {
    let format = SchemaFormat::Custom("uuid".into());
    ObjectBuilder::new().schema_type(Type::String).format(Some(format)).build()
}

pub fn timestamp() -> Object {
    let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
    ObjectBuilder::new().schema_type(Type::String).format(Some(format)).build()
}
