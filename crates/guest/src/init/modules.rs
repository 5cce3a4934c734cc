//! Kernel modules, in the order the image builder wrote down.

use super::{InitError, Step};
use rustix::{io::Errno, system::finit_module};
use std::{fs, path::Path};

const DIRECTORY: &str = "/modules";

/// Loads every module named in `/modules/order`, then frees the memory the initramfs holds them in.
pub fn load_all() -> Result<(), InitError> {
    let directory = Path::new(DIRECTORY);
    let order_path = directory.join("order");
    let order = fs::read_to_string(&order_path).step("read", order_path.display())?;
    for file in order.lines().map(str::trim).filter(|line| !line.is_empty()) {
        load(&directory.join(file))?;
    }
    fs::remove_dir_all(directory).step("remove", DIRECTORY)
}

fn load(path: &Path) -> Result<(), InitError> {
    let file = fs::File::open(path).step("open", path.display())?;
    match finit_module(&file, c"", 0) {
        // Built into this kernel, or pulled in by another.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).step("load module", path.display()),
    }
}
