//! Which modules to load, and in which order: read from the modules themselves.
//!
//! `modules.dep` is not in the package (depmod makes it at installation), but it is made from what every module says
//! of itself in its ELF section `.modinfo`, so we read that: `depends=a,b` must be loaded before, `softdep=pre: x`
//! should be if it exists.

use super::{KernelError, compression::decompress};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

/// Several times the largest module there is.
const LIMIT: usize = 64 << 20;

/// A module as it goes into the initramfs: decompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// As the kernel names it, with underscores.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The directory `lib/modules/<release>` of a kernel package.
#[derive(Debug)]
pub(crate) struct ModuleTree {
    files: BTreeMap<String, PathBuf>,
    /// Names and aliases of what is compiled into the kernel.
    built_in: BTreeSet<String>,
}

impl ModuleTree {
    pub(crate) fn open(directory: &Path) -> Result<Self, KernelError> {
        let read_error = |path: &Path| {
            let path = path.to_owned();
            move |source| KernelError::Read { path, source }
        };
        let mut files = BTreeMap::new();
        let mut pending = vec![directory.join("kernel")];
        while let Some(path) = pending.pop() {
            for entry in fs::read_dir(&path).map_err(read_error(&path))? {
                let entry = entry.map_err(read_error(&path))?;
                let path = entry.path();
                if entry.file_type().map_err(read_error(&path))?.is_dir() {
                    pending.push(path);
                } else if let Some(name) = module_name(&entry.file_name().to_string_lossy()) {
                    files.insert(name, path);
                }
            }
        }
        let list = directory.join("modules.builtin");
        let text = fs::read_to_string(&list).map_err(read_error(&list))?;
        let mut built_in: BTreeSet<String> =
            text.lines().filter_map(|line| module_name(line.rsplit('/').next()?)).collect();
        // Aliases of built-in modules: `<module>.alias=<alias>`, separated by NUL.
        let info = directory.join("modules.builtin.modinfo");
        match fs::read(&info) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            read => {
                let bytes = read.map_err(read_error(&info))?;
                let aliases = bytes.split(|byte| *byte == 0).filter_map(|entry| {
                    let (key, value) = std::str::from_utf8(entry).ok()?.split_once('=')?;
                    key.ends_with(".alias").then(|| canonical(value))
                });
                built_in.extend(aliases);
            }
        }
        Ok(Self { files, built_in })
    }

    /// The wanted modules and all they need, each after what it needs. What is built in is left out.
    pub(crate) fn load_order(&self, wanted: &[&str]) -> Result<Vec<Module>, KernelError> {
        let mut order = Order { tree: self, done: BTreeSet::new(), path: Vec::new(), modules: Vec::new() };
        for name in wanted {
            order.visit(&canonical(name))?;
        }
        Ok(order.modules)
    }

    fn read(&self, name: &str) -> Option<Result<Vec<u8>, KernelError>> {
        let path = self.files.get(name)?;
        let bytes = fs::read(path).map_err(|source| KernelError::Read { path: path.clone(), source });
        Some(bytes.and_then(|bytes| match path.extension().is_some_and(|extension| extension == "ko") {
            true => Ok(bytes),
            false => decompress(&format!("module {name}"), &bytes, LIMIT),
        }))
    }
}

/// Depth-first, so that every module comes after its dependencies.
struct Order<'a> {
    tree: &'a ModuleTree,
    done: BTreeSet<String>,
    /// From a wanted module down to the one being visited.
    path: Vec<String>,
    modules: Vec<Module>,
}

impl Order<'_> {
    fn visit(&mut self, name: &str) -> Result<(), KernelError> {
        if self.done.contains(name) || self.tree.built_in.contains(name) {
            return Ok(());
        }
        if self.path.iter().any(|above| above == name) {
            return Err(KernelError::ModuleCycle { cycle: self.path.join(", ") });
        }
        let bytes = self
            .tree
            .read(name)
            .ok_or_else(|| KernelError::NoModule { name: name.into(), by: self.path.last().cloned() })??;
        let needs = Needs::of(&bytes)
            .map_err(|reason| KernelError::NotModule { path: self.tree.files[name].clone(), reason })?;
        self.path.push(name.into());
        for soft in &needs.soft {
            // Soft means: nice to have. It may name an algorithm that no module here provides.
            if self.tree.files.contains_key(soft) && !self.path.contains(soft) {
                self.visit(soft)?;
            }
        }
        for hard in &needs.hard {
            self.visit(hard)?;
        }
        self.path.pop();
        self.done.insert(name.into());
        self.modules.push(Module { name: name.into(), bytes });
        Ok(())
    }
}

/// What a module says it needs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    hard: Vec<String>,
    soft: Vec<String>,
}

impl Needs {
    fn of(module: &[u8]) -> Result<Self, &'static str> {
        let mut needs = Self::default();
        for entry in modinfo(module)?.split(|byte| *byte == 0) {
            let Some((key, value)) = std::str::from_utf8(entry).ok().and_then(|text| text.split_once('='))
            else {
                continue;
            };
            match key {
                "depends" => {
                    needs.hard.extend(value.split(',').filter(|name| !name.is_empty()).map(canonical))
                }
                "softdep" => needs.soft.extend(before(value)),
                _ => {}
            }
        }
        Ok(needs)
    }
}

/// The modules of `pre: a b post: c` that come before.
fn before(softdep: &str) -> impl Iterator<Item = String> {
    softdep
        .split_whitespace()
        .skip_while(|word| *word != "pre:")
        .skip(1)
        .take_while(|word| *word != "post:")
        .map(canonical)
}

