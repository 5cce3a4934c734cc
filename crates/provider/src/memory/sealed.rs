//! Memory files that nobody can write to any more.

use rustix::fs::{MemfdFlags, SealFlags};
use std::{fs::File, io};

/// What no holder of the file, however it got it, can undo.
const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

pub(super) fn create(name: &str) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into())
}

pub(super) fn seal(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_add_seals(file, SEALS)?)
}

pub(super) fn is_sealed(file: &File) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::{fd::AsRawFd, unix::fs::FileExt};

    #[test]
    fn a_sealed_file_is_written_by_nobody_even_when_opened_anew() {
        let file = create("test").unwrap();
        file.write_all_at(b"kept", 0).unwrap();
        assert!(!is_sealed(&file));
        seal(&file).unwrap();
        assert!(is_sealed(&file));
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let again = File::options().read(true).write(true).open(again).unwrap();
        for file in [&file, &again] {
            assert!(file.write_all_at(b"lost", 0).is_err());
            assert!(file.set_len(2).is_err() && file.set_len(8).is_err());
        }
        let mut kept = [0; 4];
        again.read_exact_at(&mut kept, 0).unwrap();
        assert_eq!(&kept, b"kept");
    }
}
