//! Data disks: layers of qcow2, made here, over an image's disk template.
//!
//! ```text
//!   guest --> top layer (one VM's) --> frozen layers (shared, never written again) --> template (raw ext4, shared)
//! ```
//! An empty layer is four kinds of cluster, so it is written here rather than by a `qemu-img` process: that
//! saves 15 ms per VM and a package. The guest only ever sees the blocks inside; no byte of the header comes
//! from it. The VMM is still told every driver and the whole stack explicitly, so nothing is probed.

mod merge;
mod qcow2;

use crate::{DiskStack, Durability};
pub use merge::merge;
use offshoot_types::{Bytes, DiskMib};
use qcow2::{Layout, MAX_BACKING_NAME};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The most layers a disk may have. Each costs the VMM two descriptors, and every read of a place never written looks
/// at all of them.
pub const MAX_LAYERS: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("a disk of {size} is smaller than the image's disk template of {template}")]
    SmallerThanTemplate { size: Bytes, template: Bytes },
    #[error("the layer `{}` is of a disk of {found}, not of {expected}", path.display())]
    OtherSize { path: PathBuf, expected: Bytes, found: Bytes },
    #[error("the path `{}` is not absolute or longer than {MAX_BACKING_NAME} bytes: no layer can be over it", path.display())]
    Below { path: PathBuf },
    #[error("`{}` is not a data disk made by this program: {reason}", path.display())]
    Foreign { path: PathBuf, reason: &'static str },
    #[error("`{}` is written to by a running VM", path.display())]
    Written { path: PathBuf },
    #[error("a data disk of {layers} layers is not supported: it has at least one and at most {MAX_LAYERS}")]
    Layers { layers: usize },
}

/// What a layer is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An image's disk template: raw.
    Template,
    /// Another layer: qcow2.
    Layer,
}

/// What the header of a layer says: a note for people and their tools, not what the VMM is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Of the disk the guest sees.
    pub size: Bytes,
    pub below: PathBuf,
    pub kind: Kind,
}

/// Makes an empty data disk of `size` at `path`, which must not exist. It appears there complete or not at all.
pub fn create_overlay(
    template: &Path,
    size: DiskMib,
    path: &Path,
    durability: Durability,
) -> Result<(), DiskError> {
    let template_size = template.metadata().map_err(io("read the size of", template))?.len();
    if size.bytes().0 < template_size {
        return Err(DiskError::SmallerThanTemplate { size: size.bytes(), template: Bytes(template_size) });
    }
    create(template, Kind::Template, size.bytes(), path, durability)
}

/// Makes an empty layer over another layer, which must be of a disk of the same size. As [`create_overlay`] otherwise.
pub fn create_layer(
    parent: &Path,
    size: DiskMib,
    path: &Path,
    durability: Durability,
) -> Result<(), DiskError> {
    expect_size(parent, size.bytes())?;
    create(parent, Kind::Layer, size.bytes(), path, durability)
}

/// Reads the header of a file made here; anything else is refused, however valid.
pub fn inspect(path: &Path) -> Result<Layer, DiskError> {
    qcow2::inspect(path)
}

/// That a layer from elsewhere is of a disk of `size` and asks nothing of a VMM that ours do not: no other file for its
/// data, no encryption, no snapshots inside. What it says it lies over is never believed anyway.
pub fn check_imported(path: &Path, size: Bytes) -> Result<(), DiskError> {
    expect_size(path, size)?;
    qcow2::check_plain(path)
}

/// That every layer is one of ours and all are of one disk.
pub fn check(disk: &DiskStack) -> Result<(), DiskError> {
    let layers = disk.layers.len();
    let Some(top) = disk.top().filter(|_| layers <= MAX_LAYERS) else {
        return Err(DiskError::Layers { layers });
    };
    let size = inspect(top)?.size;
    disk.layers[1..].iter().try_for_each(|path| expect_size(path, size))
}

/// Makes sure that a layer nobody writes to any more is on the host's disk, and marks it as read-only. Blocks for as
/// long as that takes.
pub fn freeze(path: &Path) -> Result<(), DiskError> {
    const FROZEN: u32 = 0o400;
    let file = File::open(path).map_err(io("open", path))?;
    let mode = file.metadata().map_err(io("look at", path))?.permissions().mode();
    // Setting the mode it has changes its identity too: whoever reads it meanwhile would take it for damaged.
    if mode & 0o777 != FROZEN {
        file.set_permissions(PermissionsExt::from_mode(FROZEN)).map_err(io("freeze", path))?;
    }
    file.sync_all().map_err(io("flush", path))
}

fn expect_size(path: &Path, expected: Bytes) -> Result<(), DiskError> {
    let found = inspect(path)?.size;
    if found == expected {
        Ok(())
    } else {
        Err(DiskError::OtherSize { path: path.to_owned(), expected, found })
    }
}

