//! The store as its callers see it, whole and after crashes.

use super::{identity::Identity, scratch::Scratch, *};
use crate::{
    AgentBinary, BlobDigest, Cancel, Manifest, Part, PartKind, Parts,
    elf::tests::{Note, program},
    initramfs,
    kernel::Module,
    manifest::tests::sample,
};
use offshoot_types::{ErrorCode, ImageDigest, ImageRef};
use std::{
    collections::BTreeSet,
    fs::{File, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    sync::Barrier,
    thread,
    time::SystemTime,
};

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        Self { directory, store }
    }

    /// An image whose root is `root`, with an initramfs that can be taken apart again.
    fn image(&self, tag: Option<&str>, root: &[u8]) -> Image {
        publish(&self.store, tag, root)
    }

    fn entries(&self, directory: &str) -> Vec<String> {
        self.store.names(directory).unwrap()
    }
}

fn publish(store: &Store, tag: Option<&str>, root: &[u8]) -> Image {
    let _builder = store.builder().unwrap();
    let scratch = store.scratch().unwrap();
    let modules = [Module { name: "virtio".into(), bytes: b"code".to_vec() }];
    let add = |bytes: &[u8]| store.add_bytes(&scratch, bytes).unwrap();
    let parts = Parts {
        kernel: add(b"a kernel"),
        initramfs: add(&initramfs::write(&modules, b"an agent")),
        root: add(root),
        disk: add(b"a disk"),
    };
    store.publish(&scratch, &Manifest { parts, ..sample() }, tag).unwrap()
}

fn tag(name: &str) -> ImageRef {
    name.parse().unwrap()
}

fn nobody() -> BTreeSet<ImageDigest> {
    BTreeSet::new()
}

/// Waits until the file's identity counts.
fn settle(path: &Path) {
    let identity = Identity::of(&File::open(path).unwrap()).unwrap();
    while !identity.is_settled(SystemTime::now()) {
        thread::yield_now();
    }
}

