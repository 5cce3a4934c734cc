//! Control groups for a VMM, where this host lets us make them. The keeper makes them, and moves the VMM there while it
//! starts, before any CPU runs: such a move waits for other processors, 10 ms in the legacy hierarchies. The keeper stays
//! outside: what it copies of the guest's memory is the daemon's, and must not end the VM for want of memory.
//!
//! Unified hierarchy (v2): one group beside our own, because a group with processes in it cannot hand its
//! controllers down. Legacy hierarchies (v1): one group below our own in each of memory, pids and cpu. What
//! cannot be had is reported, never assumed.

use super::spec::Limits;
use crate::process::ProcessId;
use offshoot_types::{Bytes, CpuCount, Generation, VmId};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;

/// Groups of ours begin with this; nothing else is ever removed.
const PREFIX: &str = "offshoot-";
/// For the kernel to empty a group whose processes have ended.
const EMPTYING: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Where groups would be made: nothing exists yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    groups: Vec<Planned>,
    /// Controllers this host does not offer us.
    missing: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned {
    path: PathBuf,
    settings: Vec<Setting>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    file: &'static str,
    value: u64,
    says: String,
}

/// Groups that were made.
#[derive(Debug, Default)]
pub(crate) struct Confinement {
    made: Vec<Planned>,
    /// One sentence per limit that cannot be had, and why.
    lacking: Vec<String>,
}

/// Limits that a keeper started from here could set on its VMM. Nothing is made to find out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitsOnOffer {
    /// `memory`, `pids`, `cpu`.
    pub enforced: Vec<String>,
    /// The others, each with why not.
    pub missing: Vec<String>,
}

impl LimitsOnOffer {
    pub fn on_this_host() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let limits = Limits { memory: Bytes(1 << 30), processes: 1, cpus: CpuCount::ONE };
        let name = format!("{PREFIX}probe");
        Plan::new(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"), &name, &limits).on_offer()
    }
}

impl Plan {
    fn on_offer(&self) -> LimitsOnOffer {
        let mut found = LimitsOnOffer::default();
        for controller in &self.missing {
            found.missing.push(format!("{controller}: this host offers no such control group"));
        }
        for group in &self.groups {
            let parent = group.path.parent().unwrap_or(&group.path);
            let names = group.settings.iter().map(|setting| setting.controller().to_owned());
            match rustix::fs::access(parent, rustix::fs::Access::WRITE_OK) {
                Ok(()) => found.enforced.extend(names),
                Err(error) => {
                    found.missing.extend(names.map(|name| format!("{name}: {}: {error}", parent.display())));
                }
            }
        }
        found.enforced.sort();
        found
    }

    pub fn for_this_process(vm: VmId, generation: Generation, limits: &Limits) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let name = format!("{PREFIX}{}-g{}", vm.simple(), generation.0);
        Self::new(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"), &name, limits)
    }

    fn new(mountinfo: &str, membership: &str, name: &str, limits: &Limits) -> Self {
        let mounts = mounts(mountinfo);
        let mut groups: BTreeMap<PathBuf, Planned> = BTreeMap::new();
        let mut missing = Vec::new();
        for controller in CONTROLLERS {
            let legacy = membership.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let (names, path) = (parts.next()?, parts.next()?);
                names.split(',').any(|n| n == controller).then_some(path)
            });
            let found = match (legacy, mounts.get(controller), mounts.get("")) {
                (Some(own), Some(mount), _) => {
                    let home = below(mount, own);
                    Some((home.join(name), Version::Legacy))
                }
                (_, _, Some(mount)) => {
                    let own = membership.lines().find_map(|line| line.strip_prefix("0::"));
                    own.and_then(|own| {
                        let home = below(mount, own);
                        let parent = if own == "/" { home } else { home.parent()?.to_owned() };
                        let offered = fs::read_to_string(parent.join("cgroup.subtree_control")).ok()?;
                        offered
                            .split_whitespace()
                            .any(|c| c == controller)
                            .then(|| (parent.join(name), Version::Unified))
                    })
                }
                _ => None,
            };
            match found {
                Some((path, version)) => groups
                    .entry(path.clone())
                    .or_insert(Planned { path, settings: Vec::new() })
                    .settings
                    .push(setting(controller, version, limits)),
                None => missing.push(controller),
            }
        }
        Self { groups: groups.into_values().collect(), missing }
    }

    /// Recorded before anything is made, so that a successor can remove it.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.groups.iter().map(|group| group.path.clone()).collect()
    }

    /// Makes the groups; nobody is in them yet.
    pub fn make(self) -> Confinement {
        let mut confinement = Confinement::default();
        for controller in self.missing {
            let line = format!("no {controller} limit: this host offers no such control group");
            confinement.lacking.push(line);
        }
        for group in self.groups {
            match group.make() {
                Ok(()) => confinement.made.push(group),
                Err(error) => confinement.lacking.push(group.unusable(&error)),
            }
        }
        confinement
    }
}

