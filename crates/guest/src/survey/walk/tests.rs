//! The walk over trees made by hand, as the kernel would show them. A directory of the upper layer with a file `.marked`
//! stands for one that hides the image's: the real marks are the kernel's, and the scenarios see those.

use super::*;
use offshoot_guest_proto::message::path_order;
use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};
use tempfile::TempDir;

struct Trees {
    dir: TempDir,
}

const MARK: &str = ".marked";

impl Trees {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for tree in ["upper", "now", "image"] {
            fs::create_dir(dir.path().join(tree)).unwrap();
        }
        Self { dir }
    }

    /// A file as the image has it, which programs see.
    fn image(&self, path: &str, text: &str) {
        self.put("image", path, text);
        self.put("now", path, text);
    }

    /// A file as the VM has written it.
    fn write(&self, path: &str, text: &str) {
        self.put("upper", path, text);
        self.put("now", path, text);
    }

    fn put(&self, tree: &str, path: &str, text: &str) {
        let path = self.path(tree, path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Gone for programs, with something of that name in the upper layer that hides it.
    fn remove(&self, path: &str) {
        self.put("upper", path, "whiteout");
        let now = self.path("now", path);
        if now.is_dir() { fs::remove_dir_all(now) } else { fs::remove_file(now) }.unwrap();
    }

    fn path(&self, tree: &str, path: &str) -> std::path::PathBuf {
        self.dir.path().join(tree).join(path)
    }

    fn layers(&self) -> Layers {
        let open =
            |tree: &str| rustix::fs::open(self.dir.path().join(tree), DIRECTORY, Mode::empty()).unwrap();
        let plain = |directory: &OwnedFd| match rustix::fs::statat(
            directory,
            MARK,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        ) {
            Ok(_) => Ok(false),
            Err(Errno::NOENT) => Ok(true),
            Err(errno) => Err(errno.into()),
        };
        Layers { upper: open("upper"), now: open("now"), image: open("image"), plain }
    }

    fn changes(&self) -> Vec<ChangedPath> {
        let mut walk = Walk::new(self.layers());
        let mut found = Vec::new();
        loop {
            let (page, more) = walk.spell().unwrap();
            assert!(page.len() <= MAX_PAGE);
            found.extend(page);
            if !more {
                break;
            }
        }
        assert!(found.is_sorted_by(|a, b| path_order(&a.path, &b.path).is_lt()), "{found:?}");
        assert_eq!(walk.left_out, 0);
        found
    }

    /// `A`, `D` or `M`, and the path.
    fn told(&self) -> Vec<String> {
        let tell = |found: &ChangedPath| {
            let sign = match (&found.now, &found.image) {
                (Some(_), None) => 'A',
                (None, Some(_)) => 'D',
                (Some(_), Some(_)) => 'M',
                (None, None) => panic!("{found:?}"),
            };
            format!("{sign} {}", String::from_utf8_lossy(&found.path))
        };
        self.changes().iter().map(tell).collect()
    }
}

#[test]
fn a_vm_that_wrote_nothing_is_as_its_image() {
    let trees = Trees::new();
    trees.image("etc/passwd", "root");
    assert!(trees.changes().is_empty());
}

#[test]
fn what_was_written_changed_and_removed_is_told_and_nothing_else() {
    let trees = Trees::new();
    for (path, text) in [("etc/a", "old"), ("etc/b", "same"), ("etc/c", "size"), ("etc/untouched", "x")] {
        trees.image(path, text);
    }
    trees.image("opt/tool/bin", "x");
    trees.write("etc/a", "new");
    // Opened for writing, and written as it was.
    trees.write("etc/b", "same");
    trees.write("etc/c", "another size");
    trees.write("etc/new", "x");
    trees.write("srv/deep/file", "x");
    trees.remove("opt/tool");
    assert_eq!(
        trees.told(),
        [
            "M /etc/a",
            "M /etc/c",
            "A /etc/new",
            "D /opt/tool",
            "D /opt/tool/bin",
            "A /srv",
            "A /srv/deep",
            "A /srv/deep/file"
        ]
    );
    // Something that was never in the image, and is gone again.
    trees.put("upper", "etc/never", "whiteout");
    assert!(!trees.told().iter().any(|line| line.contains("never")));
}

#[test]
fn large_files_are_compared_to_their_last_byte() {
    let trees = Trees::new();
    let text = "x".repeat(3 * BLOCK + 5);
    trees.image("same", &text);
    trees.image("last", &text);
    trees.write("same", &text);
    trees.write("last", &format!("{}y", &text[1..]));
    assert_eq!(trees.told(), ["M /last"]);
    trees.image("even", &text[..2 * BLOCK]);
    trees.write("even", &text[..2 * BLOCK]);
    assert_eq!(trees.told(), ["M /last"], "a file that ends where a block does");
}

#[test]
fn a_mode_counts_a_time_does_not_and_a_directory_is_not_changed_by_what_it_holds() {
    let trees = Trees::new();
    trees.image("d/file", "x");
    trees.image("d/other", "x");
    trees.write("d/file", "x");
    trees.write("d/other", "x");
    let seen = fs::metadata(trees.path("now", "d/file")).unwrap();
    let was = fs::metadata(trees.path("image", "d/file")).unwrap();
    assert_ne!(seen.ino(), was.ino(), "the stamps differ");
    assert!(trees.changes().is_empty());
    fs::set_permissions(trees.path("now", "d/file"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(trees.told(), ["M /d/file"]);
}

#[test]
fn kinds_and_targets_of_links_are_compared_and_links_are_not_followed() {
    let trees = Trees::new();
    trees.image("kept", "x");
    for tree in ["image", "now"] {
        symlink("/etc", trees.path(tree, "link")).unwrap();
    }
    symlink("/", trees.path("upper", "link")).unwrap();
    fs::remove_file(trees.path("now", "link")).unwrap();
    symlink("/", trees.path("now", "link")).unwrap();
    trees.image("dir/below", "x");
    trees.remove("dir");
    fs::remove_file(trees.path("upper", "dir")).unwrap();
    trees.write("dir", "now a file");
    let found = trees.changes();
    assert_eq!(trees.told(), ["M /dir", "D /dir/below", "M /link"]);
    let target = |entry: &Option<DiskEntry>| entry.as_ref().unwrap().target.clone().unwrap().into_vec();
    assert_eq!((target(&found[2].image), target(&found[2].now)), (b"/etc".to_vec(), b"/".to_vec()));
}

#[test]
fn a_directory_made_anew_or_moved_is_read_whole() {
    let trees = Trees::new();
    trees.image("opt/a", "x");
    trees.image("opt/sub/b", "x");
    // Removed and made again, with one file.
    fs::remove_dir_all(trees.path("now", "opt")).unwrap();
    trees.write("opt/c", "x");
    trees.put("upper", &format!("opt/{MARK}"), "");
    assert_eq!(trees.told(), ["D /opt/a", "A /opt/c", "D /opt/sub", "D /opt/sub/b"]);

    // A directory of the image under another name: what it holds is in no upper layer.
    let trees = Trees::new();
    trees.image("lib/x/file", "x");
    trees.remove("lib");
    trees.put("now", "moved/x/file", "x");
    trees.put("upper", &format!("moved/{MARK}"), "");
    assert_eq!(
        trees.told(),
        ["D /lib", "D /lib/x", "D /lib/x/file", "A /moved", "A /moved/x", "A /moved/x/file"]
    );
}

#[test]
fn names_may_hold_any_bytes_and_the_order_is_that_of_paths() {
    use std::os::unix::ffi::OsStrExt as _;
    let trees = Trees::new();
    for name in [b"a".as_slice(), b"a-b", b"a.b", b"\xff\n", b"Z"] {
        let name = Path::new(std::ffi::OsStr::from_bytes(name));
        for tree in ["upper", "now"] {
            fs::create_dir(trees.dir.path().join(tree).join(name)).unwrap();
            fs::write(trees.dir.path().join(tree).join(name).join("in"), "x").unwrap();
        }
    }
    let found = trees.changes();
    assert_eq!(found.len(), 10);
    assert_eq!(found[8].path, b"/\xff\n");
}

#[test]
fn what_lies_too_deep_is_counted_and_not_told() {
    let trees = Trees::new();
    let name = "x".repeat(250);
    for tree in ["upper", "now"] {
        // By descriptors: no path that long can be named.
        let mut at = rustix::fs::open(trees.dir.path().join(tree), DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..17 {
            rustix::fs::mkdirat(&at, name.as_str(), Mode::from_raw_mode(0o755)).unwrap();
            at = openat(&at, name.as_str(), DIRECTORY, Mode::empty()).unwrap();
        }
    }
    let mut walk = Walk::new(trees.layers());
    let (page, more) = walk.spell().unwrap();
    assert_eq!((page.len(), more, walk.left_out), (16, false, 1));
}
