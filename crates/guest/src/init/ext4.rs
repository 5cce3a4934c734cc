//! Growing the data disk's filesystem: images carry a small template, the VM's disk may be of any size.

use super::{InitError, Step};
use crate::sys;
use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
};

/// Where ext4 keeps its superblock, whatever the block size.
const SUPERBLOCK_OFFSET: u64 = 1024;

/// Size of the filesystem by its superblock.
#[derive(Debug, PartialEq, Eq)]
struct Geometry {
    blocks: u64,
    block_size: u64,
}

impl Geometry {
    fn parse(superblock: &[u8; 1024]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| superblock[at + i]));
        let magic = u16::from_le_bytes([superblock[0x38], superblock[0x39]]);
        let incompatible = word(0x60);
        let shift = word(0x18);
        if magic != 0xEF53 || shift > 6 {
            return None;
        }
        let is_64_bit = incompatible & 0x80 != 0;
        let high = if is_64_bit { u64::from(word(0x150)) } else { 0 };
        Some(Self { blocks: high << 32 | u64::from(word(0x4)), block_size: 1024 << shift })
    }
}

/// Grows the mounted filesystem to fill its device. Nothing is done when it does already.
pub fn grow(device: &Path, mounted: impl AsFd) -> Result<(), InitError> {
    let file = File::open(device).step("open", device.display())?;
    let mut superblock = [0; 1024];
    file.read_exact_at(&mut superblock, SUPERBLOCK_OFFSET).step("read superblock of", device.display())?;
    let geometry = Geometry::parse(&superblock).ok_or_else(|| InitError::Invalid {
        what: device.display().to_string(),
        why: "not an ext4 superblock",
    })?;
    let device_size = sys::block_device_size(&file).step("measure", device.display())?;
    let blocks = device_size / geometry.block_size;
    // The kernel leaves out a last group too small for its own metadata: less than that is no growth.
    let smallest_growth = 16 * 1024 * 1024 / geometry.block_size;
    if blocks < geometry.blocks + smallest_growth {
        return Ok(());
    }
    sys::ext4_resize(mounted, blocks).step("grow data disk", device.display())
}

#[cfg(test)]
mod tests {
    use super::Geometry;

    #[test]
    fn a_superblock_tells_block_count_and_size() {
        let mut superblock = [0; 1024];
        superblock[0x38..0x3a].copy_from_slice(&0xEF53_u16.to_le_bytes());
        superblock[0x4..0x8].copy_from_slice(&16384_u32.to_le_bytes());
        superblock[0x18..0x1c].copy_from_slice(&2_u32.to_le_bytes());
        superblock[0x150..0x154].copy_from_slice(&1_u32.to_le_bytes());
        assert_eq!(Geometry::parse(&superblock), Some(Geometry { blocks: 16384, block_size: 4096 }));
        superblock[0x60] = 0x80;
        assert_eq!(
            Geometry::parse(&superblock),
            Some(Geometry { blocks: (1 << 32) + 16384, block_size: 4096 })
        );
    }

    #[test]
    fn anything_else_is_no_superblock() {
        assert_eq!(Geometry::parse(&[0; 1024]), None);
        assert_eq!(Geometry::parse(&[0xff; 1024]), None);
    }
}
