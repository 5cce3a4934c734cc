//! The stage `root`: the tree as an erofs file, with every owner and mode as in the archive.

use super::{Build, BuildError, IoFor, Stage, process::Program, tools, tree::Tree};
use crate::{
    Part,
    store::{StageKey, StageRecord},
};
use serde::Serialize;
use std::{
    fs::{self, File},
    path::Path,
};

/// Run as root, or as root of a user namespace that maps the tree's owners. The archive comes by standard input and
/// the result leaves by standard output, so the users below us need no way to our files.
///
/// File times are kept (a fixed time would make Python take its compiled files for stale, and compile at each start);
/// SOURCE_DATE_EPOCH fixes the time in the superblock only.
const SCRIPT: &str = r#"set -eu
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
trap 'exit 143' TERM INT
chmod 0755 "$directory"
mkdir "$directory/root"
tar --directory "$directory/root" --extract --numeric-owner --preserve-permissions --xattrs --xattrs-include='*'
MKFS --quiet -UUUID OPTIONS "$directory/root.erofs" "$directory/root" >&2
cat "$directory/root.erofs"
"#;

/// The same file wherever it is made from the same tree; a guest tells disks apart by serial. Its last byte is the version
/// of what [`OPTIONS`] promise, by which the provider for sandboxes knows a root that it can run.
const UUID: &str = "6f666673-686f-6f74-8000-726f6f740002";

/// Uncompressed: the host's page cache serves all VMs at once, while each guest would decompress for itself, on an
/// emulated CPU where there is no hardware virtualisation. Every file begins at a block of its own, for the kernel in a
/// gVisor sandbox maps a program straight from this file and cannot map one that lies beside its inode.
const OPTIONS: &str = "-Enoinline_data";

/// `tree` identifies the tree: by its content for the stage, by its own key before it exists.
pub(super) fn key(tree: &impl Serialize) -> StageKey {
    StageKey::new("root", 1, &(tree, SCRIPT, UUID, OPTIONS))
}

pub(super) fn stage(build: &mut Build<'_>, tree: &Tree) -> Result<Part, BuildError> {
    build.stage(
        Stage::Root,
        key(&tree.tar),
        |record| record.blob("root"),
        |build, directory| make(build, directory, tree),
    )
}

fn make(build: &mut Build<'_>, directory: &Path, tree: &Tree) -> Result<StageRecord, BuildError> {
    let mkfs = tools::find("mkfs.erofs").unwrap_or_else(|| "mkfs.erofs".into());
    let script =
        SCRIPT.replace("MKFS", &mkfs.to_string_lossy()).replace("UUID", UUID).replace("OPTIONS", OPTIONS);
    let tar = build.store.blob(tree.tar.digest);
    let path = directory.join("root.erofs");
    let program = match tools::is_root() {
        true => {
            let tmp = directory.join("tmp");
            fs::create_dir(&tmp).during("create", &tmp)?;
            Program::confined("sh").env("TMPDIR", &tmp)
        }
        false => Program::confined("mmdebstrap").args(["--unshare-helper", "sh"]).env("TMPDIR", "/tmp"),
    };
    let program = program
        .args(["-c", &script])
        .directory(Path::new("/"))
        .env("SOURCE_DATE_EPOCH", tree.created.as_second().to_string())
        .stdin(File::open(&tar).during("open", &tar)?)
        .stdout(File::create(&path).during("create", &path)?);
    build.run_program(Stage::Root, program)?;
    Ok(StageRecord::new([("root", build.store.add_file(&path)?)], &()))
}
