//! Users of the VM, read from its `/etc/passwd` and `/etc/group`. No name service: the agent is static, and the
//! VM has no network.

use crate::fault::{fault, invalid};
use crate::sys::FileIdentity;
use offshoot_guest_proto::message::{GuestError, GuestErrorKind};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Characters of a name that is told to the host.
const MAX_NAME: usize = 32;

/// Whom a process or file operation runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub home: String,
    pub shell: String,
    pub identity: FileIdentity,
}

#[derive(Debug)]
pub struct Users {
    passwd: CachedFile,
    group: CachedFile,
}

impl Users {
    /// `etc` is the directory of `passwd` and `group`.
    pub fn new(etc: &Path) -> Self {
        Self { passwd: CachedFile::new(etc.join("passwd")), group: CachedFile::new(etc.join("group")) }
    }

    /// A user by name or number. A number without an entry is a user with no home and no groups; root needs no
    /// entry either, so that an image without `/etc/passwd` works.
    pub fn find(&self, wanted: &str) -> Result<User, GuestError> {
        if wanted.is_empty() || wanted.contains(['\0', ':', '\n']) {
            return Err(invalid(format!("user {wanted:?}: neither a name nor a number")));
        }
        let passwd = self.passwd.text();
        let number = wanted.parse::<u32>().ok().filter(|&uid| uid != u32::MAX);
        let entry =
            passwd.lines().filter_map(Entry::parse).find(|entry| entry.name == wanted).or_else(|| {
                let number = number?;
                passwd.lines().filter_map(Entry::parse).find(|entry| entry.uid == number)
            });
        match (entry, number) {
            (Some(entry), _) => {
                let group = self.group.text();
                let mut groups = vec![entry.gid];
                groups.extend(supplementary(&group, entry.name).filter(|&gid| gid != entry.gid));
                Ok(User {
                    name: entry.name.to_owned(),
                    home: entry.home.to_owned(),
                    shell: if entry.shell.is_empty() { "/bin/sh" } else { entry.shell }.to_owned(),
                    identity: FileIdentity { uid: entry.uid, gid: entry.gid, groups },
                })
            }
            (None, Some(uid)) => Ok(Self::without_entry(wanted, uid)),
            (None, None) if wanted == "root" => Ok(Self::without_entry("root", 0)),
            (None, None) => Err(fault(
                GuestErrorKind::UnknownUser,
                format!("user `{wanted}`: no such user in the VM's /etc/passwd"),
            )),
        }
    }

    /// The name of a user, or the number where there is no name.
    pub fn name_of(&self, uid: u32) -> String {
        let passwd = self.passwd.text();
        let entry = passwd.lines().filter_map(Entry::parse).find(|entry| entry.uid == uid);
        entry.map_or_else(|| uid.to_string(), |entry| entry.name.chars().take(MAX_NAME).collect())
    }

    /// The name of a group, or the number where there is no name.
    pub fn group_name_of(&self, gid: u32) -> String {
        let group = self.group.text();
        let named = group.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
            (fields.nth(1)?.parse() == Ok(gid)).then(|| name.chars().take(MAX_NAME).collect())
        });
        named.unwrap_or_else(|| gid.to_string())
    }

    fn without_entry(name: &str, uid: u32) -> User {
        User {
            name: name.to_owned(),
            home: if uid == 0 { "/root" } else { "/" }.to_owned(),
            shell: "/bin/sh".to_owned(),
            identity: FileIdentity { uid, gid: uid, groups: vec![uid] },
        }
    }
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl<'a> Entry<'a> {
    /// `name:password:uid:gid:comment:home:shell`; malformed lines are no entries, as for the C library.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with(['#', '+', '-']))?;
        let _password = fields.next()?;
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let _comment = fields.next()?;
        let home = fields.next().filter(|home| home.starts_with('/')).unwrap_or("/");
        Some(Self { name, uid, gid, home, shell: fields.next().unwrap_or("") })
    }
}

