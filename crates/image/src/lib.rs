//! Images: immutable kernel, initramfs, root filesystem and disk template, named by the digest of their manifest.
//!
//! ```text
//! Recipe --build--> [kernel] [tree -> root] [disk]  stages, each cached by a digest of its inputs
//!                        \        |         /
//! AgentBinary ------> initramfs   |        /
//!                            \    |       /
//!                             Manifest ----> Store: blobs, then `images/<digest>`, then `tags/<name>`
//!
//! ImageRef --Store::resolve--> Image --Store::with_agent--> Image --Store::check--> paths for a boot
//! ```
//!
//! A store is shared by state directories and by builds that run at once. Everything here is synchronous and may
//! hash hundreds of megabytes: async callers use a blocking task. What can go wrong and what is left then is told in
//! [`store`](Store) and [`build`](build()).

#![forbid(unsafe_code)]

mod agent;
mod build;
mod cancel;
mod digest;
mod elf;
mod initramfs;
mod kernel;
mod manifest;
mod recipe;
mod store;

pub use agent::{AgentBinary, AgentError};
pub use build::{BuildError, BuildOptions, MissingTool, Packages, Progress, Stage, build, missing_tools};
pub use cancel::Cancel;
pub use digest::{BlobDigest, InvalidDigest};
pub use elf::ElfError;
pub use initramfs::InitramfsError;
pub use kernel::KernelError;
pub use manifest::{AgentInfo, FORMAT, Manifest, ManifestError, Package, Part, PartKind, Parts};
pub use recipe::{DebianName, InvalidDebianName, MemoryText, Recipe, RecipeError};
pub use store::{Collected, Image, Listing, Removed, Store, StoreError};