fn create(
    below: &Path,
    kind: Kind,
    size: Bytes,
    path: &Path,
    durability: Durability,
) -> Result<(), DiskError> {
    let layout = Layout::new(size.0);
    let header = layout.header(below, kind)?;
    let temporary = path.with_extension("new");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io("create", &temporary))?;
    let written = layout.write(&file, &header).and_then(|()| match durability {
        Durability::Flushed => file.sync_all(),
        Durability::Volatile => Ok(()),
    });
    // `hard_link` rather than `rename`: it never replaces a disk that exists.
    let linked = written.and_then(|()| std::fs::hard_link(&temporary, path));
    let removed = std::fs::remove_file(&temporary);
    linked.and(removed).map_err(io("write", path))?;
    if durability == Durability::Flushed
        && let Some(parent) = path.parent()
    {
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(io("flush", parent))?;
    }
    Ok(())
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Io { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn template(directory: &Path) -> PathBuf {
        let path = directory.join("template");
        std::fs::write(&path, [0xa5; 4096]).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(32 << 20).unwrap();
        path
    }

    fn mib(mib: u64) -> DiskMib {
        DiskMib::from_mib(mib).unwrap()
    }

    #[test]
    fn an_overlay_says_its_size_and_template_and_never_replaces_another() {
        let directory = tempfile::tempdir().unwrap();
        let (template, path) = (template(directory.path()), directory.path().join("disk.qcow2"));
        create_overlay(&template, mib(1024), &path, Durability::Flushed).unwrap();
        assert_eq!(
            inspect(&path).unwrap(),
            Layer { size: Bytes(1 << 30), below: template.clone(), kind: Kind::Template }
        );
        let again = create_overlay(&template, mib(2048), &path, Durability::Volatile).unwrap_err();
        assert!(matches!(again, DiskError::Io { operation: "write", .. }), "{again}");
        assert_eq!(inspect(&path).unwrap().size, Bytes(1 << 30));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn a_disk_smaller_than_its_template_or_a_relative_template_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.qcow2");
        let big = template(directory.path());
        File::options().write(true).open(&big).unwrap().set_len(128 << 20).unwrap();
        let small = create_overlay(&big, mib(64), &path, Durability::Volatile).unwrap_err();
        assert!(matches!(small, DiskError::SmallerThanTemplate { .. }), "{small}");
        let relative =
            create_overlay(Path::new("Cargo.toml"), mib(64), &path, Durability::Volatile).unwrap_err();
        assert!(matches!(relative, DiskError::Below { .. }), "{relative}");
        assert!(!path.exists());
    }

    #[test]
    fn a_foreign_or_cut_off_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (template, path) = (template(directory.path()), directory.path().join("disk.qcow2"));
        create_overlay(&template, mib(64), &path, Durability::Volatile).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for (name, bytes) in [("empty", &whole[..0]), ("cut", &whole[..100]), ("raw", &[0; 4096])] {
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(inspect(&path), Err(DiskError::Foreign { .. })), "{name}");
        }
        let mut version_2 = whole;
        version_2[7] = 2;
        std::fs::write(&path, version_2).unwrap();
        assert!(matches!(inspect(&path), Err(DiskError::Foreign { .. })));
    }

    #[test]
    fn qemu_img_finds_no_fault_with_overlays_of_any_size() {
        let directory = tempfile::tempdir().unwrap();
        let template = template(directory.path());
        // One L1 entry, several, and a table of more than one cluster.
        for size in [64, 1024, 5 << 20, DiskMib::MAX.mib().into()] {
            let path = directory.path().join(format!("{size}.qcow2"));
            create_overlay(&template, mib(size), &path, Durability::Volatile).unwrap();
            let checked = Command::new("qemu-img").arg("check").arg(&path).output();
            let checked = checked.expect("this test needs qemu-img (package qemu-utils)");
            assert!(checked.status.success(), "{size}: {checked:?}");
            let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(&path).output().unwrap();
            let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
            assert_eq!(info["virtual-size"], size << 20);
            assert_eq!(info["backing-filename"], template.to_str().unwrap());
            assert_eq!(info["backing-filename-format"], "raw");
        }
    }

    #[test]
    fn a_layer_is_over_a_layer_of_the_same_disk_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let template = template(directory.path());
        create_overlay(&template, mib(64), &path("a"), Durability::Volatile).unwrap();
        freeze(&path("a")).unwrap();
        assert_eq!(path("a").metadata().unwrap().permissions().mode() & 0o777, 0o400);
        let identity = || crate::parts::Identity::of(&File::open(path("a")).unwrap()).unwrap();
        let frozen = identity();
        freeze(&path("a")).unwrap();
        assert_eq!(identity(), frozen, "it is the same file to whoever reads it");
        create_layer(&path("a"), mib(64), &path("b"), Durability::Flushed).unwrap();
        create_layer(&path("b"), mib(64), &path("c"), Durability::Volatile).unwrap();
        assert_eq!(
            inspect(&path("c")).unwrap(),
            Layer { size: Bytes(64 << 20), below: path("b"), kind: Kind::Layer }
        );
        let other = create_layer(&path("b"), mib(128), &path("d"), Durability::Volatile).unwrap_err();
        assert!(matches!(other, DiskError::OtherSize { .. }), "{other}");
        let raw = create_layer(&template, mib(64), &path("d"), Durability::Volatile).unwrap_err();
        assert!(matches!(raw, DiskError::Foreign { .. }), "{raw}");

        let stack = |layers: &[&str]| DiskStack {
            layers: layers.iter().map(|name| path(name)).collect(),
            template: template.clone(),
        };
        check(&stack(&["c", "b", "a"])).unwrap();
        assert!(matches!(check(&stack(&[])), Err(DiskError::Layers { layers: 0 })));
        assert!(matches!(check(&stack(&["a"; MAX_LAYERS + 1])), Err(DiskError::Layers { .. })));
        create_overlay(&template, mib(128), &path("e"), Durability::Volatile).unwrap();
        assert!(matches!(check(&stack(&["b", "e"])), Err(DiskError::OtherSize { .. })));
        let checked = Command::new("qemu-img").arg("check").arg(path("c")).output();
        let checked = checked.expect("this test needs qemu-img (package qemu-utils)");
        assert!(checked.status.success(), "{checked:?}");
    }
}
