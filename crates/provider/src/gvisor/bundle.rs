//! What `runsc` is to run, in the words of the OCI runtime specification, and how.
//!
//! The root is the image's own file, which the sandbox maps and all sandboxes of a host share; writes go to memory over it.
//! Nothing else of the host is in a sandbox but the agent's executable, read-only.

use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Where the agent's executable is mounted.
const AGENT: &str = "/run/offshoot-guest";
/// The agent's word for where it is; what a kernel command line would say follows.
const SANDBOX: &str = "sandbox";

/// Before every verb: a network of its own without interfaces; limits that are ours, not its; system calls caught by
/// seccomp, the one way that works everywhere; writes where [`Writes`] says; files of the host reached by another process
/// alone.
pub(super) const fn arguments(writes: Writes) -> [&'static str; 5] {
    let overlay = match writes {
        Writes::Agent => "--overlay2=none",
        Writes::Kernel => "--overlay2=root:memory",
    };
    ["--network=none", "--ignore-cgroups", "--platform=systrap", overlay, "--directfs=false"]
}

/// What a saved sandbox was made with besides `runsc`: one that was made with other arguments or another root is refused by
/// name, where its kernel would find other file systems than it had and end. Whoever changes those changes this.
pub(super) const MACHINE: &str = "systrap, the root laid over by the agent";

/// Who lays memory over the image, which is only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    /// The agent, which then knows what was written and can carry it out.
    Agent,
    /// The sandbox's kernel, which does not tell: for programs that are only tried.
    Kernel,
}

/// Everything a root has on a machine of its own. The sandbox's kernel checks them; the host's sees none of them.
const CAPABILITIES: [&str; 31] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
];

/// What runs in a sandbox.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    pub hostname: &'a str,
    pub root: Root<'a>,
    pub arguments: Vec<String>,
    pub mounts: Vec<Mount>,
    pub writes: Writes,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Root<'a> {
    /// An image's erofs file.
    Image(&'a Path),
    /// A directory of the host.
    Directory(&'a Path),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    oci_version: &'static str,
    hostname: String,
    root: RootDirectory,
    process: Process,
    mounts: Vec<Mount>,
    linux: Linux,
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Debug, Serialize)]
struct RootDirectory {
    path: PathBuf,
    readonly: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    terminal: bool,
    user: User,
    cwd: &'static str,
    args: Vec<String>,
    env: [&'static str; 1],
    capabilities: BTreeMap<&'static str, &'static [&'static str]>,
}

#[derive(Debug, Serialize)]
struct User {
    uid: u32,
    gid: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Mount {
    destination: String,
    #[serde(rename = "type")]
    kind: &'static str,
    source: String,
    options: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Linux {
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Serialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: &'static str,
}

impl Mount {
    /// A file system of the sandbox's own kernel.
    fn own(kind: &'static str, destination: &str, options: &[&'static str]) -> Self {
        Self { destination: destination.into(), kind, source: kind.into(), options: options.to_vec() }
    }

    fn bound(source: &Path, destination: &str) -> Self {
        Self {
            destination: destination.into(),
            kind: "bind",
            source: source.display().to_string(),
            options: vec!["bind", "ro"],
        }
    }
}

/// A VM's: its agent as PID 1.
pub(super) fn of_vm<'a>(hostname: &'a str, machine_id: &str, root: &'a Path, agent: &Path) -> Contents<'a> {
    Contents {
        hostname,
        root: Root::Image(root),
        writes: Writes::Agent,
        arguments: vec![
            AGENT.into(),
            SANDBOX.into(),
            format!("offshoot.hostname={hostname}"),
            format!("systemd.machine_id={machine_id}"),
        ],
        mounts: vec![
            Mount::own("proc", "/proc", &[]),
            Mount::own("sysfs", "/sys", &["nosuid", "noexec", "nodev"]),
            Mount::own("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev"]),
            Mount::own("tmpfs", "/run", &["nosuid", "nodev", "mode=0755"]),
            Mount::bound(agent, AGENT),
        ],
    }
}

impl Contents<'_> {
    /// Writes the bundle to `directory`, which is made.
    pub fn write(self, directory: &Path) -> io::Result<()> {
        // An image needs none, but a bundle must name a directory.
        let empty = directory.join("root");
        fs::create_dir_all(&empty)?;
        let (path, annotations) = match self.root {
            Root::Directory(path) => (path.to_owned(), BTreeMap::new()),
            Root::Image(image) => {
                let mut annotations = BTreeMap::from([
                    ("dev.gvisor.spec.rootfs.source", image.display().to_string()),
                    ("dev.gvisor.spec.rootfs.type", "erofs".into()),
                ]);
                if self.writes == Writes::Kernel {
                    annotations.insert("dev.gvisor.spec.rootfs.overlay", "memory".into());
                }
                (empty, annotations)
            }
        };
        let sets = ["bounding", "effective", "permitted", "inheritable"];
        let config = Config {
            oci_version: "1.0.2",
            hostname: self.hostname.into(),
            root: RootDirectory { path, readonly: self.writes == Writes::Agent },
            process: Process {
                terminal: false,
                user: User { uid: 0, gid: 0 },
                cwd: "/",
                args: self.arguments,
                env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                capabilities: sets.map(|set| (set, CAPABILITIES.as_slice())).into(),
            },
            mounts: self.mounts,
            linux: Linux {
                namespaces: ["pid", "network", "ipc", "uts", "mount"].map(|kind| Namespace { kind }).into(),
            },
            annotations,
        };
        fs::write(directory.join("config.json"), serde_json::to_vec(&config)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_vms_bundle_has_the_image_as_its_root_and_nothing_of_the_host_but_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        let agent = Path::new("/cache/agents/x/offshoot-guest");
        of_vm("web", &"a".repeat(32), Path::new("/images/root"), agent).write(directory.path()).unwrap();
        let text = fs::read(directory.path().join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(config["annotations"]["dev.gvisor.spec.rootfs.source"], "/images/root");
        // The agent lays its own over it.
        assert_eq!(config["root"]["readonly"], true);
        assert_eq!(config["annotations"].as_object().unwrap().len(), 2, "{config}");
        let made_with = [
            "--network=none",
            "--ignore-cgroups",
            "--platform=systrap",
            "--overlay2=none",
            "--directfs=false",
        ];
        assert_eq!(
            (arguments(Writes::Agent), MACHINE),
            (made_with, "systrap, the root laid over by the agent")
        );
        let words = config["process"]["args"].as_array().unwrap();
        assert_eq!(words[1..3], [json!("sandbox"), json!("offshoot.hostname=web")]);
        let mounts = config["mounts"].as_array().unwrap();
        let bound: Vec<&Value> = mounts.iter().filter(|mount| mount["type"] == "bind").collect();
        assert_eq!(bound.len(), 1);
        assert_eq!(bound[0]["source"], agent.to_str().unwrap());
        assert_eq!(bound[0]["options"], json!(["bind", "ro"]));
        let namespaces = config["linux"]["namespaces"].as_array().unwrap();
        assert!(namespaces.iter().any(|namespace| namespace["type"] == "network"));
    }
}
