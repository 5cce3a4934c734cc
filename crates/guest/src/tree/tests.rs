use super::*;
use proptest::prelude::*;
use rustix::{
    fd::OwnedFd,
    fs::{CWD, FileType, Mode, OFlags, mknodat, openat},
};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, Permissions},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

/// Stands for the overlay's own mark, which not every file system takes.
const MARK: &str = "user.opaque";

fn open(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn packed(upper: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(open(upper), MARK, &mut bytes).unwrap();
    bytes
}

fn mark(path: &Path) -> bool {
    rustix::fs::setxattr(path, MARK, b"y", rustix::fs::XattrFlags::empty()).is_ok()
}

fn delete(path: &Path) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

/// Everything below a directory that is to survive, by path.
fn described(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            let (path, stat) = (entry.path(), entry.path().symlink_metadata().unwrap());
            let content = match stat.file_type() {
                kind if kind.is_file() => blake3::hash(&fs::read(&path).unwrap()).to_string(),
                kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                _ => stat.rdev().to_string(),
            };
            // The size of a directory is the file system's own affair.
            let size = if stat.is_dir() { 0 } else { stat.size() };
            let links = if stat.is_dir() { 0 } else { stat.nlink() };
            let words = format!(
                "{:o} {}:{} {size} {links} {}.{} {content}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.mtime(),
                stat.mtime_nsec()
            );
            found.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_owned(), words);
            if stat.is_dir() {
                ahead.push(path);
            }
        }
    }
    found
}

fn aged(path: &Path, seconds: u64) {
    File::open(path).unwrap().set_modified(UNIX_EPOCH + Duration::new(seconds, 7)).unwrap();
}