fn overwrite(path: &Path, bytes: &[u8]) {
    std::fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_image_is_found_by_tag_and_by_digest_and_survives_reopening() {
    let fixture = Fixture::new();
    let image = fixture.image(Some("base"), b"root");
    let store = Store::open(fixture.directory.path()).unwrap();
    assert_eq!(store.resolve(&tag("base")).unwrap(), image);
    assert_eq!(store.resolve(&ImageRef::Digest(image.digest.clone())).unwrap(), image);
    assert_eq!(image.tags, ["base"]);
    assert_eq!(std::fs::read(image.root()).unwrap(), b"root");
    assert_eq!(image.kernel().metadata().unwrap().permissions().mode() & 0o777, 0o444);
    assert_eq!(fixture.entries("tmp"), ["gate"], "no temporary directory is left");
}

#[test]
fn an_unknown_image_is_named_and_says_how_to_build_it() {
    let fixture = Fixture::new();
    let error = fixture.store.resolve(&tag("base")).unwrap_err();
    assert_eq!(error.to_string(), "no image is called `base`");
    assert_eq!(error.code(), ErrorCode::NotFound);
    assert!(error.hint().unwrap().contains("offshoot image build base"));
}

#[test]
fn a_changed_part_is_refused_with_its_file_and_both_digests() {
    let fixture = Fixture::new();
    let image = fixture.image(Some("base"), b"root");
    settle(&image.root());
    fixture.store.check(&image).unwrap();
    overwrite(&image.root(), b"evil");
    for checked in [fixture.store.check(&image), fixture.store.verify(&image)] {
        let error = checked.unwrap_err();
        let StoreError::Mismatch { path, expected, actual, .. } = &error else { panic!("{error:?}") };
        assert_eq!((path, *expected), (&image.root(), BlobDigest::of(b"root")));
        assert_eq!(*actual, BlobDigest::of(b"evil"));
        let text = error.to_string();
        assert!(text.contains(&expected.to_string()) && text.contains(&actual.to_string()), "{text}");
        assert_eq!(error.code(), ErrorCode::Image);
    }
}

#[test]
fn a_missing_part_is_refused() {
    let fixture = Fixture::new();
    let image = fixture.image(Some("base"), b"root");
    std::fs::remove_file(image.disk()).unwrap();
    let error = fixture.store.check(&image).unwrap_err();
    assert!(matches!(error, StoreError::Missing { path, .. } if path == image.disk()));
}

#[test]
fn a_file_that_was_hashed_is_recognised_without_hashing_until_it_changes() {
    let fixture = Fixture::new();
    let image = fixture.image(Some("base"), b"root");
    let digest = image.manifest.parts.root.digest;
    settle(&image.root());
    fixture.store.check(&image).unwrap();
    let known = fixture.store.verified_identity(digest).expect("its identity is remembered");
    assert_eq!(known.size, 4);

    // A record that claims another file's identity proves nothing: the content is read, and the record renewed.
    std::fs::rename(image.root(), fixture.directory.path().join("aside")).unwrap();
    std::fs::write(image.root(), b"root").unwrap();
    settle(&image.root());
    fixture.store.check(&image).unwrap();
    assert_ne!(fixture.store.verified_identity(digest).unwrap(), known);
}

#[test]
fn a_fresh_file_is_hashed_again_because_a_write_in_the_same_tick_would_not_show() {
    let fixture = Fixture::new();
    let image = fixture.image(Some("base"), b"root");
    overwrite(&image.root(), b"root");
    fixture.store.check(&image).unwrap();
    assert_eq!(fixture.store.verified_identity(image.manifest.parts.root.digest), None);
}

#[test]
fn a_damaged_manifest_is_listed_as_broken_beside_the_good_ones() {
    let fixture = Fixture::new();
    let good = fixture.image(Some("good"), b"one");
    let bad = fixture.image(Some("bad"), b"two");
    overwrite(&fixture.store.root().join("blobs/sha256").join(bad.digest.hex()), b"{}");
    let listing = fixture.store.list().unwrap();
    assert_eq!(listing.images, [good]);
    assert!(matches!(&listing.broken[..], [(digest, StoreError::Mismatch { .. })] if *digest == bad.digest));
    assert_eq!(fixture.store.remove(&tag("bad"), &nobody()).unwrap().images, [bad.digest]);
    assert!(fixture.store.list().unwrap().broken.is_empty());
}

#[test]
fn adding_a_blob_again_repairs_a_damaged_one() {
    let fixture = Fixture::new();
    let image = fixture.image(Some("base"), b"root");
    overwrite(&image.root(), b"evil");
    assert_eq!(fixture.image(Some("base"), b"root").digest, image.digest);
    fixture.store.verify(&image).unwrap();
}

#[test]
fn two_writers_of_the_same_and_of_different_images_both_succeed() {
    let fixture = Fixture::new();
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for (name, root) in [("a", b"same"), ("b", b"same"), ("c", b"else"), ("a", b"same")] {
            let (store, barrier) = (fixture.store.clone(), &barrier);
            scope.spawn(move || {
                barrier.wait();
                for _ in 0..20 {
                    publish(&store, Some(name), root);
                }
            });
        }
    });
    let listing = fixture.store.list().unwrap();
    let tags: Vec<_> = listing.images.iter().map(|image| image.tags.join(" ")).collect();
    assert_eq!(tags, ["a b", "c"]);
    assert!(listing.broken.is_empty());
    for image in &listing.images {
        fixture.store.verify(image).unwrap();
    }
    assert_eq!(fixture.entries("tmp"), ["gate"]);
}

#[test]
fn a_directory_of_a_dead_builder_is_swept_and_that_of_a_living_one_is_not() {
    let fixture = Fixture::new();
    let alive = fixture.store.scratch().unwrap();
    let dead = fixture.store.root().join("tmp/0190-dead");
    std::fs::create_dir_all(dead.join("tree/deep")).unwrap();
    std::fs::write(dead.join("lock"), b"").unwrap();
    std::fs::write(dead.join("tree/deep/file"), b"half an image").unwrap();
    Store::open(fixture.directory.path()).unwrap();
    assert!(!dead.exists());
    assert!(alive.join("lock").exists());
}

#[test]
fn a_directory_with_something_mounted_in_it_is_left_alone() {
    let fixture = Fixture::new();
    let dead = fixture.store.root().join("tmp/0190 dead");
    std::fs::create_dir_all(dead.join("proc")).unwrap();
    std::fs::write(dead.join("precious"), b"").unwrap();
    // Only root may mount; the namespaces keep it from everyone else.
    let swept =
        "mount --bind /proc \"$1/proc\" && exec \"$2\" --exact --ignored store::tests::sweeps_a_store";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", swept, "sh"])
        .args([dead.as_os_str(), std::env::current_exe().unwrap().as_os_str()])
        .env("SWEPT_STORE", fixture.store.root())
        .output();
    let Ok(output) = output else { return };
    if String::from_utf8_lossy(&output.stderr).contains("Operation not permitted") {
        return;
    }
    assert!(output.status.success(), "{output:?}");
    assert!(dead.join("precious").exists());
    fixture.store.sweep();
    assert!(!dead.exists());
}

#[test]
#[ignore = "run by the test above, where something is mounted"]
fn sweeps_a_store() {
    if let Some(root) = std::env::var_os("SWEPT_STORE") {
        Store::open(root).unwrap();
    }
}

