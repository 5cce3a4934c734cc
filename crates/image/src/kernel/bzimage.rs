//! The kernel inside a bzImage, by the x86 boot protocol (Documentation/arch/x86/boot.rst of the kernel).
//!
//! ```text
//! | boot sector + setup code           | protected-mode code                                   |
//! | 0x1f1 setup_sects  0x202 "HdrS"    | decompressor | payload_offset: payload (payload_length) |
//! ```

use super::{KernelError, compression::decompress};
use crate::elf::Elf;

const SECTOR: usize = 512;
const SETUP_SECTORS: usize = 0x1f1;
const SIGNATURE: usize = 0x202;
const PROTOCOL: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first protocol that says where the payload is (Linux 2.6.26).
const PROTOCOL_WITH_PAYLOAD: u16 = 0x208;
/// Several times the largest distribution kernel.
const LIMIT: usize = 512 << 20;

/// The uncompressed ELF kernel; an error if it could not be booted by PVH.
pub(crate) fn extract_vmlinux(bzimage: &[u8]) -> Result<Vec<u8>, KernelError> {
    let vmlinux = decompress("kernel", payload(bzimage)?, LIMIT)?;
    let elf = Elf::parse(&vmlinux).map_err(KernelError::NotElf)?;
    if !elf.has_pvh_entry() {
        return Err(KernelError::NoPvhEntry);
    }
    Ok(vmlinux)
}

fn payload(image: &[u8]) -> Result<&[u8], KernelError> {
    let not = |reason| KernelError::NotBzImage { reason };
    let header = image.get(..PAYLOAD_LENGTH + 4).ok_or_else(|| not("shorter than its header"))?;
    if &header[SIGNATURE..SIGNATURE + 4] != b"HdrS" {
        return Err(not("no `HdrS` signature"));
    }
    if u16::from_le_bytes([header[PROTOCOL], header[PROTOCOL + 1]]) < PROTOCOL_WITH_PAYLOAD {
        return Err(not("its boot protocol is older than 2.08"));
    }
    let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    // Zero means four, for the sake of very old boot loaders.
    let setup_sectors = match header[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * SECTOR + u32_at(PAYLOAD_OFFSET) as usize;
    image
        .get(start..start + u32_at(PAYLOAD_LENGTH) as usize)
        .ok_or_else(|| not("its payload lies outside the file"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        elf::tests::{Note, program},
        kernel::compression::tests::{gzip, lz4, zstd},
    };
    use proptest::prelude::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 5 * SECTOR + 100];
        image[SIGNATURE..SIGNATURE + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL..PROTOCOL + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&100_u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image.extend([0xaa; 64]);
        image
    }

    #[test]
    fn the_elf_comes_out_of_a_bzimage_whatever_compressed_it() {
        let vmlinux = program(Note::Pvh);
        for payload in [gzip(&vmlinux), zstd(&vmlinux), lz4(&vmlinux)] {
            assert_eq!(extract_vmlinux(&bzimage(&payload)).unwrap(), vmlinux);
        }
    }

    #[test]
    fn a_kernel_that_pvh_cannot_boot_is_refused() {
        let image = bzimage(&gzip(&program(Note::None)));
        assert!(matches!(extract_vmlinux(&image), Err(KernelError::NoPvhEntry)));
        let image = bzimage(&gzip(b"not a kernel"));
        assert!(matches!(extract_vmlinux(&image), Err(KernelError::NotElf(_))));
    }

    #[test]
    fn files_that_are_no_bzimage_are_named_so() {
        let good = bzimage(&gzip(&program(Note::Pvh)));
        let mut old = good.clone();
        old[PROTOCOL] = 7;
        for bad in [&good[..100], &good[..5 * SECTOR + 120], &vec![0; 9999], &old] {
            assert!(matches!(extract_vmlinux(bad), Err(KernelError::NotBzImage { .. })));
        }
    }

    #[test]
    fn the_kernel_of_this_machine_is_a_pvh_kernel_where_there_is_one() {
        let kernels = std::fs::read_dir("/boot").into_iter().flatten().flatten().map(|entry| entry.path());
        let cloud = |path: &std::path::PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("-cloud-amd64"))
        };
        for path in kernels.filter(|path| path.starts_with("/boot") && cloud(path)) {
            if path.to_string_lossy().contains("vmlinuz") {
                extract_vmlinux(&std::fs::read(&path).unwrap()).unwrap();
            }
        }
    }

    proptest! {
        #[test]
        fn damaged_headers_are_judged_without_a_panic(at in 0_usize..0x260, byte: u8) {
            let mut image = bzimage(&gzip(&program(Note::Pvh)));
            image[at] = byte;
            let _ = extract_vmlinux(&image);
        }
    }
}