#[test]
fn everything_a_disk_can_hold_comes_back() {
    let (upper, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| upper.path().join(name);
    fs::create_dir_all(path("deep/er")).unwrap();
    fs::write(path("deep/er/file"), b"content").unwrap();
    fs::set_permissions(path("deep/er/file"), Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(path("deep/er/file"), path("also")).unwrap();
    fs::hard_link(path("deep/er/file"), path("deep/again")).unwrap();
    symlink("../nowhere", path("link")).unwrap();
    fs::write(path("empty"), b"").unwrap();
    mknodat(CWD, path("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    mknodat(CWD, path("socket"), FileType::Socket, Mode::from_raw_mode(0o755), 0).unwrap();
    let sparse = File::create(path("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"in the middle", (3 << 20) + 5).unwrap();
    fs::write(upper.path().join(OsStr::from_bytes(b"odd \xff\n name")), vec![7; 300_000]).unwrap();
    for (name, seconds) in [("deep/er/file", 5), ("empty", 1_000_000_000), ("deep/er", 77), ("deep", 78)] {
        aged(&path(name), seconds);
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path("empty"), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::lchown(path("link"), Some(1234), Some(4321)).unwrap();
    }
    let bytes = packed(upper.path());
    assert!(bytes.len() < 1_000_000, "zeros are left out: {}", bytes.len());
    unpack(open(root.path()), bytes.as_slice()).unwrap();
    assert_eq!(described(root.path()), described(upper.path()));
    assert_eq!(
        fs::metadata(root.path().join("also")).unwrap().ino(),
        fs::metadata(root.path().join("deep/again")).unwrap().ino()
    );
}

#[test]
fn what_was_deleted_or_replaced_is_gone_and_the_rest_of_the_image_is_as_it_was() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root deletes as an overlay does");
        return;
    }
    let (upper, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in
        ["etc/keep", "etc/gone", "hidden/old/deep", "dropped/x", "was-directory/y", "was-file", "target"]
    {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "of the image").unwrap();
    }
    symlink("target", root.path().join("was-link")).unwrap();
    let path = |name: &str| upper.path().join(name);
    for name in ["etc", "hidden", "was-file"] {
        fs::create_dir(path(name)).unwrap();
    }
    if !mark(&path("hidden")) {
        eprintln!("skipped: this file system has no attributes");
        return;
    }
    for name in ["etc/gone", "dropped"] {
        delete(&path(name));
    }
    fs::set_permissions(path("etc"), Permissions::from_mode(0o711)).unwrap();
    fs::write(path("hidden/new"), "new").unwrap();
    fs::write(path("was-file/new"), "new").unwrap();
    fs::write(path("was-directory"), "now a file").unwrap();
    fs::write(path("was-link"), "now a file").unwrap();
    let bytes = packed(upper.path());
    unpack(open(root.path()), bytes.as_slice()).unwrap();
    let names: Vec<String> =
        described(root.path()).into_keys().map(|name| String::from_utf8(name).unwrap()).collect();
    let expected = [
        "etc",
        "etc/keep",
        "hidden",
        "hidden/new",
        "target",
        "was-directory",
        "was-file",
        "was-file/new",
        "was-link",
    ];
    assert_eq!(names, expected);
    assert_eq!(fs::read_to_string(root.path().join("target")).unwrap(), "of the image");
    assert_eq!(fs::metadata(root.path().join("etc")).unwrap().mode() & 0o777, 0o711);
    assert!(
        rustix::fs::getxattr(root.path().join("hidden"), MARK, &mut [0_u8; 8]).is_err(),
        "a mark is no attribute"
    );
    // Put back once more, over itself.
    unpack(open(root.path()), bytes.as_slice()).unwrap();
    assert_eq!(described(root.path()).len(), expected.len());
}

#[test]
fn a_stream_that_was_cut_or_leads_elsewhere_is_refused() {
    let upper = tempfile::tempdir().unwrap();
    fs::create_dir(upper.path().join("d")).unwrap();
    fs::write(upper.path().join("d/f"), "x").unwrap();
    fs::hard_link(upper.path().join("d/f"), upper.path().join("g")).unwrap();
    let bytes = packed(upper.path());
    for length in 0..bytes.len() {
        let root = tempfile::tempdir().unwrap();
        assert!(unpack(open(root.path()), &bytes[..length]).is_err(), "{length} of {}", bytes.len());
    }
    let longer = [bytes.as_slice(), b"x"].concat();
    let outside = tempfile::tempdir().unwrap();
    let replaced = |old: &[u8], new: &[u8]| {
        let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
        [&bytes[..at], new, &bytes[at + old.len()..]].concat()
    };
    let up = replaced(b"\x01\0\0\0d", b"\x02\0\0\0..");
    let slash = replaced(b"\x01\0\0\0d", b"\x01\0\0\0/");
    let link = replaced(b"\x03\0\0\0d/f", b"\x04\0\0\0../f");
    for bytes in [longer, up, slash, link] {
        let root = outside.path().join("root");
        fs::create_dir(&root).unwrap();
        let error = unpack(open(&root), bytes.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        fs::remove_dir_all(&root).unwrap();
    }
}

#[derive(Debug, Clone)]
enum Made {
    File(Vec<u8>, u32),
    Directory(u32),
    Symlink(Vec<u8>),
    Fifo,
    LinkToEarlier(prop::sample::Index),
}

fn made() -> impl Strategy<Value = Made> {
    let text = prop::collection::vec(1_u8..=255, 1..20);
    prop_oneof![
        (prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..200), 0_u32..0o7777)
            .prop_map(|(content, mode)| Made::File(content, mode | 0o400)),
        (0_u32..0o777).prop_map(|mode| Made::Directory(mode | 0o700)),
        text.prop_map(Made::Symlink),
        Just(Made::Fifo),
        any::<prop::sample::Index>().prop_map(Made::LinkToEarlier),
    ]
}

proptest! {
    #[test]
    fn any_tree_comes_back(
        entries in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::vec(1_u8..=255, 1..12), made(), 0_u64..4_000_000_000),
            0..25,
        ),
    ) {
        let (upper, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut directories, mut files) = (vec![upper.path().to_owned()], Vec::new());
        for (parent, name, made, seconds) in entries {
            let name: Vec<u8> = name.into_iter().filter(|byte| *byte != b'/').collect();
            if matches!(name.as_slice(), b"" | b"." | b"..") {
                continue;
            }
            let path = parent.get(&directories).join(OsStr::from_bytes(&name));
            if path.symlink_metadata().is_ok() {
                continue;
            }
            match made {
                Made::File(content, mode) => {
                    fs::write(&path, content).unwrap();
                    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
                    aged(&path, seconds);
                    files.push(path);
                }
                Made::Directory(mode) => {
                    fs::create_dir(&path).unwrap();
                    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
                    directories.push(path);
                }
                Made::Symlink(target) => symlink(OsStr::from_bytes(&target), &path).unwrap(),
                Made::Fifo => mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
                Made::LinkToEarlier(_) if files.is_empty() => {}
                Made::LinkToEarlier(which) => fs::hard_link(which.get(&files), &path).unwrap(),
            }
        }
        let bytes = packed(upper.path());
        unpack(open(root.path()), bytes.as_slice()).unwrap();
        prop_assert_eq!(described(root.path()), described(upper.path()));
        // What is there already is replaced by the same.
        unpack(open(root.path()), bytes.as_slice()).unwrap();
        prop_assert_eq!(described(root.path()), described(upper.path()));
    }

    #[test]
    fn no_stream_is_too_strange(tail in prop::collection::vec(any::<u8>(), 0..400)) {
        let root = tempfile::tempdir().unwrap();
        let bytes = [b"OSTREE\0\x01".as_slice(), &tail].concat();
        prop_assert!(unpack(open(root.path()), bytes.as_slice()).is_err());
    }
}