impl Setting {
    /// Files of a control group begin with their controller.
    fn controller(&self) -> &'static str {
        self.file.split('.').next().unwrap_or(self.file)
    }
}

impl Planned {
    fn make(&self) -> io::Result<()> {
        match fs::create_dir(&self.path) {
            // Left by an earlier start of the same generation that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        self.settings
            .iter()
            .try_for_each(|setting| fs::write(self.path.join(setting.file), setting.value.to_string()))
    }

    /// Removes what there is of it, and says why.
    fn unusable(&self, error: &io::Error) -> String {
        let _ = fs::remove_dir(&self.path);
        let what: Vec<&str> = self.settings.iter().map(|setting| setting.file).collect();
        format!("no {}: cannot use {}: {error}", what.join(", "), self.path.display())
    }
}

impl Confinement {
    /// Moves a process and all its threads into the groups. One sentence per limit then in force, or not and why.
    /// `pid` must not have been reaped.
    pub fn place(&mut self, pid: i32) -> Vec<String> {
        let mut report = self.lacking.clone();
        self.made.retain(|group| match fs::write(group.path.join("cgroup.procs"), pid.to_string()) {
            Ok(()) => {
                report.extend(group.settings.iter().map(|setting| setting.says.clone()));
                true
            }
            Err(error) => {
                report.push(group.unusable(&error));
                false
            }
        });
        report
    }

    /// Moves the other processes of a VMM to where the first one is. One sentence per process that could not be.
    pub fn join(&self, processes: &[ProcessId]) -> Vec<String> {
        let mut outside = Vec::new();
        for group in &self.made {
            for ProcessId { pid, .. } in processes {
                match fs::write(group.path.join("cgroup.procs"), pid.to_string()) {
                    Ok(()) => {}
                    // It has ended, and needs no limit.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(error) => {
                        outside.push(format!("process {pid} is outside {}: {error}", group.path.display()));
                    }
                }
            }
        }
        outside
    }

    /// Only once the VMM is gone. What could not be removed, and why.
    pub async fn remove(self) -> Vec<String> {
        let mut failed = Vec::new();
        for group in self.made {
            // The last processes of a sandbox are gone a moment after the one that had made them.
            if let Err(error) = retry_busy(|| remove(&group.path)).await {
                failed.push(format!("cannot remove {}: {error}", group.path.display()));
            }
        }
        failed
    }
}

/// The kernel empties a group a moment after its last process was reaped.
pub(crate) async fn retry_busy(mut remove: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    let until = Instant::now() + EMPTYING;
    loop {
        match remove() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            other => return other,
        }
    }
}

/// Removes an empty group of ours; whether there was one.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    let ours = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
    if !ours || !path.starts_with("/sys/fs/cgroup") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no control group of ours"));
    }
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[derive(Debug, Clone, Copy)]
enum Version {
    Legacy,
    Unified,
}

fn setting(controller: &str, version: Version, limits: &Limits) -> Setting {
    let cpus = u64::from(limits.cpus.get());
    let (file, value, says) = match (controller, version) {
        ("memory", Version::Legacy) => {
            ("memory.limit_in_bytes", limits.memory.0, format!("memory at most {}", limits.memory))
        }
        ("memory", Version::Unified) => {
            ("memory.max", limits.memory.0, format!("memory at most {}", limits.memory))
        }
        ("pids", _) => ("pids.max", limits.processes.into(), format!("at most {} threads", limits.processes)),
        (_, Version::Legacy) => {
            ("cpu.shares", (1024 * cpus).min(1 << 18), format!("processor weight of {cpus}"))
        }
        (_, Version::Unified) => {
            ("cpu.weight", (100 * cpus).min(10_000), format!("processor weight of {cpus}"))
        }
    };
    Setting { file, value, says }
}

