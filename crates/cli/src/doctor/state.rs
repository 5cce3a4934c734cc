//! The state directory, its daemon, and files in it that nobody owns.

use super::Check;
use crate::{context::Context, paths::Paths, view};
use offshoot_types::VmId;
use rustix::fs::statvfs;
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

/// Below this a VM soon finds its disk full.
const LITTLE_SPACE: u64 = 1 << 30;
/// What belongs into a state directory, besides backups of what is set aside.
const OURS: [&str; 9] = [
    "autostart.lock",
    "daemon.json",
    "daemon.lock",
    "daemon.log",
    "daemon.log.1",
    "disks",
    "keys",
    "snapshots",
    "vms",
];
/// A disk in a VM's directory may be a layer of snapshots and forks that outlive the VM. Whether it is, the daemon knows
/// and says in its events; it is no matter of tidying up.
const DISK: &str = "disk.qcow2";

/// Permissions and space.
pub fn state_dir(paths: &Paths) -> Vec<Check> {
    const NAME: &str = "state directory";
    let dir = &paths.state_dir;
    let metadata = match fs::metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return vec![Check::ok(NAME, format!("{} is made when it is needed", dir.display()))];
        }
        Err(error) => return vec![Check::fail(NAME, format!("{}: {error}", dir.display()))],
    };
    let shown = dir.display();
    let (uid, owner) = (rustix::process::geteuid().as_raw(), metadata.uid());
    let mode = metadata.permissions().mode() & 0o777;
    let check = if !metadata.is_dir() {
        Check::fail(NAME, format!("{shown} is not a directory")).remedy("name another with `--state-dir`")
    } else if owner != uid {
        Check::fail(NAME, format!("{shown} belongs to user {owner}, you are user {uid}"))
            .remedy(format!("`chown -R {uid} {shown}`, or name another with `--state-dir`"))
    } else if mode & 0o077 != 0 {
        Check::warn(NAME, format!("{shown} is open to others (mode {mode:o})"))
            .remedy(format!("`chmod 700 {shown}`"))
    } else {
        Check::ok(NAME, shown.to_string())
    };
    vec![check, space(dir)]
}

fn space(dir: &Path) -> Check {
    const NAME: &str = "disk space";
    match statvfs(dir) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let detail = format!("{} free in {}", view::size(free), dir.display());
            match free {
                ..LITTLE_SPACE => Check::warn(NAME, detail).remedy("disks of VMs grow as they write"),
                _ => Check::ok(NAME, detail),
            }
        }
        Err(error) => Check::fail(NAME, format!("{}: {error}", dir.display())),
    }
}

/// The daemon and, if it runs, all VMs it has: those of its own, for the warm pool, too.
pub async fn daemon(context: &Context) -> (Check, Option<Vec<VmId>>) {
    const NAME: &str = "daemon";
    let asked = async {
        let Some(client) = context.running_client().await? else { return Ok(None) };
        Ok(Some((client.daemon().await?, client.vms().await?.vms)))
    };
    match asked.await {
        Ok(None) => (Check::ok(NAME, "none runs; verbs start one"), None),
        Ok(Some((daemon, vms))) => {
            let record = &daemon.record;
            let detail = format!(
                "process {}, {}, version {}, {} of {} VMs have a process",
                record.pid,
                record.mode.as_str(),
                record.version,
                daemon.live_vms,
                daemon.vms
            );
            let check = match record.version == env!("CARGO_PKG_VERSION") {
                true => Check::ok(NAME, detail),
                false => Check::warn(NAME, detail).remedy(format!(
                    "this program is version {}: `offshoot daemon stop`, VMs live on",
                    env!("CARGO_PKG_VERSION")
                )),
            };
            let ids = vms.into_iter().map(|vm| vm.id).chain(daemon.pool.vms);
            (check, Some(ids.collect()))
        }
        Err(crate::failure::Stop::Failed(report)) => {
            let cause = report.failure.cause.map_or_else(String::new, |cause| format!(": {cause}"));
            let check = Check::fail(NAME, report.failure.message + &cause);
            (check.remedy("its log is `daemon.log` in the state directory"), None)
        }
        Err(_) => (Check::fail(NAME, "interrupted"), None),
    }
}