/// The section `.modinfo` of an ELF64 relocatable file.
fn modinfo(file: &[u8]) -> Result<&[u8], &'static str> {
    fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
        usize::try_from(u64::from_le_bytes(wide)).ok()
    }
    fn slice(file: &[u8], start: usize, size: usize) -> Option<&[u8]> {
        file.get(start..start.checked_add(size)?)
    }
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return Err("not a 64-bit ELF file");
    }
    let find = || {
        let table = number::<8>(file, 40)?;
        let (size, count, names) = (number::<2>(file, 58)?, number::<2>(file, 60)?, number::<2>(file, 62)?);
        let section = |index: usize| slice(file, table.checked_add(size.checked_mul(index)?)?, size.max(64));
        let content = |header: &'_ [u8]| slice(file, number::<8>(header, 24)?, number::<8>(header, 32)?);
        let names = content(section(names)?)?;
        (0..count).filter_map(section).find_map(|header| {
            let name = names.get(number::<4>(header, 0)?..)?;
            if name.starts_with(b".modinfo\0") { content(header) } else { None }
        })
    };
    find().ok_or("no readable `.modinfo` section")
}

/// `virtio-rng.ko.xz` is the module `virtio_rng`.
fn module_name(file: &str) -> Option<String> {
    let (stem, rest) = file.split_once(".ko")?;
    (rest.is_empty() || rest.starts_with('.')).then(|| canonical(stem))
}

/// The kernel makes no difference between the two.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::compression::tests::{gzip, zstd};
    use proptest::prelude::*;

    /// An ELF file of three sections: the null section, the names, and `.modinfo`.
    fn module(info: &str) -> Vec<u8> {
        let names = b"\0.shstrtab\0.modinfo\0";
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let (names_at, info_at) = (64, 64 + names.len());
        let table_at = info_at + info.len();
        file[40] = table_at as u8;
        file[41] = (table_at >> 8) as u8;
        file[58] = 64;
        file[60] = 3;
        file[62] = 1;
        file.extend(names);
        file.extend(info.as_bytes());
        for (name, at, size) in [(0, 0, 0), (1, names_at, names.len()), (11, info_at, info.len())] {
            let mut header = vec![0; 64];
            header[0] = name;
            header[24] = at as u8;
            header[25] = (at >> 8) as u8;
            header[32] = size as u8;
            file.extend(header);
        }
        file
    }

    fn tree(
        modules: &[(&str, Vec<u8>)],
        built_in: &str,
        built_in_info: &str,
    ) -> (tempfile::TempDir, ModuleTree) {
        let directory = tempfile::tempdir().unwrap();
        for (path, bytes) in modules {
            let path = directory.path().join("kernel").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        fs::write(directory.path().join("modules.builtin"), built_in).unwrap();
        fs::write(directory.path().join("modules.builtin.modinfo"), built_in_info).unwrap();
        let tree = ModuleTree::open(directory.path()).unwrap();
        (directory, tree)
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn every_module_follows_what_it_needs_and_appears_once() {
        let (_directory, tree) = tree(
            &[
                ("fs/erofs/erofs.ko", module("license=GPL\0depends=libcrc32c\0")),
                ("lib/libcrc32c.ko", module("softdep=pre: crc32c post: nothing\0depends=\0")),
                ("crypto/crc32c.ko.gz", gzip(&module("depends=\0"))),
                ("drivers/virtio/virtio.ko", module("depends=\0")),
                ("drivers/virtio/virtio_ring.ko.zst", zstd(&module("depends=virtio\0"))),
                ("drivers/char/virtio-rng.ko", module("depends=virtio_ring,rng-core\0")),
            ],
            "kernel/fs/ext4/ext4.ko\nkernel/drivers/char/hw_random/rng-core.ko\n",
            "",
        );
        let order = tree.load_order(&["virtio_rng", "erofs", "ext4", "virtio"]).unwrap();
        assert_eq!(names(&order), ["virtio", "virtio_ring", "virtio_rng", "crc32c", "libcrc32c", "erofs"]);
        assert_eq!(order[1].bytes, module("depends=virtio\0"), "modules are decompressed");
    }

    #[test]
    fn a_soft_dependency_that_nothing_provides_is_no_obstacle_but_a_hard_one_is() {
        let (_directory, tree) = tree(
            &[
                ("a.ko", module("softdep=pre: sha-9000\0depends=crypto_thing\0")),
                ("b.ko", module("depends=missing\0")),
            ],
            "",
            "thing.alias=crypto-thing\0",
        );
        assert_eq!(names(&tree.load_order(&["a"]).unwrap()), ["a"]);
        let error = tree.load_order(&["b"]).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module `missing`, which is needed by `b`");
    }

    #[test]
    fn a_cycle_is_an_error_and_not_an_endless_loop() {
        let (_directory, tree) =
            tree(&[("a.ko", module("depends=b\0")), ("b.ko", module("depends=a\0"))], "", "");
        assert!(matches!(tree.load_order(&["a"]), Err(KernelError::ModuleCycle { .. })));
    }

    proptest! {
        #[test]
        fn damaged_modules_are_judged_without_a_panic(at in 0_usize..300, byte: u8, cut in 0_usize..400) {
            let mut file = module("depends=a,b\0");
            if let Some(place) = file.get_mut(at) { *place = byte }
            file.truncate(cut);
            let _ = Needs::of(&file);
        }
    }
}
