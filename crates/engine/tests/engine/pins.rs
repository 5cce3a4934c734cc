//! What a state is bound to: the image it was made with, and every byte of a large disk.

use crate::{fake::*, stage::*};
use offshoot_engine::{BootFiles, Images};
use offshoot_types::{Command, Failure, ForkSource, ImageDigest, RollbackTo, SnapshotRef, VmStateName};
use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt},
    path::PathBuf,
    sync::{Arc, Mutex},
};

/// Tells which images were asked for.
#[derive(Debug)]
struct Asked {
    file: PathBuf,
    digests: Mutex<Vec<ImageDigest>>,
}

impl Images for Asked {
    fn boot_files(&self, digest: &ImageDigest) -> Result<BootFiles, Failure> {
        self.digests.lock().unwrap().push(digest.clone());
        let part = || self.file.clone();
        Ok(BootFiles { kernel: part(), initramfs: part(), root: part(), disk_template: part() })
    }
}

/// The tag that a VM was made from means another image by now, and other VMs are made from that.
#[tokio::test(flavor = "multi_thread")]
async fn restore_pins_digest() {
    let mut stage = Stage::new();
    let images = Arc::new(Asked { file: stage.dir.path().join("image"), digests: Mutex::default() });
    stage.images = Some(images.clone());
    let engine = stage.engine().await;
    let old = spec("a").image_digest;
    let a = create_running(&engine, "a").await;
    program(&engine, "a", &["note", "1"]).await;
    snapshot(&engine, "a", Some("first")).await.unwrap();

    let mut moved = spec("b");
    moved.image_digest = "0b".repeat(32).parse().unwrap();
    let (tag, new) = (moved.image.clone(), moved.image_digest.clone());
    assert_eq!(tag, spec("a").image, "the same tag");
    let b = run(&engine, Command::Create { spec: moved }).await.unwrap().vm.unwrap();
    run(&engine, Command::Start { vm: named("b") }).await.unwrap();
    assert_eq!(stage.host.process(b).image, new);
    images.digests.lock().unwrap().clear();

    let first = || "a@first".parse::<SnapshotRef>().unwrap();
    rollback(&engine, "a", RollbackTo::Snapshot(first())).await.unwrap();
    eventually("what was left is ended", || stage.host.processes().len() == 2).await;
    assert_eq!(stage.host.process(a).image, old, "rolled back");
    fork(&engine, ForkSource::Snapshot(first()), Some("c"), 1).await.unwrap();
    let c = view(&engine, "c").await.id;
    assert_eq!(stage.host.process(c).image, old, "forked");
    run(&engine, Command::Suspend { vm: named("a") }).await.unwrap();
    for end in ["suspended", "stopped"] {
        if end == "stopped" {
            run(&engine, Command::Stop { vm: named("a"), grace: GRACE }).await.unwrap();
        }
        run(&engine, Command::Start { vm: named("a") }).await.unwrap();
        wait_for(&engine, "a", &[VmStateName::Running], GRACE).await;
        assert_eq!(stage.host.process(a).image, old, "{end}");
    }
    run(&engine, Command::Restart { vm: named("c"), grace: GRACE }).await.unwrap();
    assert_eq!(stage.host.process(c).image, old, "restarted");
    let asked = images.digests.lock().unwrap().clone();
    assert!(asked.len() >= 5 && asked.iter().all(|digest| *digest == old), "{asked:?}");
    leave(engine).await;
}

/// A hole for the most part, so that this takes no room.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_over_two_gibibytes_is_kept_verified_and_forked() {
    const LARGE: u64 = (2 << 30) + 4096;
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let disks = fake.stage.state().join("disks");
    let layer = fs::read_dir(&disks).unwrap().next().unwrap().unwrap().path();
    // What the guest writes from here on lies behind that.
    File::options().write(true).open(&layer).unwrap().set_len(LARGE).unwrap();
    sh(&engine, "echo beyond > /f").await;
    let kept = snapshot(&engine, "a", Some("large")).await.unwrap();
    let length = fs::metadata(&layer).unwrap().len();
    assert!(length > LARGE, "{length}");
    let verify = async || {
        let command = Command::VerifySnapshot { snapshot: SnapshotRef::Id(kept.id) };
        engine.verify_snapshot(permit(&engine, command)).await.unwrap()
    };
    let whole = verify().await;
    assert!(whole.faults.is_empty() && whole.bytes.0 > LARGE, "{whole:?}");
    fork(&engine, ForkSource::Snapshot(SnapshotRef::Id(kept.id)), Some("b"), 1).await.unwrap();
    assert_eq!(sh_in(&engine, "b", "cat /f").await.unwrap().0.trim_end(), "beyond");

    fs::set_permissions(&layer, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(&layer).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, LARGE + 3).unwrap();
    file.write_all_at(&[byte[0] ^ 1], LARGE + 3).unwrap();
    let damaged = verify().await;
    assert!(
        damaged.faults[0].contains(&format!("the {} bytes from {}", length - (2 << 30), 2_u64 << 30)),
        "{damaged:?}"
    );
    leave(engine).await;
}
