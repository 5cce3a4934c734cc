//! File operations in a directory of the host that stands for the VM's root.

use super::*;
use offshoot_guest_proto::message::{CHUNK, FileKind, ListItem};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

struct World {
    outside: tempfile::TempDir,
    root: PathBuf,
    files: Files,
}

/// A root inside a directory with a file that must stay out of reach.
fn world() -> World {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let root = outside.path().join("root");
    fs::create_dir(&root).unwrap();
    let identity = FileIdentity {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: vec![],
    };
    let files = Files::new(Arc::new(Root::open_at(&root).unwrap()), identity);
    World { outside, root, files }
}

async fn write(files: &Files, path: &str, data: &[u8]) -> Result<FileStat, GuestError> {
    let mut writing = files.write(path.into(), None, false, false).await?;
    writing.append(data.to_vec()).await?;
    writing.commit().await
}

async fn read(files: &Files, path: &str, offset: u64, length: Option<u64>) -> Result<Vec<u8>, GuestError> {
    let (_, mut reading) = files.read(path.into(), offset, length).await?;
    let mut all = Vec::new();
    while let Some(data) = reading.next().await? {
        all.extend(data);
    }
    Ok(all)
}

async fn names(files: &Files, path: &str) -> Vec<String> {
    let mut listing = files.list(path.into()).await.unwrap();
    let mut names = Vec::new();
    loop {
        let batch = listing.next().await.unwrap();
        if batch.is_empty() {
            names.sort();
            return names;
        }
        names.extend(batch.into_iter().map(|item| match item {
            ListItem::Entry { name, .. } => name,
            other => panic!("{other:?}"),
        }));
    }
}

#[tokio::test]
async fn a_file_of_any_size_comes_back_as_it_was_sent() {
    let World { files, outside: _outside, .. } = world();
    let data: Vec<u8> = (0..CHUNK * 2 + 77).map(|i| i as u8).collect();
    let stat = write(&files, "/data", &data).await.unwrap();
    assert_eq!((stat.kind, stat.size, stat.mode), (FileKind::File, data.len() as u64, 0o644));
    assert_eq!(read(&files, "/data", 0, None).await.unwrap(), data);
    assert_eq!(read(&files, "/data", 10, Some(5)).await.unwrap(), &data[10..15]);
    assert_eq!(read(&files, "/data", 1 << 40, None).await.unwrap(), b"");
}

#[tokio::test]
async fn no_path_leads_out_of_the_root() {
    let World { outside, root, files } = world();
    let secret = outside.path().join("secret");
    symlink("../secret", root.join("relative")).unwrap();
    symlink(&secret, root.join("absolute")).unwrap();
    symlink("/..", root.join("up")).unwrap();
    for path in ["/../secret", "/relative", "/absolute", "/up/secret", "/up/../secret"] {
        let error = read(&files, path, 0, None).await.unwrap_err();
        assert_eq!(error.kind, GuestErrorKind::NotFound, "{path}");
        // Written inside the root, or not at all.
        let _either = write(&files, path, b"overwritten").await;
        assert_eq!(fs::read(&secret).unwrap(), b"secret", "{path}");
        let _either = files.remove(path.into(), true).await;
        assert!(secret.exists(), "{path}");
        // What was written inside the root must not be found by the next path.
        let _absent = fs::remove_file(root.join("secret"));
    }
}

#[tokio::test]
async fn paths_that_are_not_absolute_or_contain_nul_are_refused() {
    let World { files, outside: _outside, .. } = world();
    for path in ["", "relative", "/a\0b"] {
        assert_eq!(files.stat(path.into(), true).await.unwrap_err().kind, GuestErrorKind::InvalidArgument);
        assert_eq!(
            files.rename("/x".into(), path.into()).await.unwrap_err().kind,
            GuestErrorKind::InvalidArgument
        );
    }
}

