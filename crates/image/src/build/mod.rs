//! Building an image, stage by stage.
//!
//! ```text
//! kernel   download the kernel package, extract vmlinux and modules ----> vmlinux, modules
//! tree     mmdebstrap: packages, setup, user, clean-up -----------------> tar
//! root     unpack the tar with its owners, mkfs.erofs ------------------> erofs
//! disk     mke2fs ------------------------------------------------------> ext4 template
//! publish  initramfs from modules and agent, manifest, tag
//! ```
//! Each of the first four is looked up in the store's stage cache before it runs, under a lock of its own: of two
//! builds at once the second waits and finds the result. A build that fails, is cancelled or killed leaves finished
//! stages for the next one, its log, and no image. Child processes are in groups of their own and die with us.

mod disk;
mod error;
mod kernel;
mod process;
mod root;
mod tools;
mod tree;

pub use error::BuildError;
pub use tools::{MissingTool, missing as missing_tools};

use crate::{
    AgentBinary, AgentInfo, BlobDigest, Cancel, FORMAT, Image, Manifest, Parts, Recipe, Store, initramfs,
    store::{FileLock, Scratch, StageKey, StageRecord},
};
use error::IoFor;
use offshoot_types::ImageRef;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The only machine there are kernels and agents for.
const ARCH: &str = "x86_64";
/// Logs of earlier builds that are kept.
const LOGS: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Kernel,
    Tree,
    Root,
    Disk,
    Publish,
}

impl Stage {
    pub const ALL: [Self; 5] = [Self::Kernel, Self::Tree, Self::Root, Self::Disk, Self::Publish];

    /// What the stage does, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Kernel => "fetching the kernel",
            Self::Tree => "installing packages",
            Self::Root => "writing the root filesystem",
            Self::Disk => "writing the data disk's template",
            Self::Publish => "writing initramfs and manifest",
        }
    }
}
impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "kernel",
            Self::Tree => "tree",
            Self::Root => "root",
            Self::Disk => "disk",
            Self::Publish => "publish",
        })
    }
}

/// What a build tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Progress<'a> {
    /// `position` counts from 1.
    Started {
        stage: Stage,
        position: usize,
        of: usize,
    },
    /// Another build is at the same stage; its result will be used.
    Waiting {
        stage: Stage,
    },
    /// One line of a program's output, bounded and printable.
    Line {
        stage: Stage,
        text: &'a str,
    },
    Finished {
        stage: Stage,
        took: Duration,
    },
    /// An earlier build had finished the stage.
    Reused {
        stage: Stage,
    },
}

/// Whether what earlier builds left may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packages {
    /// An image of the same recipe is current, whatever Debian has published since.
    #[default]
    Reuse,
    /// Fetch the kernel and all packages again.
    Fresh,
}

#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    pub packages: Packages,
    pub cancel: Option<Cancel>,
}

/// Makes `recipe.name` an image of this recipe with this agent, and returns it. Does nothing if it is one already;
/// with only another agent than before it takes milliseconds.
pub fn build(
    store: &Store,
    recipe: &Recipe,
    agent: &AgentBinary,
    options: &BuildOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Image, BuildError> {
    if std::env::consts::ARCH != ARCH {
        return Err(BuildError::Architecture { arch: std::env::consts::ARCH });
    }
    let method = method(recipe);
    let info = AgentInfo { version: agent.version().into(), digest: agent.digest() };
    if let Some(image) = current(store, recipe, method, options.packages) {
        return match image.manifest.agent == info {
            true => Ok(image),
            false => Ok(store.derive(&image, agent, info, Some(recipe.name.as_str()))?),
        };
    }
    tools::require()?;
    let image = Build::begin(store, options, progress)?.run(recipe, method, agent, info)?;
    // The package tree was only needed to get here. A failure to tidy up does not undo the image.
    if let Err(error) = store.collect() {
        tracing::warn!(%error, "could not remove what the image build no longer needs");
    }
    Ok(image)
}

/// Identifies all that a build does for the recipe: programs, options, scripts, stage versions.
fn method(recipe: &Recipe) -> BlobDigest {
    let tree = tree::key(recipe);
    StageKey::new("image", 1, &(kernel::key(recipe), root::key(&tree), tree, disk::key())).digest()
}

/// The image the recipe's tag means, if this version would make it the same way and it is undamaged.
fn current(store: &Store, recipe: &Recipe, method: BlobDigest, packages: Packages) -> Option<Image> {
    if packages == Packages::Fresh {
        return None;
    }
    let image = store.resolve(&ImageRef::Tag(recipe.name.as_str().into())).ok()?;
    (image.manifest.recipe == *recipe && image.manifest.method == method && store.check(&image).is_ok())
        .then_some(image)
}

/// A build under way. Dropping it removes its temporary files.
struct Build<'a> {
    store: &'a Store,
    packages: Packages,
    cancel: Cancel,
    progress: &'a mut dyn FnMut(Progress<'_>),
    log: File,
    log_path: PathBuf,
    scratch: Scratch,
    _builder: FileLock,
    keys: Vec<StageKey>,
}