#[test]
fn a_build_that_dies_before_it_publishes_leaves_no_image_and_its_blobs_are_collected() {
    let fixture = Fixture::new();
    let kept = fixture.image(Some("base"), b"root");
    {
        let _builder = fixture.store.builder().unwrap();
        let scratch = fixture.store.scratch().unwrap();
        let orphan = fixture.store.add_bytes(&scratch, b"orphan").unwrap();
        // While it lives, nothing is taken from it.
        assert_eq!(fixture.store.collect().unwrap(), Collected::Deferred);
        assert!(fixture.store.blob(orphan.digest).exists());
    }
    assert_eq!(fixture.store.list().unwrap().images.len(), 1);
    assert_eq!(fixture.store.collect().unwrap(), Collected::Freed { files: 1, bytes: 6 });
    fixture.store.verify(&kept).unwrap();
}

#[test]
fn removing_the_last_tag_removes_the_image_and_frees_what_only_it_named() {
    let fixture = Fixture::new();
    let image = fixture.image(Some("one"), b"root");
    fixture.image(Some("two"), b"root");
    let other = fixture.image(Some("other"), b"something else");

    let removed = fixture.store.remove(&tag("one"), &nobody()).unwrap();
    assert_eq!((removed.tag.as_deref(), removed.images.len()), (Some("one"), 0));
    let removed = fixture.store.remove(&tag("two"), &nobody()).unwrap();
    assert_eq!(removed.images, [image.digest]);
    assert!(matches!(removed.collected, Collected::Freed { files: 2, .. }), "root and manifest: {removed:?}");
    fixture.store.verify(&other).unwrap();
    assert!(matches!(fixture.store.remove(&tag("two"), &nobody()), Err(StoreError::NotFound { .. })));
}

#[test]
fn an_image_in_use_is_not_removed_nor_is_one_whose_derived_image_is() {
    let fixture = Fixture::new();
    let image = fixture.image(Some("base"), b"root");
    let agent = AgentBinary::new(program(Note::None), "2").unwrap();
    let derived = fixture.store.with_agent(&image, &agent).unwrap();
    for used in [&image.digest, &derived.digest] {
        let error = fixture.store.remove(&tag("base"), &BTreeSet::from([used.clone()])).unwrap_err();
        assert_eq!(error.code(), ErrorCode::WrongState);
        assert_eq!(fixture.store.resolve(&tag("base")).unwrap().tags, ["base"]);
    }
    let removed = fixture.store.remove(&tag("base"), &nobody()).unwrap();
    assert_eq!(removed.images, [image.digest, derived.digest]);
    assert_eq!(fixture.entries("blobs/sha256"), [] as [&str; 0]);
    assert_eq!(fixture.entries("verified"), [] as [&str; 0]);
}

#[test]
fn another_agent_gives_a_derived_image_that_is_the_same_each_time() {
    let fixture = Fixture::new();
    let image = fixture.image(Some("base"), b"root");
    let agent = AgentBinary::new(program(Note::None), "2").unwrap();
    let derived = fixture.store.with_agent(&image, &agent).unwrap();
    assert_eq!(fixture.store.with_agent(&image, &agent).unwrap(), derived);
    assert_eq!(fixture.store.with_agent(&derived, &agent).unwrap(), derived);
    assert_eq!(derived.tags, [] as [&str; 0]);
    assert_eq!(fixture.store.resolve(&tag("base")).unwrap().digest, image.digest, "no tag moves");
    assert_eq!(derived.root(), image.root());
    let modules = [Module { name: "virtio".into(), bytes: b"code".to_vec() }];
    assert_eq!(std::fs::read(derived.initramfs()).unwrap(), initramfs::write(&modules, agent.bytes()));
    fixture.store.verify(&derived).unwrap();

    overwrite(&image.initramfs(), b"damaged");
    let third = AgentBinary::new(program(Note::Pvh), "3").unwrap();
    assert!(matches!(fixture.store.with_agent(&image, &third), Err(StoreError::Mismatch { .. })));
}

#[test]
fn a_tag_file_that_holds_no_digest_is_named() {
    let fixture = Fixture::new();
    fixture.image(Some("base"), b"root");
    std::fs::write(fixture.store.tag_path("base"), b"garbage").unwrap();
    assert!(matches!(fixture.store.resolve(&tag("base")), Err(StoreError::Tag { .. })));
    assert_eq!(fixture.store.list().unwrap().images.len(), 1, "the image itself is still listed");
}