/// Mount point by controller; the unified hierarchy is `""`.
fn mounts(mountinfo: &str) -> BTreeMap<&str, &Path> {
    let mut mounts = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        match (right.next(), right.nth(1)) {
            (Some("cgroup2"), _) => drop(mounts.insert("", Path::new(point))),
            (Some("cgroup"), Some(options)) => {
                for controller in options.split(',') {
                    mounts.insert(controller, Path::new(point));
                }
            }
            _ => {}
        }
    }
    mounts
}

fn below(mount: &Path, own: &str) -> PathBuf {
    mount.join(own.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { memory: Bytes(512 << 20), processes: 100, cpus: CpuCount::new(2).unwrap() }
    }

    #[test]
    fn legacy_hierarchies_get_a_group_each_below_our_own() {
        let mountinfo = "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                         31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                         32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let membership = "5:memory:/user\n4:cpu,cpuacct:/\n0::/\n";
        let plan = Plan::new(mountinfo, membership, "offshoot-x-g1", &limits());
        assert_eq!(
            plan.paths(),
            [
                PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/offshoot-x-g1"),
                PathBuf::from("/sys/fs/cgroup/memory/user/offshoot-x-g1"),
            ]
        );
        assert_eq!(plan.missing, ["pids"]);
        assert_eq!(plan.groups[0].settings[0].value, 2048);
    }

    #[test]
    fn a_unified_hierarchy_gets_one_group_beside_our_own_with_the_controllers_on_offer() {
        let directory = tempfile::tempdir().unwrap();
        let mount = directory.path();
        fs::create_dir_all(mount.join("app/us")).unwrap();
        fs::write(mount.join("app/cgroup.subtree_control"), "memory pids\n").unwrap();
        let mountinfo = format!("30 25 0:26 / {} rw - cgroup2 cgroup2 rw\n", mount.display());
        let plan = Plan::new(&mountinfo, "0::/app/us\n", "offshoot-x-g1", &limits());
        assert_eq!(plan.paths(), [mount.join("app/offshoot-x-g1")]);
        assert_eq!(plan.missing, ["cpu"]);
        let offer = plan.on_offer();
        assert_eq!(offer.enforced, ["memory", "pids"]);
        assert!(offer.missing[0].starts_with("cpu: "), "{:?}", offer.missing);
        let files: Vec<_> = plan.groups[0].settings.iter().map(|s| (s.file, s.value)).collect();
        assert_eq!(files, [("memory.max", 512 << 20), ("pids.max", 100)]);
    }

    #[test]
    fn a_host_without_control_groups_is_reported_not_assumed() {
        let report = Plan::new("", "", "offshoot-x-g1", &limits()).make().place(1);
        assert_eq!(report.len(), 3);
        assert!(report.iter().all(|line| line.starts_with("no ")), "{report:?}");
    }

    #[test]
    fn a_process_that_cannot_be_moved_is_reported_and_its_group_removed() {
        let directory = tempfile::tempdir().unwrap();
        let group = |name: &str| Planned {
            path: directory.path().join(name),
            settings: vec![setting("pids", Version::Unified, &limits())],
        };
        let plan = Plan { groups: vec![group("a"), group("b")], missing: Vec::new() };
        let mut made = plan.make();
        // A directory where the file should be: what refuses a move.
        fs::remove_file(directory.path().join("b/pids.max")).unwrap();
        fs::create_dir(directory.path().join("b/cgroup.procs")).unwrap();
        let report = made.place(42);
        assert_eq!(fs::read_to_string(directory.path().join("a/cgroup.procs")).unwrap(), "42");
        assert_eq!(report[0], "at most 100 threads");
        assert!(report[1].starts_with("no pids.max: cannot use "), "{report:?}");
        assert_eq!(made.made.len(), 1);
    }

    #[test]
    fn nothing_that_is_not_ours_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        assert!(remove(directory.path()).is_err());
        assert!(remove(Path::new("/sys/fs/cgroup/memory")).is_err());
        assert!(!remove(Path::new("/sys/fs/cgroup/memory/offshoot-none")).unwrap());
    }
}