/// Files that are not ours. With a daemon to ask, directories of VMs that do not exist too.
pub fn strays(paths: &Paths, vms: Option<&[VmId]>) -> Check {
    const NAME: &str = "stray files";
    let mut known: Option<BTreeSet<String>> =
        vms.map(|vms| vms.iter().flat_map(|id| [id.to_string(), id.simple()]).collect());
    if let Some(known) = &mut known {
        let elsewhere = known.iter().flat_map(|vm| lives_in(&paths.state_dir.join("vms").join(vm)));
        let elsewhere: Vec<String> = elsewhere.collect();
        known.extend(elsewhere);
    }
    let mut strays = Vec::new();
    for name in names(&paths.state_dir) {
        if !OURS.contains(&name.as_str()) && !name.starts_with("offshoot.db") {
            strays.push(name);
        }
    }
    let vms_dir = paths.state_dir.join("vms");
    for name in names(&vms_dir) {
        let known =
            known.as_ref().map_or_else(|| name.parse::<VmId>().is_ok(), |known| known.contains(&name));
        let layer = name.parse::<VmId>().is_ok() && vms_dir.join(&name).join(DISK).exists();
        if !known && !layer {
            strays.push(format!("vms/{name}"));
        }
    }
    if strays.is_empty() {
        return Check::ok(NAME, "none");
    }
    let dir = paths.state_dir.display();
    Check::warn(NAME, format!("{} in {dir}", strays.join(", ")))
        .remedy("nobody here needs them: move them away")
}

/// Where else the processes of a VM have their files: one that came from the warm pool has them where it was made, and
/// the VM's directory a link there.
fn lives_in(vm: &Path) -> Vec<String> {
    let links = names(vm).into_iter().filter_map(|name| fs::read_link(vm.join(name)).ok());
    let made_in = |link: std::path::PathBuf| Some(link.parent()?.file_name()?.to_string_lossy().into_owned());
    links.filter_map(made_in).collect()
}

/// Sorted; none if there is no such directory.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn paths(dir: &Path) -> Paths {
        Paths { state_dir: dir.to_owned() }
    }

    #[test]
    fn a_file_nobody_owns_is_named_and_our_own_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for ours in ["offshoot.db", "offshoot.db-wal", "daemon.log"] {
            fs::write(dir.path().join(ours), "").unwrap();
        }
        for ours in ["disks", "keys", "snapshots", "vms"] {
            fs::create_dir(dir.path().join(ours)).unwrap();
        }
        fs::create_dir(dir.path().join("vms").join(VmId::new().simple())).unwrap();
        assert_eq!(strays(&paths(dir.path()), None).verdict, Verdict::Ok);
        fs::write(dir.path().join("vms/notes.txt"), "").unwrap();
        fs::write(dir.path().join("todo"), "").unwrap();
        let found = strays(&paths(dir.path()), None);
        assert_eq!(found.verdict, Verdict::Warn);
        assert!(found.detail.starts_with("todo, vms/notes.txt in "), "{}", found.detail);
        let with_daemon = strays(&paths(dir.path()), Some(&[]));
        assert!(with_daemon.detail.matches("vms/").count() == 2, "a VM nobody knows: {}", with_daemon.detail);
        let (claimed, made_as) = (VmId::new(), VmId::new());
        let boots = [claimed, made_as].map(|vm| dir.path().join("vms").join(vm.simple()));
        fs::create_dir_all(boots[1].join("g3")).unwrap();
        fs::create_dir(&boots[0]).unwrap();
        let stray = strays(&paths(dir.path()), Some(&[claimed]));
        assert!(stray.detail.contains(&made_as.simple()), "{}", stray.detail);
        std::os::unix::fs::symlink(boots[1].join("g3"), boots[0].join("g4")).unwrap();
        let from_pool = strays(&paths(dir.path()), Some(&[claimed]));
        assert_eq!(from_pool.detail, with_daemon.detail, "where a VM's process has its files is no stray");
        boots.iter().for_each(|boot| fs::remove_dir_all(boot).unwrap());
        let layer = dir.path().join("vms").join(VmId::new().simple());
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join(DISK), "").unwrap();
        let with_layer = strays(&paths(dir.path()), Some(&[]));
        assert_eq!(
            with_layer.detail, with_daemon.detail,
            "what snapshots may rest on is never called a stray"
        );
    }

    #[test]
    fn an_open_state_directory_is_a_warning_and_an_absent_one_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(state_dir(&paths(dir.path()))[0].verdict, Verdict::Warn);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(state_dir(&paths(dir.path()))[0].verdict, Verdict::Ok);
        assert_eq!(state_dir(&paths(&dir.path().join("absent")))[0].verdict, Verdict::Ok);
    }
}
