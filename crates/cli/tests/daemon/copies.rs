//! `cp` in both directions.

use crate::fixture::World;
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

#[test]
fn a_tree_comes_back_as_it_went() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    let source = world.path("source");
    fs::create_dir_all(source.join("deep/er")).expect("make directories");
    fs::write(source.join("deep/er/large"), vec![0xA5; 1 << 20]).expect("write a file");
    fs::write(source.join("empty"), "").expect("write a file");
    fs::set_permissions(source.join("empty"), fs::Permissions::from_mode(0o751)).expect("set a mode");
    symlink("deep/er/large", source.join("link")).expect("make a link");
    let copied = world.run(&["cp", "source", "web:/copy", "--json"]).exits(0).json();
    assert_eq!((copied["files"].as_u64(), copied["symlinks"].as_u64()), (Some(2), Some(1)));
    world.run(&["cp", "web:/copy", "back"]).exits(0);
    let back = world.path("back");
    assert_eq!(fs::read(back.join("deep/er/large")).expect("it is there"), vec![0xA5; 1 << 20]);
    assert_eq!(fs::metadata(back.join("empty")).expect("it is there").permissions().mode() & 0o777, 0o751);
    assert_eq!(fs::read_link(back.join("link")).expect("it is a link").as_os_str(), "deep/er/large");
    // Into a directory that exists, under its own name; its contents, without it.
    world.run(&["cp", "web:/copy", "back"]).exits(0);
    assert!(back.join("copy/empty").exists());
    world.run(&["cp", "web:/copy/.", "contents"]).exits(0);
    assert!(world.path("contents/empty").exists());
}

#[test]
fn what_is_missing_is_named_on_either_side() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    let remote = world.run(&["cp", "web:/no/such/file", "x"]).exits(3);
    assert!(remote.stderr.contains("/no/such/file"), "{remote:#?}");
    assert!(!world.path("x").exists());
    let local = world.run(&["cp", "absent", "web:/x"]).exits(3);
    assert!(local.stderr.contains("`absent`"), "{local:#?}");
    world.run(&["cp", "nobody:/x", "x"]).exits(3);
    fs::write(world.path("file"), "x").expect("write a file");
    world.run(&["cp", "file", "web:/no/such/directory/"]).exits(3);
}

#[test]
fn a_stopped_vm_has_no_files_to_copy() {
    let world = World::new();
    world.run(&["create", "web"]).exits(0);
    let refused = world.run(&["cp", "web:/etc/hosts", "x"]).exits(4);
    assert!(refused.stderr.contains("offshoot start web"), "{refused:#?}");
}

#[test]
fn a_copy_of_nothing_says_so() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    let socket = std::os::unix::net::UnixListener::bind(world.path("socket")).expect("make a socket");
    let ended = world.run(&["cp", "socket", "web:/socket"]).exits(0);
    assert!(ended.stderr.ends_with("skipped\ncopied nothing\n"), "{ended:#?}");
    drop(socket);
}
