//! How much of a guest's memory is its process's own, as the kernel counts it.

use offshoot_types::Bytes;
use std::io;

/// What guest memory is mapped from: nothing, or a memory file of ours.
const SOURCES: [&str; 2] = ["/dev/zero", "/memfd:offshoot-"];

/// Of the VMM `pid`: what a snapshot of it copies.
pub(super) fn measure(pid: i32) -> io::Result<Bytes> {
    Ok(sum(&std::fs::read_to_string(format!("/proc/{pid}/smaps"))?))
}

/// The pages of private mappings of guest memory that are no file's any more, in memory or swapped out.
fn sum(smaps: &str) -> Bytes {
    let (mut guest, mut kib) = (false, 0);
    for line in smaps.lines() {
        match line.split_once(": ") {
            Some((key, value)) if guest && matches!(key, "Anonymous" | "Swap") => {
                let value = value.trim().trim_end_matches(" kB");
                kib += value.parse::<u64>().unwrap_or_default();
            }
            Some((key, _)) if !key.contains(' ') => {}
            _ => {
                // `address-address rights offset major:minor inode path`
                let mut fields = line.split_ascii_whitespace();
                let private = fields.nth(1).is_some_and(|rights| rights == "rw-p");
                let path = fields.nth(3).unwrap_or_default();
                guest = private && SOURCES.iter().any(|source| path.starts_with(source));
            }
        }
    }
    Bytes(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0-55e0 r--p 00000000 fe:00 77                         /usr/bin/qemu
Size:                 64 kB
Anonymous:            12 kB
Swap:                  4 kB
VmFlags: rd mr mw me
7f00-7f10 rw-p 00000000 00:01 2048                       /memfd:offshoot-base (deleted)
Size:             131072 kB
Rss:               90000 kB
Anonymous:         30000 kB
Swap:                500 kB
SwapPss:             500 kB
THPeligible:           0
VmFlags: rd wr mr mw me ac sd
7f10-7f20 rw-p 08000000 00:01 2048                       /memfd:offshoot-base (deleted)
Anonymous:             8 kB
Swap:                  0 kB
7f20-7f30 rw-s 00000000 00:01 9                          /memfd:offshoot-channel (deleted)
Anonymous:             7 kB
7f40-7f50 rw-p 00000000 00:00 0
Anonymous:           999 kB
";

    #[test]
    fn only_private_mappings_of_guest_memory_count_also_what_is_swapped_out() {
        assert_eq!(sum(SMAPS), Bytes((30000 + 500 + 8) << 10));
        let zeros = SMAPS.replace("/memfd:offshoot-base (deleted)", "/dev/zero");
        assert_eq!(sum(&zeros), sum(SMAPS));
        assert_eq!(sum(""), Bytes(0));
    }

    #[test]
    fn this_process_maps_no_guest_memory() {
        assert_eq!(measure(std::process::id() as i32).unwrap(), Bytes(0));
    }
}
