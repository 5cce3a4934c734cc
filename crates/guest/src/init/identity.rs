//! Who the VM is: its hostname and machine id, and the loopback interface, the only one it has.
//!
//! Each copy of a state is renamed before anything of it runs. Under an emulator that is the time it takes to translate
//! the kernel's code for it: 45 ms for a file of the overlay (overlayfs, ext4, its journal), 2 ms for one in memory. So the
//! two files lie in a tmpfs, mounted over their places; the host says at each boot what belongs in them.

use super::{InitError, Step};
use crate::sys;
use rustix::{
    mount::mount_bind,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

const MEMORY: &str = "/run/offshoot";
const HOSTNAME: &str = "/etc/hostname";
pub const MACHINE_ID: &str = "/etc/machine-id";

/// Lays files in memory over those that differ from copy to copy.
pub fn files_in_memory() -> Result<(), InitError> {
    fs::create_dir_all(MEMORY).step("create", MEMORY)?;
    for (target, mode) in [(HOSTNAME, 0o644), (MACHINE_ID, 0o444)] {
        let name = target.trim_start_matches("/etc/");
        let source = format!("{MEMORY}/{name}");
        let known = fs::read(target).unwrap_or_default();
        fs::write(&source, &known).step("write", &source)?;
        fs::set_permissions(&source, fs::Permissions::from_mode(mode)).step("set the mode of", &source)?;
        if !Path::new(target).exists() {
            fs::create_dir_all("/etc").step("create", "/etc")?;
            fs::write(target, "").step("write", target)?;
        }
        mount_bind(&source, target).step("mount over", target)?;
    }
    Ok(())
}

/// 32 hexadecimal digits.
pub fn set_machine_id(text: &str) -> Result<(), InitError> {
    if text.len() != 32 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(InitError::Invalid {
            what: format!("machine id {text:?}"),
            why: "not 32 hexadecimal digits",
        });
    }
    write_if_different(MACHINE_ID, &format!("{text}\n"))
}

pub fn loopback_up() -> Result<(), InitError> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .step("open", "socket for interface lo")?;
    sys::loopback_up(&socket).step("bring up interface", "lo")
}

/// Sets the kernel's hostname and makes it resolve: `sudo` and many a server look their own name up. Where the name
/// service knows a machine's own name without being told (`nss-myhostname`) `/etc/hosts` is left alone.
pub fn set_hostname(name: &str) -> Result<(), InitError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(valid) {
        return Err(InitError::Invalid { what: format!("hostname {name:?}"), why: "not a hostname" });
    }
    if rustix::system::uname().nodename().to_bytes() == name.as_bytes() {
        return Ok(());
    }
    rustix::system::sethostname(name.as_bytes()).step("set hostname", name)?;
    write_if_different(HOSTNAME, &format!("{name}\n"))?;
    if fs::read_to_string("/etc/nsswitch.conf").is_ok_and(|text| resolves_itself(&text)) {
        return Ok(());
    }
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    write_if_different("/etc/hosts", &hosts_with(&hosts, name))
}

/// Whether this `nsswitch.conf` has `myhostname` among the sources of hosts.
fn resolves_itself(text: &str) -> bool {
    text.lines()
        .filter_map(|line| line.split('#').next()?.trim().strip_prefix("hosts:"))
        .any(|sources| sources.split_ascii_whitespace().any(|source| source == "myhostname"))
}

/// Every boot after the first finds the files as they should be: no write, no copy into the upper layer.
fn write_if_different(path: &str, text: &str) -> Result<(), InitError> {
    if fs::read(path).is_ok_and(|known| known == text.as_bytes()) {
        return Ok(());
    }
    fs::create_dir_all("/etc").step("create", "/etc")?;
    fs::write(path, text).step("write", path)
}

/// `hosts` with exactly one line for 127.0.1.1, the address Debian gives a machine's own name.
fn hosts_with(hosts: &str, name: &str) -> String {
    let address = |line: &str| line.split_ascii_whitespace().next().map(str::to_owned);
    let mut lines: Vec<&str> =
        hosts.lines().filter(|line| address(line).as_deref() != Some("127.0.1.1")).collect();
    if !lines.iter().any(|line| address(line).as_deref() == Some("127.0.0.1")) {
        lines.insert(0, "127.0.0.1 localhost");
    }
    format!("{}\n127.0.1.1 {name}\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::{hosts_with, resolves_itself};

    #[test]
    fn a_name_service_that_knows_the_own_name_is_recognised() {
        assert!(resolves_itself("passwd: files\nhosts:          files myhostname dns\n"));
        assert!(!resolves_itself("hosts: files dns # myhostname\n"));
        assert!(!resolves_itself("hosts: files\nnetworks: myhostname\n"));
        assert!(!resolves_itself(""));
    }

    #[test]
    fn the_vms_own_name_resolves_and_a_former_one_does_not() {
        let first = hosts_with("", "one");
        assert_eq!(first, "127.0.0.1 localhost\n127.0.1.1 one\n");
        assert_eq!(hosts_with(&first, "one"), first);
        assert_eq!(hosts_with(&first, "two"), "127.0.0.1 localhost\n127.0.1.1 two\n");
    }

    #[test]
    fn other_lines_of_the_hosts_file_are_kept() {
        let hosts = "127.0.0.1\tlocalhost\n# mine\n10.0.0.1 db\n";
        assert_eq!(hosts_with(hosts, "vm"), "127.0.0.1\tlocalhost\n# mine\n10.0.0.1 db\n127.0.1.1 vm\n");
    }
}
