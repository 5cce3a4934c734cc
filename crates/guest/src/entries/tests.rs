//! In a directory of the host that stands for the VM's root.

use super::*;
use offshoot_guest_proto::message::{CHUNK, EntryChange, MAX_ATTRIBUTES};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::timeout;

struct World {
    _place: tempfile::TempDir,
    root: PathBuf,
    entries: Entries,
}

/// With a user `u`, who is somebody else where the tests run as root.
fn world() -> World {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    fs::create_dir_all(root.join("home/u")).unwrap();
    let (uid, gid) = match rustix::process::geteuid().is_root() {
        true => (4242, 4343),
        false => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
    };
    fs::write(place.path().join("passwd"), format!("u:x:{uid}:{gid}::/home/u:/bin/sh\n")).unwrap();
    fs::write(place.path().join("group"), format!("g:x:{gid}:\n")).unwrap();
    let users = Arc::new(Users::new(place.path()));
    let user = users.find("u").unwrap();
    let entries = Entries::new(Arc::new(Root::open_at(&root).unwrap()), users, user);
    World { _place: place, root, entries }
}

async fn write(entries: &Entries, path: &str, data: &[u8]) -> Result<Entry, GuestError> {
    let mut writing = entries.write(path, BTreeMap::new()).await?;
    for chunk in data.chunks(CHUNK) {
        writing.append(chunk.to_vec()).await?;
    }
    writing.finish().await
}

async fn read(entries: &Entries, path: &str) -> Vec<u8> {
    let (_, mut reading) = entries.read(path, 0, None).await.unwrap();
    let mut all = Vec::new();
    while let Some(data) = reading.next().await.unwrap() {
        all.extend(data);
    }
    all
}

async fn list(entries: &Entries, path: &str, depth: u32) -> Vec<String> {
    let mut listing = entries.list(path, depth).await.unwrap();
    let mut paths = Vec::new();
    loop {
        let batch = listing.next().await.unwrap();
        if batch.is_empty() {
            return paths;
        }
        paths.extend(batch.into_iter().map(|entry| entry.path));
    }
}

#[tokio::test]
async fn names_that_are_not_utf_8_are_listed_with_a_sign_for_what_is_not() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let World { _place, root, entries } = world();
    let odd = root.join(OsStr::from_bytes(b"d/\xff"));
    fs::create_dir_all(&odd).unwrap();
    fs::write(odd.join(OsStr::from_bytes(b"x\xfe")), "").unwrap();
    symlink("x", root.join(OsStr::from_bytes(b"d/l\xfd"))).unwrap();
    let listed = list(&entries, "/d", 2).await;
    assert_eq!(listed, ["/d/l\u{fffd}", "/d/\u{fffd}", "/d/\u{fffd}/x\u{fffd}"]);
}

#[tokio::test]
async fn what_is_made_belongs_to_the_user_with_all_its_new_parents() {
    let World { _place, root, entries } = world();
    let written = write(&entries, "a/b/c.txt", b"hello").await.unwrap();
    assert_eq!((written.path.as_str(), written.stat.size), ("/home/u/a/b/c.txt", 5));
    assert_eq!((written.owner.as_str(), written.group.as_str()), ("u", "g"));
    assert_eq!(written.stat.mode, 0o644);
    let made = entries.make_directory("~/x/y").await.unwrap();
    assert_eq!((made.path.as_str(), made.stat.kind), ("/home/u/x/y", FileKind::Directory));
    for path in ["home/u/a", "home/u/a/b", "home/u/x", "home/u/x/y"] {
        assert_eq!(fs::metadata(root.join(path)).unwrap().uid(), entries.user.identity.uid, "{path}");
    }
    assert_eq!(entries.make_directory("x/y").await.unwrap_err().kind, GuestErrorKind::AlreadyExists);
    assert_eq!(entries.make_directory("a/b/c.txt").await.unwrap_err().kind, GuestErrorKind::NotADirectory);
}

#[tokio::test]
async fn a_file_is_written_in_place_and_only_a_file() {
    let World { _place, root, entries } = world();
    fs::write(root.join("file"), "old and long").unwrap();
    fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o755)).unwrap();
    let before = fs::metadata(root.join("file")).unwrap().ino();
    write(&entries, "/file", b"new").await.unwrap();
    let after = fs::metadata(root.join("file")).unwrap();
    assert_eq!((after.ino(), after.mode() & 0o777), (before, 0o755));
    assert_eq!(after.uid(), entries.user.identity.uid);
    assert_eq!(fs::read(root.join("file")).unwrap(), b"new");
    let large: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    write(&entries, "large", &large).await.unwrap();
    assert!(read(&entries, "large").await == large);
    symlink("file", root.join("link")).unwrap();
    write(&entries, "/link", b"through").await.unwrap();
    assert_eq!(fs::read(root.join("file")).unwrap(), b"through");
    for (path, kind) in [("/", GuestErrorKind::IsADirectory), ("/home", GuestErrorKind::IsADirectory)] {
        assert_eq!(write(&entries, path, b"x").await.unwrap_err().kind, kind, "{path}");
    }
    assert_eq!(write(&entries, "/file/below", b"x").await.unwrap_err().kind, GuestErrorKind::NotADirectory);
}