#[test]
fn holes_of_a_sparse_file_are_kept() {
    let fixture = Fixture::new();
    let scratch = fixture.store.scratch().unwrap();
    let path = scratch.join("sparse");
    File::create(&path).unwrap().set_len(16 << 20).unwrap();
    let part = fixture.store.add_file(&path).unwrap();
    let stored = fixture.store.blob(part.digest).metadata().unwrap();
    assert_eq!((stored.len(), stored.blocks()), (16 << 20, 0));
}

mod stages {
    use super::*;
    use std::sync::mpsc;

    fn finish(store: &Store, scratch: &Scratch, key: &StageKey, bytes: &[u8]) -> Part {
        let part = store.add_bytes(scratch, bytes).unwrap();
        store.finish_stage(scratch, key, &StageRecord::new([("result", part)], &"a fact")).unwrap();
        part
    }

    #[test]
    fn a_finished_stage_is_found_again_by_its_inputs_and_keeps_its_blobs() {
        let fixture = Fixture::new();
        let key = StageKey::new("kernel", 1, &("bookworm", "linux"));
        {
            let scratch = fixture.store.scratch().unwrap();
            finish(&fixture.store, &scratch, &key, b"vmlinux");
        }
        assert_eq!(fixture.store.collect().unwrap(), Collected::Freed { files: 0, bytes: 0 });
        let record = fixture.store.finished_stage(&key).unwrap();
        assert_eq!(record.facts::<String>().unwrap(), "a fact");
        assert_eq!(record.blob("result").unwrap().size, 7);
        for other in [
            StageKey::new("kernel", 2, &("bookworm", "linux")),
            StageKey::new("kernel", 1, &("trixie", "linux")),
            StageKey::new("tree", 1, &("bookworm", "linux")),
        ] {
            assert_eq!(fixture.store.finished_stage(&other), None);
        }
    }

    #[test]
    fn a_spent_stage_no_longer_keeps_blobs_that_no_image_names() {
        let fixture = Fixture::new();
        let key = StageKey::new("tree", 1, &());
        {
            let scratch = fixture.store.scratch().unwrap();
            finish(&fixture.store, &scratch, &key, b"archive");
            fixture.store.spend_stage(&scratch, &key).unwrap();
        }
        assert!(fixture.store.finished_stage(&key).is_some());
        assert_eq!(fixture.store.collect().unwrap(), Collected::Freed { files: 1, bytes: 7 });
        assert_eq!(fixture.store.finished_stage(&key), None);
    }

    #[test]
    fn a_stage_with_a_damaged_result_counts_as_not_run() {
        let fixture = Fixture::new();
        let key = StageKey::new("root", 1, &());
        let scratch = fixture.store.scratch().unwrap();
        let part = finish(&fixture.store, &scratch, &key, b"erofs");
        overwrite(&fixture.store.blob(part.digest), b"sfore");
        assert_eq!(fixture.store.finished_stage(&key), None);
    }

    #[test]
    fn the_second_of_two_builds_waits_for_the_stage_or_for_being_cancelled() {
        let fixture = Fixture::new();
        let key = StageKey::new("tree", 1, &());
        let cancel = Cancel::new().unwrap();
        let first = fixture.store.try_lock_stage(&key).unwrap().unwrap();
        assert!(fixture.store.try_lock_stage(&key).unwrap().is_none());
        thread::scope(|scope| {
            let waiter = scope.spawn(|| fixture.store.lock_stage(&key, &cancel).unwrap().is_some());
            cancel.cancel();
            assert!(!waiter.join().unwrap(), "cancelled");

            let (send, receive) = mpsc::channel();
            let patient = Cancel::new().unwrap();
            let (store, key) = (&fixture.store, &key);
            scope.spawn(move || {
                let lock = store.lock_stage(key, &patient).unwrap();
                send.send(lock.is_some()).unwrap();
            });
            assert!(receive.try_recv().is_err());
            drop(first);
            assert!(receive.recv().unwrap(), "the lock came when it was free");
        });
    }
}

#[test]
fn every_part_has_its_file() {
    let fixture = Fixture::new();
    let image = fixture.image(Some("base"), b"root");
    let kinds = [PartKind::Kernel, PartKind::Initramfs, PartKind::Root, PartKind::Disk];
    let paths = [image.kernel(), image.initramfs(), image.root(), image.disk()];
    for ((kind, part), path) in image.manifest.parts.iter().zip(&paths) {
        assert_eq!(image.part(kind), *path);
        assert_eq!(path.metadata().unwrap().len(), part.size);
    }
    assert_eq!(kinds.map(|kind| image.part(kind)), paths);
    assert_eq!(image.size(), paths.iter().map(|path| path.metadata().unwrap().len()).sum::<u64>());
}
