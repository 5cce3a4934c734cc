//! SSH host keys of its own for each machine: a fork that answers with its source's key could pose as it.

use super::identity::replace;
use crate::fault::{Context, fault};
use offshoot_guest_proto::message::{GuestError, GuestErrorKind};
use ssh_key::{
    HashAlg, LineEnding, PrivateKey,
    private::{Ed25519Keypair, KeypairData},
};
use std::{fs, io, path::Path};

const NAME: &str = "ssh_host_ed25519_key";

/// Where `directory` has host keys: one new Ed25519 key in their place. Answers its fingerprint; nothing where there
/// is no key to be replaced.
pub fn renew_host_keys(directory: &Path, hostname: &str) -> Result<Vec<String>, GuestError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("list", directory.display()),
    };
    let mut old = Vec::new();
    for entry in entries {
        let path = entry.context("list", directory.display())?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("ssh_host_") && (name.ends_with("_key") || name.ends_with("_key.pub")) {
            old.push((name, path));
        }
    }
    if !old.iter().any(|(name, _)| name.ends_with("_key")) {
        return Ok(Vec::new());
    }
    let key = generate(&format!("root@{hostname}"))?;
    let odd = |error: ssh_key::Error| fault(GuestErrorKind::Other, format!("encode {NAME}: {error}"));
    let private = key.to_openssh(LineEnding::LF).map_err(odd)?;
    let public = key.public_key().to_openssh().map_err(odd)?;
    // The others first: cut off here, the next thaw finds a key and does it all again.
    for (name, path) in old {
        if name != NAME && name != format!("{NAME}.pub") {
            fs::remove_file(&path).context("remove", path.display())?;
        }
    }
    replace(&directory.join(NAME), private.as_bytes(), 0o600)?;
    replace(&directory.join(format!("{NAME}.pub")), format!("{public}\n").as_bytes(), 0o644)?;
    Ok(vec![key.fingerprint(HashAlg::Sha256).to_string()])
}

/// From the kernel's generator, which was reseeded before.
fn generate(comment: &str) -> Result<PrivateKey, GuestError> {
    let mut seed = [0_u8; 32];
    let mut rest = &mut seed[..];
    while !rest.is_empty() {
        let count = rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty())
            .context("draw", "random bytes")?;
        rest = &mut rest[count..];
    }
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    PrivateKey::new(pair, comment)
        .map_err(|error| fault(GuestErrorKind::Other, format!("make {NAME}: {error}")))
}

/// Makes running servers read the new key once they run again: the old one is in their memory. Those that serve a
/// connection are children of such a server and keep it.
pub fn reload_servers() {
    for pid in crate::cgroup::processes_below(Path::new(crate::exec::Cgroups::TOP)) {
        let pid = pid.as_raw_nonzero().get();
        if is_server(pid) && !parent(pid).is_some_and(is_server) {
            // Ended meanwhile: nothing of it is left.
            drop(crate::sys::send_signal(pid, libc::SIGHUP));
        }
    }
}

fn is_server(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sshd")
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn no_shared_key_remains_and_the_new_one_is_a_proper_one() {
        let etc = tempfile::tempdir().unwrap();
        let path = |name: &str| etc.path().join(name);
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", NAME, "sshd_config"] {
            fs::write(path(name), "old").unwrap();
        }
        let first = renew_host_keys(etc.path(), "fork").unwrap();
        let second = renew_host_keys(etc.path(), "fork").unwrap();
        assert!(first[0].starts_with("SHA256:") && first != second, "{first:?} {second:?}");
        let mut names: Vec<_> =
            fs::read_dir(etc.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [NAME, "ssh_host_ed25519_key.pub", "sshd_config"]);
        assert_eq!(fs::metadata(path(NAME)).unwrap().permissions().mode() & 0o777, 0o600);
        let private = PrivateKey::from_openssh(fs::read_to_string(path(NAME)).unwrap()).unwrap();
        let public = fs::read_to_string(path("ssh_host_ed25519_key.pub")).unwrap();
        assert!(public.starts_with("ssh-ed25519 ") && public.ends_with(" root@fork\n"), "{public}");
        assert_eq!(private.fingerprint(HashAlg::Sha256).to_string(), second[0]);
    }

    #[test]
    fn a_machine_without_host_keys_gets_none() {
        let etc = tempfile::tempdir().unwrap();
        assert_eq!(renew_host_keys(etc.path(), "h").unwrap(), Vec::<String>::new());
        assert_eq!(renew_host_keys(&etc.path().join("none"), "h").unwrap(), Vec::<String>::new());
    }
}