#[tokio::test]
async fn a_link_is_told_with_where_it_leads() {
    let World { _place, root, entries } = world();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/f"), "").unwrap();
    for (target, link) in [("d/f", "file"), ("/d", "directory"), ("nowhere", "broken"), ("file", "twice")] {
        symlink(target, root.join(link)).unwrap();
    }
    let found = entries.stat("/file").await.unwrap();
    assert_eq!((found.stat.kind, found.target), (FileKind::Symlink, Some(FileKind::File)));
    assert_eq!(found.stat.symlink_target.as_deref(), Some("/d/f"));
    let found = entries.stat("/twice").await.unwrap();
    assert_eq!((found.target, found.stat.symlink_target.as_deref()), (Some(FileKind::File), Some("/d/f")));
    let found = entries.stat("/directory").await.unwrap();
    assert_eq!((found.target, found.stat.symlink_target.as_deref()), (Some(FileKind::Directory), Some("/d")));
    let found = entries.stat("/broken").await.unwrap();
    assert_eq!((found.target, found.stat.symlink_target.as_deref()), (None, Some("nowhere")));
    assert_eq!(entries.stat("/nowhere").await.unwrap_err().kind, GuestErrorKind::NotFound);
    assert_eq!(list(&entries, "/directory", 1).await, ["/directory/f"], "as it was asked for");
}

#[tokio::test]
async fn a_listing_goes_as_deep_as_it_is_told_and_follows_no_link() {
    let World { _place, root, entries } = world();
    fs::create_dir_all(root.join("t/a/b/c")).unwrap();
    fs::write(root.join("t/a/f"), "").unwrap();
    fs::write(root.join("t/z"), "").unwrap();
    symlink("/t", root.join("t/a/loop")).unwrap();
    assert_eq!(list(&entries, "/t", 0).await, ["/t/a", "/t/z"]);
    assert_eq!(list(&entries, "/t/", 2).await, ["/t/a", "/t/a/b", "/t/a/f", "/t/a/loop", "/t/z"]);
    assert_eq!(list(&entries, "/t", 9).await.len(), 6);
    for index in 0..500 {
        fs::write(root.join(format!("t/a/b/{index:03}")), "").unwrap();
    }
    let many = list(&entries, "/t/a/b", 1).await;
    assert_eq!(many.len(), 501);
    assert!(many.is_sorted());
    let refused = |path: &'static str| async { entries.list(path, 1).await.unwrap_err().kind };
    assert_eq!(refused("/nothing").await, GuestErrorKind::NotFound);
    assert_eq!(refused("/t/z").await, GuestErrorKind::NotADirectory);
}

#[tokio::test]
async fn moving_makes_parents_and_removing_forgives_nothing_there() {
    let World { _place, root, entries } = world();
    write(&entries, "from", b"1").await.unwrap();
    let moved = entries.rename("from", "new/place/to").await.unwrap();
    assert_eq!(moved.path, "/home/u/new/place/to");
    assert!(!root.join("home/u/from").exists());
    let missing = entries.rename("from", "elsewhere/to").await.unwrap_err();
    assert_eq!(missing.kind, GuestErrorKind::NotFound);
    entries.remove("new").await.unwrap();
    assert!(!root.join("home/u/new").exists());
    entries.remove("new").await.unwrap();
    entries.remove("new/below").await.unwrap();
    assert!(entries.remove("/").await.is_err());
}