#[tokio::test]
async fn a_write_that_is_given_up_leaves_the_old_file_and_nothing_else() {
    let World { files, outside: _outside, .. } = world();
    write(&files, "/f", b"old").await.unwrap();
    let mut writing = files.write("/f".into(), None, false, false).await.unwrap();
    writing.append(b"new".to_vec()).await.unwrap();
    assert_eq!(read(&files, "/f", 0, None).await.unwrap(), b"old");
    drop(writing);
    assert_eq!(read(&files, "/f", 0, None).await.unwrap(), b"old");
    assert_eq!(names(&files, "/").await, ["f"]);
}

#[tokio::test]
async fn a_replaced_file_keeps_its_mode_and_a_symlink_to_it_stays_one() {
    let World { root, files, outside: _outside } = world();
    write(&files, "/script", b"1").await.unwrap();
    files.set_mode("/script".into(), 0o755).await.unwrap();
    symlink("/script", root.join("link")).unwrap();
    write(&files, "/link", b"22").await.unwrap();
    assert_eq!(read(&files, "/script", 0, None).await.unwrap(), b"22");
    assert_eq!(fs::metadata(root.join("script")).unwrap().permissions().mode() & 0o7777, 0o755);
    let link = files.stat("/link".into(), false).await.unwrap();
    assert_eq!((link.kind, link.symlink_target.as_deref()), (FileKind::Symlink, Some("/script")));
    assert_eq!(files.stat("/link".into(), true).await.unwrap().size, 2);
}

#[tokio::test]
async fn an_exclusive_write_refuses_what_exists_even_if_it_appears_meanwhile() {
    let World { root, files, outside: _outside } = world();
    let writing = files.write("/new/dir/f".into(), Some(0o600), true, true).await.unwrap();
    fs::write(root.join("new/dir/f"), "first").unwrap();
    assert_eq!(writing.commit().await.unwrap_err().kind, GuestErrorKind::AlreadyExists);
    let early = files.write("/new/dir/f".into(), None, true, true).await.unwrap_err();
    assert_eq!(early.kind, GuestErrorKind::AlreadyExists);
    assert_eq!(names(&files, "/new/dir").await, ["f"]);
}

#[tokio::test]
async fn what_is_not_a_regular_file_is_neither_read_nor_replaced() {
    let World { root, files, outside: _outside } = world();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    fs::create_dir(root.join("d")).unwrap();
    assert_eq!(read(&files, "/fifo", 0, None).await.unwrap_err().kind, GuestErrorKind::InvalidArgument);
    assert_eq!(write(&files, "/fifo", b"x").await.unwrap_err().kind, GuestErrorKind::InvalidArgument);
    assert_eq!(read(&files, "/d", 0, None).await.unwrap_err().kind, GuestErrorKind::IsADirectory);
    assert_eq!(write(&files, "/d", b"x").await.unwrap_err().kind, GuestErrorKind::IsADirectory);
}