/// Group ids whose member list (`name:password:gid:a,b,c`) has `user`.
fn supplementary<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == user).then_some(gid)
    })
}

/// A small file that is read again only when it was replaced or changed.
#[derive(Debug)]
struct CachedFile {
    path: PathBuf,
    cached: Mutex<Option<(FileState, Arc<str>)>>,
}

/// Device, inode, size, and the nanoseconds of modification and change.
type FileState = (u64, u64, u64, i64, i64, i64, i64);

impl CachedFile {
    fn new(path: PathBuf) -> Self {
        Self { path, cached: Mutex::new(None) }
    }

    /// The file's text; empty when it cannot be read: then only numbers and root are known.
    fn text(&self) -> Arc<str> {
        let Ok(meta) = fs::metadata(&self.path) else { return Arc::from("") };
        let state = (
            meta.dev(),
            meta.ino(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        );
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((known, text)) if *known == state => Arc::clone(text),
            _ => {
                let bytes = fs::read(&self.path).unwrap_or_default();
                let text: Arc<str> = String::from_utf8_lossy(&bytes).into();
                *cached = Some((state, Arc::clone(&text)));
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(passwd: &str, group: &str) -> (tempfile::TempDir, Users) {
        let etc = tempfile::tempdir().unwrap();
        fs::write(etc.path().join("passwd"), passwd).unwrap();
        fs::write(etc.path().join("group"), group).unwrap();
        let users = Users::new(etc.path());
        (etc, users)
    }

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n#off:x:5:5::/:/bin/sh\nbroken:x:1\nuser:x:1000:1000:,,,:/home/user:/bin/bash\n77:x:1001:1001::/home/77:\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:other,user\nuser:x:1000:user\nusers:x:100:user2\n";

    #[test]
    fn a_name_brings_home_shell_and_supplementary_groups() {
        let (_etc, users) = users(PASSWD, GROUP);
        let user = users.find("user").unwrap();
        assert_eq!(user.home, "/home/user");
        assert_eq!(user.identity, FileIdentity { uid: 1000, gid: 1000, groups: vec![1000, 27] });
        assert_eq!(users.find("1000").unwrap(), user);
    }

    #[test]
    fn users_and_groups_have_names_or_are_numbers() {
        let (_etc, users) = users(PASSWD, GROUP);
        assert_eq!((users.name_of(1000).as_str(), users.group_name_of(27).as_str()), ("user", "sudo"));
        assert_eq!((users.name_of(4242).as_str(), users.group_name_of(4242).as_str()), ("4242", "4242"));
    }

    #[test]
    fn a_numeric_name_wins_over_a_uid_as_posix_wants() {
        let (_etc, users) = users(PASSWD, GROUP);
        assert_eq!(users.find("77").unwrap().identity.uid, 1001);
    }

    #[test]
    fn a_number_without_an_entry_has_no_home_and_a_name_without_one_is_refused() {
        let (_etc, users) = users(PASSWD, GROUP);
        assert_eq!(users.find("4242").unwrap().home, "/");
        assert_eq!(users.find("4242").unwrap().identity.uid, 4242);
        for unknown in ["nobody-here", "broken", "off", "-1", "4294967295"] {
            assert_eq!(users.find(unknown).unwrap_err().kind, GuestErrorKind::UnknownUser, "{unknown}");
        }
        for malformed in ["", "a:b", "a\0b"] {
            assert_eq!(users.find(malformed).unwrap_err().kind, GuestErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn a_user_added_later_is_found() {
        let (etc, users) = users(PASSWD, GROUP);
        assert!(users.find("late").is_err());
        fs::write(etc.path().join("passwd"), format!("{PASSWD}late:x:1002:1002::/home/late:/bin/sh\n"))
            .unwrap();
        assert_eq!(users.find("late").unwrap().identity.uid, 1002);
    }

    #[test]
    fn root_is_known_without_any_file() {
        let users = Users::new(Path::new("/nonexistent"));
        assert_eq!(users.find("root").unwrap().identity.uid, 0);
    }
}