#[tokio::test]
async fn attributes_are_replaced_as_a_whole() {
    let World { _place, root, entries } = world();
    let attributes = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let first = attributes(&[("author", "ada"), ("empty", "")]);
    let writing = match entries.write("f", first.clone()).await {
        // The file system under the tests may have none.
        Err(error) if error.kind == GuestErrorKind::Unsupported => return,
        writing => writing.unwrap(),
    };
    assert_eq!(writing.finish().await.unwrap().attributes, first);
    let path = root.join("home/u/f");
    rustix::fs::setxattr(&path, "user.other", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    let second = attributes(&[("reviewer", "bob")]);
    entries.write("f", second.clone()).await.unwrap().finish().await.unwrap();
    assert_eq!(entries.stat("f").await.unwrap().attributes, second);
    let mut other = [0; 16];
    assert_eq!(rustix::fs::getxattr(&path, "user.other", &mut other[..]).unwrap(), 4, "not ours");
    let large = attributes(&[("k", &"v".repeat(MAX_ATTRIBUTES))]);
    assert_eq!(entries.write("f", large).await.unwrap_err().kind, GuestErrorKind::InvalidArgument);
    assert_eq!(entries.stat("f").await.unwrap().attributes, second, "refused before anything is done");
}

#[tokio::test]
async fn files_are_composed_whole_or_not_at_all() {
    let World { _place, root, entries } = world();
    for (name, text) in [("1", "one "), ("2", "two "), ("3", "three")] {
        write(&entries, name, text.as_bytes()).await.unwrap();
    }
    let sources = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    write(&entries, "all", b"old").await.unwrap();
    let missing = entries.compose(&sources(&["1", "nothing"]), "all").await.unwrap_err();
    assert_eq!(missing.kind, GuestErrorKind::NotFound);
    assert_eq!(read(&entries, "all").await, b"old");
    let made = entries.compose(&sources(&["1", "2", "3"]), "all").await.unwrap();
    assert_eq!((made.path.as_str(), made.owner.as_str()), ("/home/u/all", "u"));
    assert_eq!(read(&entries, "all").await, b"one two three");
    let left: Vec<_> = fs::read_dir(root.join("home/u")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    for (names, to) in [(&[][..], "all"), (&["all"][..], "~/all")] {
        let refused = entries.compose(&sources(names), to).await.unwrap_err();
        assert_eq!(refused.kind, GuestErrorKind::InvalidArgument);
    }
}

/// What was told until a directory of this name was made.
async fn told_until(watching: &mut Watching, root: &Path, mark: &str) -> Vec<EntryChange> {
    fs::create_dir(root.join("home/u").join(mark)).unwrap();
    let mut seen = Vec::new();
    loop {
        let event = timeout(Duration::from_secs(10), watching.next()).await.unwrap().unwrap();
        if event.path.ends_with(mark) {
            return seen;
        }
        assert_eq!(event.path, "/home/u/f");
        seen.push(event.change);
    }
}

/// No oftener than E2B's clients expect it, who count.
#[tokio::test]
async fn a_write_is_told_when_the_file_is_made_or_emptied_when_it_is_given_away_and_with_the_data() {
    let World { _place, root, entries } = world();
    let mut watching = entries.watch("", false, false).await.unwrap();
    // Only an agent that is root gives files away.
    let given = rustix::process::geteuid().is_root().then_some(EntryChange::AttributesChanged);
    for (round, first) in [EntryChange::Created, EntryChange::Written].into_iter().enumerate() {
        let mut writing = entries.write("f", BTreeMap::new()).await.unwrap();
        let opened = told_until(&mut watching, &root, &format!("opened-{round}")).await;
        assert_eq!(opened, [Some(first), given].into_iter().flatten().collect::<Vec<_>>());
        writing.append(b"data".to_vec()).await.unwrap();
        writing.finish().await.unwrap();
        let written = told_until(&mut watching, &root, &format!("written-{round}")).await;
        assert_eq!(written, [EntryChange::Written]);
    }
}

#[tokio::test]
async fn a_watch_tells_what_happened_and_what_is_there() {
    let World { _place, root, entries } = world();
    fs::write(root.join("home/u/there"), "").unwrap();
    let mut watching = entries.watch("", true, true).await.unwrap();
    assert_eq!(watching.directory(), "/home/u");
    write(&entries, "f", b"data").await.unwrap();
    entries.rename("f", "g").await.unwrap();
    entries.remove("g").await.unwrap();
    fs::create_dir(root.join("home/u/sub")).unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&(EntryChange::Created, "/home/u/sub".to_owned())) {
        let event = timeout(Duration::from_secs(10), watching.next()).await.unwrap().unwrap();
        seen.push((event.change, event.path));
    }
    for expected in [
        (EntryChange::Created, "/home/u/f"),
        (EntryChange::Written, "/home/u/f"),
        (EntryChange::Renamed, "/home/u/f"),
        (EntryChange::Created, "/home/u/g"),
        (EntryChange::Removed, "/home/u/g"),
    ] {
        assert!(seen.contains(&(expected.0, expected.1.to_owned())), "{expected:?} in {seen:?}");
    }
    write(&entries, "sub/h", b"data").await.unwrap();
    loop {
        let event = timeout(Duration::from_secs(10), watching.next()).await.unwrap().unwrap();
        if event.change == EntryChange::Created && event.path == "/home/u/sub/h" {
            assert_eq!(event.entry.unwrap().path, "/home/u/sub/h");
            break;
        }
    }
    assert_eq!(entries.watch("there", false, false).await.unwrap_err().kind, GuestErrorKind::NotADirectory);
    assert_eq!(entries.watch("nothing", false, false).await.unwrap_err().kind, GuestErrorKind::NotFound);
}
