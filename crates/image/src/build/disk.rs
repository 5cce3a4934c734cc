//! The data disk's template: an empty ext4 that each VM's qcow2 disk starts from and the guest grows to its size.

use super::{Build, BuildError, IoFor, Stage, process::Program};
use crate::{
    Part,
    store::{StageKey, StageRecord},
};
use offshoot_types::DiskMib;
use std::fs::{self, File};

/// A disk can be as small as the smallest one a VM may ask for, and not smaller than its template.
const SIZE: u64 = DiskMib::MIN.bytes().0;

/// In place of the host's `mke2fs.conf`, so that every kernel we ship can mount the result. No metadata checksums: they
/// cost an emulated CPU much and guard against a kind of disk that is not below us. `resize_inode` and `64bit` let the
/// guest grow it online to any size a VM may have; `uninit_bg` makes that quick.
const CONFIGURATION: &str = "[defaults]
base_features = sparse_super
[fs_types]
small = {
}
ext4 = {
features = has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,large_file,huge_file,uninit_bg,dir_nlink,extra_isize
}
";

/// The template is the same file wherever it is made; a guest tells disks apart by serial, not by UUID.
const UUID: &str = "6f666673-686f-6f74-8000-646174610001";

const ARGUMENTS: [&str; 14] = [
    "-q",
    "-F",
    "-t",
    "ext4",
    "-U",
    UUID,
    // Room to grow online to 1 TiB (2^28 blocks) by reserved descriptors; past that the kernel changes to meta_bg.
    // Inode tables are written now, so that no guest has to do it in the background.
    "-E",
    "hash_seed=6f666673-686f-6f74-8000-646174610002,resize=268435456,lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0,nodiscard",
    "-b4096",
    "-I256",
    "-i16384",
    // The journal does not grow with the disk.
    "-Jsize=16",
    // Nobody but root writes to the upper layer's file system, so a reserve for root is lost space.
    "-m0",
    "disk",
];

pub(super) fn key() -> StageKey {
    StageKey::new("disk", 1, &(SIZE, CONFIGURATION, ARGUMENTS))
}

pub(super) fn stage(build: &mut Build<'_>) -> Result<Part, BuildError> {
    build.stage(
        Stage::Disk,
        key(),
        |record| record.blob("disk"),
        |build, directory| {
            let path = directory.join("disk");
            File::create(&path).and_then(|file| file.set_len(SIZE)).during("create", &path)?;
            let configuration = directory.join("mke2fs.conf");
            fs::write(&configuration, CONFIGURATION).during("write", &configuration)?;
            let program = Program::new("mke2fs")
                .args(ARGUMENTS)
                .directory(directory)
                .env("MKE2FS_CONFIG", "mke2fs.conf")
                // Older versions know the first name only, newer ones the second.
                .env("E2FSPROGS_FAKE_TIME", "1")
                .env("SOURCE_DATE_EPOCH", "1");
            build.run_program(Stage::Disk, program)?;
            Ok(StageRecord::new([("disk", build.store.add_file(&path)?)], &()))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BuildOptions, Progress, Store, build::tools};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_template_is_sparse_reproducible_and_made_once() {
        if tools::find("mke2fs").is_none() {
            return;
        }
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let make = |root: &std::path::Path| {
            let store = Store::open(root).unwrap();
            let mut events = Vec::new();
            let mut progress = |event: Progress<'_>| events.push(format!("{event:?}"));
            let mut build = Build::begin(&store, &BuildOptions::default(), &mut progress).unwrap();
            let part = stage(&mut build).unwrap();
            drop(build);
            (part, store.blob(part.digest), events.last().unwrap().starts_with("Reused"))
        };
        let (part, path, reused) = make(one.path());
        assert_eq!((part.size, reused), (SIZE, false));
        let stored = path.metadata().unwrap().blocks() * 512;
        assert!(stored < 4 << 20, "{stored} bytes are stored");
        assert_eq!(make(one.path()), (part, path, true));
        assert_eq!(make(other.path()).0, part);
    }
}
