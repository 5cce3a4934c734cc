//! What a VM's processes take of the host, as the kernel counts it.
//!
//! To count the pages of a VMM the kernel walks all of its memory, for 8 ms where that is 256 MiB: it is asked on a thread
//! of its own, once for all who want to know at the same time, and not again within [`FRESH`].

use crate::{Usage, process, process::ProcessId};
use offshoot_types::Bytes;
use std::{io, time::Duration};
use tokio::{sync::Mutex, time::Instant};

/// How old figures may be that are handed out.
const FRESH: Duration = Duration::from_millis(500);

/// What guest memory is mapped from: nothing, or a memory file of ours.
const SOURCES: [&str; 2] = ["/dev/zero", "/memfd:offshoot-"];

/// The figures of one VM.
#[derive(Debug, Default)]
pub(super) struct Figures {
    last: Mutex<Option<(Instant, Usage)>>,
}

/// Whose figures they are.
pub(super) struct Measured {
    pub vmm: ProcessId,
    /// Those beside it. One that is gone counts nothing.
    pub others: Vec<ProcessId>,
    /// Whether a snapshot's cost follows from the VMM's own pages.
    pub copies_pages: bool,
}

impl Figures {
    /// At most half a second old. `NotFound`: the VMM has ended.
    pub async fn of(&self, measured: impl FnOnce() -> Measured) -> io::Result<Usage> {
        let mut last = self.last.lock().await;
        if let Some((_, usage)) = last.filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(usage);
        }
        let measured = measured();
        let usage = tokio::task::spawn_blocking(move || measured.now()).await.map_err(io::Error::other)??;
        *last = Some((Instant::now(), usage));
        Ok(usage)
    }
}

impl Measured {
    fn now(&self) -> io::Result<Usage> {
        let vmm = of_process(&self.vmm)?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("process {} is gone", self.vmm.pid))
        })?;
        let mut usage = Usage {
            pss: vmm.pss,
            rss: vmm.rss,
            cpu_time: vmm.cpu_time,
            own_memory: self.copies_pages.then_some(vmm.own),
        };
        for other in &self.others {
            let Some(one) = of_process(other)? else { continue };
            usage.pss.0 += one.pss.0;
            usage.rss.0 += one.rss.0;
            usage.cpu_time += one.cpu_time;
        }
        Ok(usage)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct One {
    pss: Bytes,
    rss: Bytes,
    /// Of guest memory.
    own: Bytes,
    cpu_time: Duration,
}

/// `None` if it has ended, also if it did so meanwhile.
fn of_process(id: &ProcessId) -> io::Result<Option<One>> {
    let Some(process) = id.find()? else { return Ok(None) };
    let read =
        || Ok((std::fs::read_to_string(format!("/proc/{}/smaps", id.pid))?, process::cpu_time(id.pid)?));
    let read: io::Result<_> = read();
    if process.has_ended() {
        return Ok(None);
    }
    let (smaps, cpu_time) = read?;
    Ok(Some(One { cpu_time, ..sum(&smaps) }))
}

/// Of all mappings what is in memory, and of private ones of guest memory the pages that are no file's any more, in memory
/// or swapped out.
fn sum(smaps: &str) -> One {
    let mut guest = false;
    let (mut pss, mut rss, mut own) = (0, 0, 0);
    for line in smaps.lines() {
        match line.split_once(':') {
            Some((key, value)) if !key.contains(' ') => {
                let kib = || value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default();
                match key {
                    "Pss" => pss += kib(),
                    "Rss" => rss += kib(),
                    "Anonymous" | "Swap" if guest => own += kib(),
                    _ => {}
                }
            }
            _ => {
                // `address-address rights offset major:minor inode path`
                let mut fields = line.split_ascii_whitespace();
                let private = fields.nth(1).is_some_and(|rights| rights == "rw-p");
                let path = fields.nth(3).unwrap_or_default();
                guest = private && SOURCES.iter().any(|source| path.starts_with(source));
            }
        }
    }
    One { pss: Bytes(pss << 10), rss: Bytes(rss << 10), own: Bytes(own << 10), cpu_time: Duration::ZERO }
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
Pss:               45000 kB
Pss_Dirty:         40000 kB
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
        let found = sum(SMAPS);
        assert_eq!(found.own, Bytes((30000 + 500 + 8) << 10));
        assert_eq!((found.rss, found.pss), (Bytes(90000 << 10), Bytes(45000 << 10)));
        let zeros = SMAPS.replace("/memfd:offshoot-base (deleted)", "/dev/zero");
        assert_eq!(sum(&zeros), found);
        assert_eq!(sum(""), One::default());
    }

    #[test]
    fn this_process_maps_no_guest_memory() {
        let found = of_process(&ProcessId::of_self().unwrap()).unwrap().unwrap();
        assert_eq!(found.own, Bytes(0));
        assert!(found.rss >= found.pss && found.pss > Bytes(0), "{found:?}");
    }

    #[tokio::test]
    async fn whoever_asks_at_once_is_told_of_one_count_and_later_of_another() {
        let figures = Figures::default();
        let counts = std::cell::Cell::new(0);
        let measured = || {
            counts.set(counts.get() + 1);
            Measured { vmm: ProcessId::of_self().unwrap(), others: Vec::new(), copies_pages: false }
        };
        let (first, second) = tokio::join!(figures.of(measured), figures.of(measured));
        assert_eq!((first.unwrap(), counts.get()), (second.unwrap(), 1));
        *figures.last.lock().await = Some((Instant::now() - FRESH, Usage::default()));
        assert!(figures.of(measured).await.unwrap().rss > Bytes(0));
        assert_eq!(counts.get(), 2);
    }

    #[tokio::test]
    async fn a_vmm_that_is_gone_has_no_figures_and_one_beside_it_counts_nothing() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = ProcessId::of(child.id() as i32).unwrap();
        child.wait().unwrap();
        let own = ProcessId::of_self().unwrap();
        let of = async |vmm: &ProcessId, other: &ProcessId| {
            let measured = Measured { vmm: vmm.clone(), others: vec![other.clone()], copies_pages: true };
            Figures::default().of(|| measured).await
        };
        assert_eq!(of(&gone, &own).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(of(&own, &gone).await.unwrap().own_memory.is_some());
    }
}