#[tokio::test]
async fn removing_a_tree_spares_what_its_symlinks_lead_to() {
    let World { root, files, outside: _outside } = world();
    fs::create_dir_all(root.join("keep")).unwrap();
    fs::write(root.join("keep/file"), "x").unwrap();
    let mut deep = root.join("tree");
    for _ in 0..100 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("leaf"), "x").unwrap();
    symlink(root.join("keep"), deep.join("link")).unwrap();
    let error = files.remove("/tree".into(), false).await.unwrap_err();
    assert_eq!(error.kind, GuestErrorKind::NotEmpty);
    files.remove("/tree".into(), true).await.unwrap();
    assert_eq!(names(&files, "/").await, ["keep"]);
    assert!(root.join("keep/file").exists());
    assert_eq!(files.remove("/tree".into(), true).await.unwrap_err().kind, GuestErrorKind::NotFound);
    assert_eq!(files.remove("/".into(), true).await.unwrap_err().kind, GuestErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_large_directory_is_listed_completely() {
    let World { root, files, outside: _outside } = world();
    fs::create_dir(root.join("many")).unwrap();
    let mut expected: Vec<String> = (0..1500).map(|i| format!("entry-{i}")).collect();
    for name in &expected {
        fs::write(root.join("many").join(name), "").unwrap();
    }
    expected.sort();
    assert_eq!(names(&files, "/many").await, expected);
}

#[tokio::test]
async fn directories_are_made_with_their_parents_and_exist_happily() {
    let World { root, files, outside: _outside } = world();
    files.make_directory("/a/b/c".into(), true, Some(0o700)).await.unwrap();
    files.make_directory("/a/b/c".into(), true, Some(0o755)).await.unwrap();
    assert_eq!(fs::metadata(root.join("a/b/c")).unwrap().permissions().mode() & 0o777, 0o700);
    let error = files.make_directory("/a/b/c".into(), false, None).await.unwrap_err();
    assert_eq!(error.kind, GuestErrorKind::AlreadyExists);
    let absurd = files.make_directory("/m".into(), false, Some(0o100_777)).await.unwrap_err();
    assert_eq!(absurd.kind, GuestErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_watch_sees_changes_also_in_directories_made_later() {
    let World { root, files, outside: _outside } = world();
    let mut watching = files.watch("/".into(), true).await.unwrap();
    fs::create_dir(root.join("d")).unwrap();
    let event = watching.next().await.unwrap();
    assert_eq!((event.what, event.path.as_str()), (What::Created, "/d"));
    fs::write(root.join("d/f"), "x").unwrap();
    let event = watching.next().await.unwrap();
    assert_eq!((event.what, event.path.as_str()), (What::Created, "/d/f"));
    fs::rename(root.join("d/f"), root.join("d/g")).unwrap();
    let mut seen = Vec::new();
    while !seen.contains(&(What::MovedIn, "/d/g".to_owned())) {
        let event = watching.next().await.unwrap();
        seen.push((event.what, event.path));
    }
    assert!(seen.contains(&(What::MovedOut, "/d/f".to_owned())), "{seen:?}");
}

#[tokio::test]
async fn a_watch_misses_nothing_in_a_directory_that_is_filled_before_it_is_seen() {
    let World { root, files, outside: _outside } = world();
    let mut watching = files.watch("/".into(), true).await.unwrap();
    fs::create_dir(root.join("gone")).unwrap();
    fs::remove_dir(root.join("gone")).unwrap();
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/b/f"), "x").unwrap();
    let mut seen = Vec::new();
    while !seen.contains(&"/a/b/f".to_owned()) {
        let event = watching.next().await.unwrap();
        if event.what == What::Created {
            seen.push(event.path);
        }
    }
    assert!(seen.contains(&"/a/b".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn a_user_may_do_no_more_than_the_file_system_lets_them() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root can become someone else; the VM's agent is root.
    }
    let World { outside, root, files } = world();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.join("private"), "x").unwrap();
    fs::set_permissions(root.join("private"), fs::Permissions::from_mode(0o600)).unwrap();
    let user = Files::new(Arc::clone(&files.root), FileIdentity { uid: 4242, gid: 4242, groups: vec![4242] });
    for error in [
        read(&user, "/private", 0, None).await.unwrap_err(),
        write(&user, "/other", b"x").await.unwrap_err(),
        user.remove("/private".into(), false).await.unwrap_err(),
        user.set_mode("/private".into(), 0o666).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, GuestErrorKind::PermissionDenied, "{error}");
    }
    fs::create_dir(root.join("theirs")).unwrap();
    std::os::unix::fs::chown(root.join("theirs"), Some(4242), Some(4242)).unwrap();
    let stat = write(&user, "/theirs/f", b"x").await.unwrap();
    assert_eq!((stat.uid, stat.gid), (4242, 4242));
    assert_eq!(read(&files, "/private", 0, None).await.unwrap(), b"x", "root's threads are root's again");
}
