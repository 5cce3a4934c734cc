//! The stage `kernel`: Debian's package, fetched by apt inside mmdebstrap, taken apart by our own code.

use super::{Build, BuildError, IoFor, Stage, process::Program, tree::mmdebstrap};
use crate::{
    InitramfsError, Package, Part, Recipe, Store, initramfs,
    kernel::{KernelError, Module, ModuleTree, extract_vmlinux},
    store::{StageKey, StageRecord},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

/// What the agent needs to reach its disks and its channel, over any transport a provider uses.
const MODULES: [&str; 8] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "erofs",
    "overlay",
    "ext4",
    "vmw_vsock_virtio_transport",
];

/// Run by mmdebstrap outside its (empty) root, with an apt that sees only the suite. The recipe names a package that
/// depends on the kernel of the day, or that kernel's own package.
const DOWNLOAD: &str = r#"set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
mkdir "$1/kernel"
cd "$1/kernel"
package=$(apt-cache depends KERNEL | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
apt-get --option APT::Sandbox::User=root --quiet download "${package:-KERNEL}"
mv -- *.deb kernel.deb
"#;

#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) vmlinux: Part,
    pub(super) release: String,
    pub(super) package: Package,
    archive: Part,
}

#[derive(Serialize, Deserialize)]
struct Facts {
    release: String,
    package: Package,
}

impl Kernel {
    /// The modules in load order, from the archive the stage left.
    pub(super) fn modules(&self, store: &Store) -> Result<Vec<Module>, BuildError> {
        let path = store.blob(self.archive.digest);
        let bytes = fs::read(&path).during("read", &path)?;
        initramfs::modules(&bytes).map_err(|error: InitramfsError| BuildError::Unexpected {
            stage: Stage::Kernel,
            program: "an earlier build",
            reason: error.to_string(),
        })
    }
}

pub(super) fn key(recipe: &Recipe) -> StageKey {
    StageKey::new("kernel", 1, &(&recipe.suite, &recipe.kernel, MODULES))
}

pub(super) fn stage(build: &mut Build<'_>, recipe: &Recipe) -> Result<Kernel, BuildError> {
    build.stage(Stage::Kernel, key(recipe), read, |build, directory| make(build, directory, recipe))
}

fn read(record: &StageRecord) -> Option<Kernel> {
    let Facts { release, package } = record.facts()?;
    Some(Kernel { vmlinux: record.blob("vmlinux")?, archive: record.blob("modules")?, release, package })
}

fn make(build: &mut Build<'_>, directory: &Path, recipe: &Recipe) -> Result<StageRecord, BuildError> {
    let download = DOWNLOAD.replace("KERNEL", recipe.kernel.as_str());
    let program = mmdebstrap(directory)?
        .args(["--variant=custom", "--format=null"])
        // By the environment: mmdebstrap repeats every hook it runs.
        .env("OFFSHOOT_DOWNLOAD", download)
        .arg("--customize-hook=sh -c \"$OFFSHOOT_DOWNLOAD\" download \"$1\"")
        .arg("--customize-hook=download /kernel/kernel.deb kernel.deb")
        .args([recipe.suite.as_str(), "/dev/null"])
        .directory(directory);
    build.run_program(Stage::Kernel, program)?;

    let package = package_of(build, directory)?;
    let program = Program::new("dpkg-deb").args(["--extract", "kernel.deb", "package"]).directory(directory);
    build.run_program(Stage::Kernel, program)?;

    let (vmlinuz, release) = find_kernel(&directory.join("package"))?;
    let vmlinux = directory.join("vmlinux");
    let bzimage = fs::read(&vmlinuz).during("read", &vmlinuz)?;
    fs::write(&vmlinux, extract_vmlinux(&bzimage)?).during("write", &vmlinux)?;
    // Where /lib is a link to /usr/lib, packages of newer releases name the real place.
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|path| directory.join("package").join(path).join(&release))
        .into_iter()
        .find(|path| path.is_dir())
        .ok_or_else(|| KernelError::NoModule { name: MODULES[0].into(), by: None })?;
    let modules = ModuleTree::open(&modules)?.load_order(&MODULES)?;
    // An initramfs without an agent: the form in which modules are kept.
    let archive = build.store.add_bytes(&build.scratch, &initramfs::write(&modules, b""))?;
    let vmlinux = build.store.add_file(&vmlinux)?;
    Ok(StageRecord::new([("vmlinux", vmlinux), ("modules", archive)], &Facts { release, package }))
}

/// Name, version and architecture as the package itself says.
fn package_of(build: &mut Build<'_>, directory: &Path) -> Result<Package, BuildError> {
    let path = directory.join("control");
    let file = File::create(&path).during("create", &path)?;
    let program = Program::new("dpkg-deb")
        .args(["--show", "--showformat=${Package}\\n${Version}\\n${Architecture}\\n", "kernel.deb"])
        .directory(directory)
        .stdout(file);
    build.run_program(Stage::Kernel, program)?;
    let text = fs::read_to_string(&path).during("read", &path)?;
    match text.lines().collect::<Vec<_>>()[..] {
        [name, version, architecture] => {
            Ok(Package { name: name.into(), version: version.into(), architecture: architecture.into() })
        }
        _ => Err(BuildError::Unexpected {
            stage: Stage::Kernel,
            program: "dpkg-deb",
            reason: format!("{text:?} is not a name, a version and an architecture"),
        }),
    }
}

/// `boot/vmlinuz-<release>` of an unpacked package.
fn find_kernel(package: &Path) -> Result<(PathBuf, String), BuildError> {
    let boot = package.join("boot");
    let mut found = None;
    for entry in fs::read_dir(&boot).during("list", &boot)? {
        let entry = entry.during("list", &boot)?;
        let name = entry.file_name();
        if let Some(release) = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-")) {
            found = Some((entry.path(), release.to_owned()));
        }
    }
    Ok(found.ok_or(KernelError::NoKernel)?)
}
