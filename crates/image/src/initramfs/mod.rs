//! The initramfs: the agent as `/init`, the modules it loads, and nothing else.
//!
//! ```text
//! /dev/console       the kernel gives it to `/init` as standard output before anything is mounted
//! /dev /proc /sys    empty, to mount on
//! /modules/NAME.ko   decompressed
//! /modules/order     names of those files in the order to load them, one per line
//! /init              the agent; last, so that another agent changes only the end of the file
//! ```
//! Uncompressed: reading a few MiB from the host's page cache is free, decompressing them in an emulated CPU is not.

mod cpio;

use crate::kernel::Module;
use cpio::{Archive, Entry, Kind};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitramfsError {
    #[error("not a cpio archive in `newc` format (at byte {at})")]
    Format { at: usize },
    #[error("the archive ends within an entry that starts at byte {at}")]
    Truncated { at: usize },
    #[error("the archive holds no `/init`")]
    NoInit,
}

const INIT: &str = "init";

/// The same modules and the same agent give the same bytes.
pub(crate) fn write(modules: &[Module], agent: &[u8]) -> Vec<u8> {
    let order: String = modules.iter().map(|module| format!("{}.ko\n", module.name)).collect();
    let mut archive = Archive::new();
    for directory in ["dev", "modules", "proc", "sys"] {
        archive.push(&Entry { name: directory, kind: Kind::Directory, mode: 0o755, content: b"" });
    }
    let console = Kind::CharacterDevice { major: 5, minor: 1 };
    archive.push(&Entry { name: "dev/console", kind: console, mode: 0o600, content: b"" });
    for module in modules {
        let name = format!("modules/{}.ko", module.name);
        archive.push(&Entry { name: &name, kind: Kind::File, mode: 0o644, content: &module.bytes });
    }
    archive.push(&Entry { name: "modules/order", kind: Kind::File, mode: 0o644, content: order.as_bytes() });
    archive.push(&init(agent));
    archive.finish()
}

/// The archive with another `/init`.
pub(crate) fn replace_agent(initramfs: &[u8], agent: &[u8]) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = Archive::new();
    let mut replaced = false;
    for entry in cpio::read(initramfs) {
        let entry = entry?;
        match entry.name {
            INIT => {
                archive.push(&init(agent));
                replaced = true;
            }
            _ => archive.push(&entry),
        }
    }
    if replaced { Ok(archive.finish()) } else { Err(InitramfsError::NoInit) }
}

/// The modules of an archive written by [`write`], in load order.
pub(crate) fn modules(initramfs: &[u8]) -> Result<Vec<Module>, InitramfsError> {
    let entries = cpio::read(initramfs).collect::<Result<Vec<_>, _>>()?;
    let modules = entries.iter().filter_map(|entry| {
        let name = entry.name.strip_prefix("modules/")?.strip_suffix(".ko")?;
        Some(Module { name: name.into(), bytes: entry.content.to_vec() })
    });
    Ok(modules.collect())
}

fn init(agent: &[u8]) -> Entry<'_> {
    Entry { name: INIT, kind: Kind::File, mode: 0o755, content: agent }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Vec<Module> {
        ["virtio", "virtio_blk"]
            .map(|name| Module { name: name.into(), bytes: format!("code of {name}").into_bytes() })
            .into()
    }

    #[test]
    fn an_initramfs_with_a_replaced_agent_is_the_one_written_with_it() {
        let first = write(&modules(), b"first agent");
        let second = write(&modules(), b"the second agent, which is longer");
        assert_eq!(replace_agent(&first, b"the second agent, which is longer").unwrap(), second);
        assert_ne!(first, second);
    }

    #[test]
    fn it_names_the_modules_in_load_order() {
        let bytes = write(&modules(), b"agent");
        let entries: Vec<_> = cpio::read(&bytes).map(Result::unwrap).collect();
        let order = entries.iter().find(|entry| entry.name == "modules/order").unwrap();
        assert_eq!(order.content, b"virtio.ko\nvirtio_blk.ko\n");
        assert_eq!(entries.last().unwrap().name, "init");
        assert_eq!(super::modules(&bytes).unwrap(), modules());
    }

    #[test]
    fn an_archive_without_an_agent_or_of_another_kind_is_refused() {
        assert_eq!(replace_agent(&Archive::new().finish(), b"x"), Err(InitramfsError::NoInit));
        assert_eq!(replace_agent(b"\x28\xb5\x2f\xfd", b"x"), Err(InitramfsError::Format { at: 0 }));
        let whole = write(&modules(), b"agent");
        let cut = &whole[..whole.len() / 2];
        assert!(matches!(replace_agent(cut, b"x"), Err(InitramfsError::Truncated { .. })));
    }
}
