use super::{
    fuzz::{self, seed},
    tests_support::{bytes, small},
    *,
};
use crate::{disk, parts::Part};
use offshoot_types::SnapshotKind;
use proptest::prelude::*;
use std::{fs, path::Path};

fn parts_of(bytes: &[u8]) -> Result<Vec<(PartName, Vec<u8>)>, ArchiveError> {
    let mut parts: Vec<(PartName, Vec<u8>)> = Vec::new();
    Reader::open(bytes)?.read_parts(|name, offset, piece| {
        if offset == 0 {
            parts.push((name, Vec::new()));
        }
        let (last, all) = parts.last_mut().expect("the part that began");
        assert_eq!((*last, all.len() as u64), (name, offset), "parts come in order and whole");
        all.extend(piece);
        Ok(())
    })?;
    Ok(parts)
}

/// The stream with another header, whose hash is right, and the same parts.
fn with_header(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let old = seed();
    let length = u32::from_le_bytes(old[20..24].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&old[FIXED..FIXED + length]).unwrap();
    change(&mut header);
    resealed(&serde_json::to_vec(&header).unwrap(), &old[FIXED + length..])
}

fn resealed(header: &[u8], parts: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(contents::hash(header).as_bytes());
    bytes.extend(header);
    bytes.extend(parts);
    bytes
}

fn refused(bytes: &[u8]) -> String {
    parts_of(bytes).expect_err("it is not what was written").to_string()
}

#[test]
fn what_was_written_is_read_and_its_hash_is_that_of_all() {
    let written = seed();
    let reader = Reader::open(&written[..]).unwrap();
    assert_eq!(*reader.contents(), small());
    assert_eq!(reader.hash(), small().to_bytes().unwrap().1);
    let names = [PartName::DeviceState, PartName::Memory, PartName::Layer(0), PartName::Layer(1)];
    assert_eq!(parts_of(&written).unwrap(), names.map(|name| (name, bytes(name))));
    assert!(written.len() < 200_000, "{} bytes: zeros and repetitions cost little", written.len());
}

#[test]
fn a_flipped_byte_anywhere_is_refused() {
    let written = seed();
    // Every byte of the header, and enough of those of the parts.
    let step = |at: usize| if at < 3000 { 1 } else { 997 };
    let header = FIXED + u32::from_le_bytes(written[20..24].try_into().unwrap()) as usize;
    let parts = parts_of(&written).unwrap();
    let mut at = 0;
    while at < written.len() {
        let mut flipped = written.clone();
        flipped[at] ^= 1;
        // A bit of a frame's own header may mean nothing: then what is read is what was written.
        if let Ok(same) = parts_of(&flipped) {
            assert!(at > header && same == parts, "byte {at} of {}", written.len());
        }
        at += step(at);
    }
}

#[test]
fn what_is_cut_off_or_goes_on_is_refused_by_name() {
    let written = seed();
    for length in [0, 10, FIXED, FIXED + 100] {
        assert!(refused(&written[..length]).contains("its header"), "{length}");
    }
    let device_state = written.len() - 1;
    assert!(refused(&written[..device_state]).contains("in the middle of disk layer 1"));
    let longer = [&written[..], b"x"].concat();
    assert_eq!(refused(&longer), "something follows the last part");
}

#[test]
fn a_frame_that_holds_more_or_less_than_its_hash_covers_is_refused() {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    let contents = Contents {
        kind: SnapshotKind::DiskOnly,
        machine: None,
        device_state: None,
        ram: None,
        layers: vec![Part::of(&[0; 5000])],
        ..small()
    };
    let (header, _) = contents.to_bytes().unwrap();
    let with = |held: &[u8], behind: &[u8]| {
        let mut frame = compress_to_vec(held, CompressionLevel::Fastest);
        frame.extend(behind);
        [&header[..], &(frame.len() as u32).to_le_bytes(), &frame].concat()
    };
    assert_eq!(parts_of(&with(&[0; 5000], b"")).unwrap().len(), 1);
    // A bomb: 256 MiB of zeros in a few KiB.
    let bomb = with(&vec![0; 256 << 20], b"");
    assert!(bomb.len() < 1 << 20);
    for wrong in
        [bomb, with(&[0; 5001], b""), with(&[0; 4999], b""), with(&[0; 5000], b"more"), with(&[1; 5000], b"")]
    {
        assert!(
            refused(&wrong).starts_with("disk layer 0 is damaged: the 5000 bytes from 0"),
            "{wrong:.20?}"
        );
    }
    let long = [&header[..], &u32::MAX.to_le_bytes()].concat();
    assert!(refused(&long).contains("damaged"), "its length is not believed");
}

