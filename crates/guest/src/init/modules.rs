//! Kernel modules, in the order the image builder wrote down.

use super::{CommandLine, InitError, Step};
use rustix::{io::Errno, system::finit_module};
use std::{ffi::CString, fs, path::Path};

const DIRECTORY: &str = "/modules";

/// Loads every module named in `/modules/order`, then frees the memory the initramfs holds them in.
pub fn load_all(command_line: &CommandLine) -> Result<(), InitError> {
    let directory = Path::new(DIRECTORY);
    let order_path = directory.join("order");
    let order = fs::read_to_string(&order_path).step("read", order_path.display())?;
    for file in order.lines().map(str::trim).filter(|line| !line.is_empty()) {
        load(&directory.join(file), command_line)?;
    }
    fs::remove_dir_all(directory).step("remove", DIRECTORY)
}

fn load(path: &Path, command_line: &CommandLine) -> Result<(), InitError> {
    let invalid = |why| InitError::Invalid { what: path.display().to_string(), why };
    let name =
        path.file_stem().and_then(|name| name.to_str()).ok_or_else(|| invalid("not a module's file name"))?;
    let parameters = CString::new(command_line.module_parameters(name))
        .map_err(|_| invalid("NUL in its parameters on the kernel command line"))?;
    let file = fs::File::open(path).step("open", path.display())?;
    match finit_module(&file, &parameters, 0) {
        // Built into this kernel, or pulled in by another.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).step("load module", path.display()),
    }
}
