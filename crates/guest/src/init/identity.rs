//! Who the VM is: its hostname, known to itself by name, and the loopback interface, the only one it has.

use super::{InitError, Step};
use crate::sys;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::fs;

pub fn loopback_up() -> Result<(), InitError> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .step("open", "socket for interface lo")?;
    sys::loopback_up(&socket).step("bring up interface", "lo")
}

/// Sets the kernel's hostname and makes it resolve: `sudo` and many a server look their own name up.
pub fn set_hostname(name: &str) -> Result<(), InitError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(valid) {
        return Err(InitError::Invalid { what: format!("hostname {name:?}"), why: "not a hostname" });
    }
    if rustix::system::uname().nodename().to_bytes() == name.as_bytes() {
        return Ok(());
    }
    rustix::system::sethostname(name.as_bytes()).step("set hostname", name)?;
    write_if_different("/etc/hostname", &format!("{name}\n"))?;
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    write_if_different("/etc/hosts", &hosts_with(&hosts, name))
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
    use super::hosts_with;

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
