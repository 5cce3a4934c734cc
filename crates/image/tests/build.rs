//! Builds the image `base` for real: needs the network, mmdebstrap and some minutes, so it runs only when asked to
//! (`OFFSHOOT_TEST_IMAGES=1`, set by `cargo xtask test`, which also names the agent in `OFFSHOOT_GUEST_BIN`).

use offshoot_image::{AgentBinary, BuildOptions, Progress, Recipe, Stage, Store, build};
use std::{env, path::Path};

#[test]
fn builds_base_image() {
    if env::var_os("OFFSHOOT_TEST_IMAGES").is_none_or(|value| value != "1") {
        eprintln!("skipped: set OFFSHOOT_TEST_IMAGES=1 to build an image");
        return;
    }
    let agent = env::var_os("OFFSHOOT_GUEST_BIN").expect("OFFSHOOT_GUEST_BIN names the guest agent");
    let agent = AgentBinary::read(Path::new(&agent), env!("CARGO_PKG_VERSION")).unwrap();
    let store = Store::open(Store::default_root().unwrap()).unwrap();
    let recipe = Recipe::load("base").unwrap();
    let mut ran = Vec::new();
    let mut progress = |event: Progress<'_>| {
        eprintln!("{event:?}");
        if let Progress::Finished { stage, .. } = event {
            ran.push(stage);
        }
    };
    let image = build(&store, &recipe, &agent, &BuildOptions::default(), &mut progress)
        .unwrap_or_else(|error| panic!("{error:?}\n{}", error.hint().unwrap_or_default()));
    eprintln!("ran {ran:?}");

    assert_eq!(image.tags, ["base"]);
    assert_eq!(image.manifest.recipe, recipe);
    assert_eq!(image.manifest.agent.digest, agent.digest());
    for package in ["python3", "nodejs", "git", "bash", "ca-certificates", "coreutils", "sudo"] {
        assert!(image.manifest.packages.iter().any(|installed| installed.name == package), "{package}");
    }
    for module in ["virtio_mmio", "virtio_blk", "virtio_console", "erofs", "overlay"] {
        assert!(image.manifest.modules.iter().any(|name| name == module), "{module}");
    }
    store.verify(&image).unwrap();

    let mut again = Vec::new();
    let same = build(&store, &recipe, &agent, &BuildOptions::default(), &mut |event| {
        if let Progress::Started { stage, .. } = event {
            again.push(stage);
        }
    });
    assert_eq!(same.unwrap().digest, image.digest);
    assert_eq!(again, [] as [Stage; 0], "a current image is not built again");
}
