//! Schemas of the words that `offshoot-types` owns: their texts are the contract, written down from the code.

use offshoot_types::{ErrorCode, IsolationClass, ProviderKind, VmStateName};
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

pub fn uuid() -> Object {
    let format = SchemaFormat::Custom("uuid".into());
    ObjectBuilder::new().schema_type(Type::String).format(Some(format)).build()
}

pub fn timestamp() -> Object {
    let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
    ObjectBuilder::new().schema_type(Type::String).format(Some(format)).build()
}