#[test]
fn a_header_that_contradicts_itself_is_refused_however_it_is_sealed() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change); 9] = [
        ("unknown field", |header| header["path"] = "/etc/passwd".into()),
        ("has a device state", |header| header["device_state"] = serde_json::Value::Null),
        ("has a device state", |header| header["kind"] = "disk-only".into()),
        ("0 layers", |header| header["layers"] = serde_json::json!([])),
        ("layers is not supported", |header| {
            let one = header["layers"][1].clone();
            header["layers"] = vec![one; 200].into();
        }),
        ("contradict", |header| header["ram"]["root"] = "00".repeat(32).into()),
        ("is not supported", |header| header["layers"][1]["length"] = (1_u64 << 40).into()),
        ("is not supported", |header| header["device_state"]["length"] = 0.into()),
        ("is not supported", |header| header["ram"]["length"] = u64::MAX.into()),
    ];
    for (said, change) in cases {
        let why = refused(&with_header(change));
        assert!(why.contains(said), "{said}: {why}");
    }
    // The same part named twice.
    let old = seed();
    let length = u32::from_le_bytes(old[20..24].try_into().unwrap()) as usize;
    let twice = String::from_utf8(old[FIXED..FIXED + length].to_vec()).unwrap();
    let twice = twice.replacen("\"kind\":", "\"ram\":null,\"kind\":", 1);
    assert!(refused(&resealed(twice.as_bytes(), &old[FIXED + length..])).contains("duplicate field"));
    let other = refused(&[b"offshoot-other\0\0".as_slice(), &old[16..]].concat());
    assert!(other.contains("no exported snapshot"), "{other}");
    let mut newer = old;
    newer[16] = 2;
    assert!(refused(&newer).contains("version 2"));
}

fn real_disk(dir: &Path) -> Vec<u8> {
    let (template, path) = (dir.join("template"), dir.join("real.qcow2"));
    fs::write(&template, [1; 4096]).unwrap();
    disk::create_overlay(&template, small().disk, &path, crate::Durability::Volatile).unwrap();
    let layer = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    layer
}

fn disk_only(layer: &[u8]) -> Vec<u8> {
    let contents = Contents {
        kind: SnapshotKind::DiskOnly,
        machine: None,
        device_state: None,
        ram: None,
        layers: vec![Part::of(layer)],
        ..small()
    };
    let mut stream = Vec::new();
    let layer = layer.to_vec();
    let open = move |_| Ok(Box::new(std::io::Cursor::new(layer.clone())) as Box<dyn std::io::Read>);
    write(&contents, open, &mut stream).unwrap();
    stream
}

#[test]
fn files_appear_whole_and_flushed_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let layer = real_disk(dir.path());
    let stream = disk_only(&layer);
    let path = dir.path().join("out.qcow2");
    unpack(Reader::open(&stream[..]).unwrap(), |_| Some(path.clone())).unwrap();
    assert_eq!(fs::read(&path).unwrap(), layer);
    let again = unpack(Reader::open(&stream[..]).unwrap(), |_| Some(path.clone())).unwrap_err();
    assert!(matches!(again, ArchiveError::File { operation: "create", .. }), "{again}");
    assert_eq!(fs::read(&path).unwrap(), layer, "nothing is replaced, and what was there is not removed");

    // Cut off, after everything was written: nothing is left.
    let other = dir.path().join("other.qcow2");
    let longer = [&stream[..], b"x"].concat();
    for wrong in [&stream[..stream.len() - 1], &longer[..]] {
        assert!(unpack(Reader::open(wrong).unwrap(), |_| Some(other.clone())).is_err());
        assert!(!other.exists());
    }
    // What is not asked for is compared all the same.
    assert!(unpack(Reader::open(&longer[..]).unwrap(), |_| None).is_err());
}

/// A disk that would have the VMM open another file is refused, whatever its hashes say.
#[test]
fn a_layer_that_asks_for_more_than_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let layer = real_disk(dir.path());
    let path = dir.path().join("out.qcow2");
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, Damage); 5] = [
        ("features", |bytes| bytes[79] = 4),
        ("encrypted", |bytes| bytes[35] = 1),
        ("snapshots of its own", |bytes| bytes[63] = 1),
        ("an extension", |bytes| bytes[120..124].copy_from_slice(&0x4441_5441_u32.to_be_bytes())),
        ("another", |bytes| bytes[31] = 9),
    ];
    for (said, damage) in cases {
        let mut bytes = layer.clone();
        damage(&mut bytes);
        let refused =
            unpack(Reader::open(&disk_only(&bytes)[..]).unwrap(), |_| Some(path.clone())).unwrap_err();
        let ArchiveError::Disk(PartName::Layer(0), why) = &refused else { panic!("{refused}") };
        assert!(why.to_string().contains(said) || said == "another", "{said}: {why}");
        assert!(!path.exists());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_bytes_upset_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz::read(&bytes);
        let mut begun = MAGIC.to_vec();
        begun.extend(bytes);
        fuzz::read(&begun);
    }

    #[test]
    fn no_damaged_export_upsets_the_reader(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = seed();
        for (at, byte) in damage {
            let at = at.index(bytes.len().min(6000));
            bytes[at] = byte;
        }
        fuzz::read(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        fuzz::read(&bytes);
    }
}
