//! A small state, made of nothing.

use super::{Contents, Origin, PartName};
use crate::{
    facts::Facts,
    memory::DeltaWriter,
    parts::{Part, PartHasher},
};
use offshoot_types::{CpuCount, DiskMib, IsolationClass, MemMib, ProviderKind, SnapshotId, SnapshotKind};
use std::io::{Cursor, Read};

/// The bytes of a part: memory with two pages in it, a device state, two layers of which one is two chunks long.
pub fn bytes(name: PartName) -> Vec<u8> {
    match name {
        PartName::DeviceState => b"devices".to_vec(),
        PartName::Memory => {
            let mut writer = DeltaWriter::new(None, memory().bytes()).expect("a memory");
            writer.append(1, &[7; 4096]).expect("a page");
            writer.append(9, &[8; 4096]).expect("a page");
            let mut all = Vec::new();
            writer.finish().expect("a delta").reader().read_to_end(&mut all).expect("memory is read");
            all
        }
        PartName::Layer(0) => (0..(2_u32 << 20) + 9000).map(|n| (n >> 8) as u8).collect(),
        PartName::Layer(_) => vec![0; 5000],
    }
}

pub fn part(name: PartName) -> Box<dyn Read> {
    Box::new(Cursor::new(bytes(name)))
}

fn memory() -> MemMib {
    MemMib::from_mib(128).expect("128 MiB")
}

pub fn small() -> Contents {
    let part = |name| {
        let mut hasher = PartHasher::default();
        hasher.update(&bytes(name));
        hasher.finish()
    };
    Contents {
        origin: Origin {
            snapshot: SnapshotId::from_uuid(uuid::Uuid::from_u128(7)),
            vm: "web".parse().expect("a name"),
            name: Some("before".parse().expect("a name")),
            note: None,
            image: "base".parse().expect("a reference"),
        },
        kind: SnapshotKind::Full,
        quiesced: true,
        provider: ProviderKind::Fake,
        machine: Some(Facts {
            arch: "x86_64".into(),
            vmm: "QEMU 7.2.22".into(),
            vmm_digest: Part::of(b"one").root,
            isolation: IsolationClass::EmulatedVm,
            machine: "microvm".into(),
            cpu: "max".into(),
            tsc_khz: 2_000_000,
        }),
        image: "0a".repeat(32).parse().expect("a digest"),
        memory: memory(),
        cpus: CpuCount::ONE,
        disk: DiskMib::from_mib(64).expect("64 MiB"),
        device_state: Some(part(PartName::DeviceState)),
        ram: Some(part(PartName::Memory)),
        layers: vec![part(PartName::Layer(0)), part(PartName::Layer(1))],
    }
}
