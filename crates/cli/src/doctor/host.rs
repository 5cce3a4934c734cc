//! The machine and what is installed on it.

use super::Check;
use crate::{agent, failure::Stop, view};
use offshoot_image::{MissingTool, Store, missing_tools};
use offshoot_provider::keeper::LimitsOnOffer;
use std::fs;

/// Less than this and not even one VM of image `base` fits beside everything else.
const LITTLE_MEMORY: u64 = 512 << 20;

pub fn agent() -> Check {
    match agent::binary() {
        Ok(agent) => Check::ok(
            "guest agent",
            format!("version {}, {}", agent.version(), view::size(agent.bytes().len() as u64)),
        ),
        Err(stop) => refused("guest agent", stop),
    }
}

fn refused(name: &'static str, stop: Stop) -> Check {
    match stop {
        Stop::Failed(report) | Stop::Program(report, _) => {
            let failure = report.failure;
            let cause = failure.cause.map_or_else(String::new, |cause| format!(": {cause}"));
            let check = Check::fail(name, failure.message + &cause);
            match failure.hint {
                Some(hint) => check.remedy(hint),
                None => check,
            }
        }
        Stop::BrokenPipe | Stop::Interrupted => Check::fail(name, "interrupted"),
    }
}

pub fn memory() -> Check {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match available(&meminfo) {
        Some(bytes) if bytes < LITTLE_MEMORY => {
            Check::warn("memory", format!("{} available", view::size(bytes)))
                .remedy("a VM of image `base` takes 256 MiB")
        }
        Some(bytes) => Check::ok("memory", format!("{} available", view::size(bytes))),
        None => Check::warn("memory", "/proc/meminfo does not tell what is available"),
    }
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Limits on the VMM are set by control groups; without them a VM's memory is bounded by QEMU's own word only.
pub fn cgroups() -> Check {
    let offer = LimitsOnOffer::on_this_host();
    if offer.missing.is_empty() {
        return Check::ok("cgroups", format!("VMs are limited in {}", offer.enforced.join(", ")));
    }
    Check::warn("cgroups", format!("VMs run without some host limits: {}", offer.missing.join("; ")))
        .remedy("run the daemon as root, or in a delegated unit: `systemd-run --user -p Delegate=yes`")
}

/// Opens the store only if it is there: to look must not make it.
pub fn images() -> (Option<Store>, Check) {
    const NAME: &str = "images";
    let root = match Store::default_root() {
        Ok(root) => root,
        Err(error) => return (None, refused(NAME, error.into())),
    };
    if !root.exists() {
        return (None, none(&format!("{} does not exist", root.display())));
    }
    let listed = Store::open(&root).and_then(|store| store.list().map(|listing| (store, listing)));
    let (store, listing) = match listed {
        Ok(listed) => listed,
        Err(error) => return (None, refused(NAME, error.into())),
    };
    if let Some((digest, error)) = listing.broken.first() {
        let check = Check::warn(NAME, format!("image {} cannot be read: {error}", digest.short()))
            .remedy(format!("`offshoot image rm {digest}`, then build it again"));
        return (Some(store), check);
    }
    let tags: Vec<&str> = listing.images.iter().flat_map(|image| &image.tags).map(String::as_str).collect();
    let check = match tags.is_empty() {
        true => none(&format!("none in {}", root.display())),
        false => Check::ok(NAME, format!("{} in {}", tags.join(", "), root.display())),
    };
    (Some(store), check)
}

fn none(detail: &str) -> Check {
    Check::warn("images", detail).remedy("`offshoot image build base`")
}

pub fn image_tools() -> Check {
    const NAME: &str = "image tools";
    let missing = missing_tools();
    if missing.is_empty() {
        return Check::ok(NAME, "all there");
    }
    let names: Vec<&str> = missing.iter().map(|tool| tool.program).collect();
    // Without them everything works but `image build`.
    Check::warn(NAME, format!("missing: {}", names.join(", "))).remedy(MissingTool::install(&missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_the_kernels_table() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
    }
}