impl<'a> Build<'a> {
    fn begin(
        store: &'a Store,
        options: &BuildOptions,
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, BuildError> {
        let cancel = match &options.cancel {
            Some(cancel) => cancel.clone(),
            None => Cancel::new().map_err(BuildError::Cancellation)?,
        };
        prune_logs(&store.logs());
        let log_path = store.logs().join(format!("{}.log", uuid::Uuid::now_v7().simple()));
        let log = File::create(&log_path).during("create the build log", &log_path)?;
        Ok(Self {
            store,
            packages: options.packages,
            cancel,
            progress,
            log,
            log_path,
            scratch: store.scratch()?,
            _builder: store.builder()?,
            keys: Vec::new(),
        })
    }

    fn run(
        mut self,
        recipe: &Recipe,
        method: BlobDigest,
        agent: &AgentBinary,
        info: AgentInfo,
    ) -> Result<Image, BuildError> {
        let kernel = kernel::stage(&mut self, recipe)?;
        let tree = tree::stage(&mut self, recipe)?;
        let root = root::stage(&mut self, &tree)?;
        let disk = disk::stage(&mut self)?;

        let started = self.start(Stage::Publish);
        let modules = kernel.modules(self.store)?;
        let initramfs = initramfs::write(&modules, agent.bytes());
        let mut packages = tree.packages;
        packages.push(kernel.package);
        packages.sort();
        let manifest = Manifest {
            format: FORMAT,
            arch: ARCH.into(),
            created: tree.created,
            offshoot: env!("CARGO_PKG_VERSION").into(),
            default_memory: recipe.memory.0,
            kernel_release: kernel.release,
            agent: info,
            parts: Parts {
                kernel: kernel.vmlinux,
                initramfs: self.store.add_bytes(&self.scratch, &initramfs)?,
                root,
                disk,
            },
            recipe: recipe.clone(),
            method,
            packages,
            modules: modules.into_iter().map(|module| module.name).collect(),
        };
        let image = self.store.publish(&self.scratch, &manifest, Some(recipe.name.as_str()))?;
        for key in &self.keys {
            self.store.spend_stage(&self.scratch, key)?;
        }
        self.store.check(&image)?;
        (self.progress)(Progress::Finished { stage: Stage::Publish, took: started.elapsed() });
        Ok(image)
    }

    /// The cached result of a stage, or that of `make`, which gets an empty directory to work in. `read` says whether
    /// a cached result has everything this version expects.
    fn stage<T>(
        &mut self,
        stage: Stage,
        key: StageKey,
        read: impl Fn(&StageRecord) -> Option<T>,
        make: impl FnOnce(&mut Self, &Path) -> Result<StageRecord, BuildError>,
    ) -> Result<T, BuildError> {
        let started = self.start(stage);
        let _lock = match self.store.try_lock_stage(&key)? {
            Some(lock) => lock,
            None => {
                (self.progress)(Progress::Waiting { stage });
                self.store.lock_stage(&key, &self.cancel)?.ok_or(BuildError::Cancelled)?
            }
        };
        self.keys.push(key.clone());
        let reusable = match (self.packages, stage) {
            (Packages::Fresh, Stage::Kernel | Stage::Tree) => None,
            _ => self.store.finished_stage(&key).as_ref().and_then(&read),
        };
        if let Some(result) = reusable {
            (self.progress)(Progress::Reused { stage });
            return Ok(result);
        }
        let directory = self.scratch.join(&stage.to_string());
        fs::create_dir(&directory).during("create", &directory)?;
        let record = make(self, &directory)?;
        if self.cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        self.store.finish_stage(&self.scratch, &key, &record)?;
        fs::remove_dir_all(&directory).during("remove", &directory)?;
        (self.progress)(Progress::Finished { stage, took: started.elapsed() });
        read(&record).ok_or(BuildError::Incomplete { stage })
    }

    fn start(&mut self, stage: Stage) -> Instant {
        let position = 1 + Stage::ALL.iter().position(|other| *other == stage).unwrap_or_default();
        (self.progress)(Progress::Started { stage, position, of: Stage::ALL.len() });
        Instant::now()
    }
}

/// Keeps the newest logs; their names sort by time. A log that cannot be removed is no reason to fail.
fn prune_logs(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut logs: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    logs.sort_unstable();
    for old in logs.iter().rev().skip(LOGS - 1) {
        if let Err(error) = fs::remove_file(old) {
            tracing::debug!(log = %old.display(), %error, "could not remove an old build log");
        }
    }
}
