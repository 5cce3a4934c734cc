//! Packages, as the guest's own records have them: dpkg's status file, and the names of what pip installed for all.

use super::{Differences, PackageChange, PackageManager, report::Gathered, side::Side};
use offshoot_guest_proto::{client::ClientError, message::GuestErrorKind};
use offshoot_types::{ErrorCode, Failure};
use std::collections::BTreeMap;

const DPKG: &str = "/var/lib/dpkg/status";
/// Where a distribution's Python looks for what it did not bring itself.
const PYTHON: &str = "/usr/local/lib";
/// More is no status file but a guest that talks without end.
const MOST_BYTES: u64 = 64 << 20;
const MOST_PACKAGES: usize = 100_000;
/// Of a name or a version; a longer one is none.
const MOST_TEXT: usize = 256;

/// By manager and name: the version.
type Packages = BTreeMap<(PackageManager, String), String>;

pub(super) async fn compare(
    from: &Side,
    to: &Side,
    limit: usize,
) -> Result<Differences<PackageChange>, Failure> {
    let ((mut before, known), (mut after, known_too)) = tokio::try_join!(packages(from), packages(to))?;
    if !known && !known_too && before.is_empty() && after.is_empty() {
        return Ok(Differences::unknown(format!(
            "neither has a record of packages that is known here ({DPKG})"
        )));
    }
    let mut names: Vec<_> = before.keys().chain(after.keys()).cloned().collect();
    names.sort();
    names.dedup();
    let mut gathered = Gathered::new(limit);
    for key in names {
        let (from, to) = (before.remove(&key), after.remove(&key));
        if from != to {
            let (manager, name) = key;
            gathered.push(PackageChange { manager, name, from, to });
        }
    }
    Ok(gathered.done(0))
}

/// And whether there is a status file.
async fn packages(side: &Side) -> Result<(Packages, bool), Failure> {
    let mut packages = Packages::new();
    let known = dpkg(side, &mut packages).await?;
    pip(side, &mut packages).await?;
    Ok((packages, known))
}

async fn dpkg(side: &Side, packages: &mut Packages) -> Result<bool, Failure> {
    let files = side.client.files("root");
    let Some(mut file) = absent(files.read(DPKG, 0, Some(MOST_BYTES)).await, side)? else { return Ok(false) };
    let mut status = Status::default();
    let mut read = 0;
    while let Some(data) = file.next().await.map_err(|error| side.failure(&error))? {
        read += data.len() as u64;
        status.feed(&data, packages);
        if read >= MOST_BYTES || packages.len() > MOST_PACKAGES {
            return Err(too_many(side));
        }
    }
    status.feed(b"\n\n", packages);
    Ok(true)
}

/// `NAME-VERSION.dist-info` in the directories of each Python.
async fn pip(side: &Side, packages: &mut Packages) -> Result<(), Failure> {
    for python in names(side, PYTHON).await? {
        if !python.starts_with("python3") {
            continue;
        }
        for directory in ["dist-packages", "site-packages"] {
            for name in names(side, &format!("{PYTHON}/{python}/{directory}")).await? {
                let info = name.strip_suffix(".dist-info").and_then(|name| name.rsplit_once('-'));
                if let Some((name, version)) = info {
                    packages.insert((PackageManager::Pip, name.to_owned()), version.to_owned());
                }
            }
        }
    }
    Ok(())
}

/// Of a directory; none if there is no such directory.
async fn names(side: &Side, path: &str) -> Result<Vec<String>, Failure> {
    let Some(mut listing) = absent(side.client.files("root").list(path).await, side)? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    while let Some(entry) = listing.next().await.map_err(|error| side.failure(&error))? {
        names.push(entry.name);
        if names.len() > MOST_PACKAGES {
            return Err(too_many(side));
        }
    }
    Ok(names)
}

fn too_many(side: &Side) -> Failure {
    let message = format!("`{}` records more packages than can be", side.subject.name);
    Failure::new(ErrorCode::Guest, message).hint("`--files` and `--processes` leave the packages out")
}

/// `None` where there is nothing of that name.
fn absent<T>(opened: Result<T, ClientError>, side: &Side) -> Result<Option<T>, Failure> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(ClientError::Guest(error))
            if matches!(error.kind, GuestErrorKind::NotFound | GuestErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(side.failure(&error)),
    }
}

/// A status file, line by line as it comes: paragraphs of `Field: value`, each a package.
#[derive(Debug, Default)]
struct Status {
    line: Vec<u8>,
    /// The line is longer than any that is of interest.
    skipping: bool,
    package: Option<String>,
    version: Option<String>,
    architecture: Option<String>,
    installed: bool,
}

/// Of the lines that are of interest.
const MOST_LINE: usize = MOST_TEXT + 32;

impl Status {
    fn feed(&mut self, data: &[u8], packages: &mut Packages) {
        for piece in data.split_inclusive(|&byte| byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            self.skipping |= self.line.len() + text.len() > MOST_LINE;
            if !self.skipping {
                self.line.extend_from_slice(text);
            }
            if ends {
                let line = std::mem::take(&mut self.line);
                if !std::mem::take(&mut self.skipping) {
                    self.line(&String::from_utf8_lossy(&line), packages);
                }
            }
        }
    }

    fn line(&mut self, line: &str, packages: &mut Packages) {
        if line.trim().is_empty() {
            let done = std::mem::take(self);
            if let (Some(package), Some(version), true) = (done.package, done.version, done.installed) {
                let name = match done.architecture {
                    Some(architecture) => format!("{package}:{architecture}"),
                    None => package,
                };
                packages.insert((PackageManager::Dpkg, name), version);
            }
            return;
        }
        let Some((field, value)) = line.split_once(':') else { return };
        let value = Some(value.trim().to_owned()).filter(|value| value.len() <= MOST_TEXT);
        match field {
            "Package" => self.package = value,
            "Version" => self.version = value,
            "Architecture" => self.architecture = value,
            // `WANTED ERROR STATE`
            "Status" => {
                self.installed = value.is_some_and(|value| value.split(' ').nth(2) == Some("installed"));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2-1
Description: a shell
 Version: 9 of nothing

Package: gone
Status: deinstall ok config-files
Version: 1

Package: all
Version: 2:3~rc
Status: hold ok installed";

    fn parse(text: &[u8], piece: usize) -> Vec<String> {
        let (mut status, mut packages) = (Status::default(), Packages::new());
        text.chunks(piece).for_each(|data| status.feed(data, &mut packages));
        status.feed(b"\n\n", &mut packages);
        packages.iter().map(|((_, name), version)| format!("{name} {version}")).collect()
    }

    #[test]
    fn installed_packages_are_read_however_the_file_comes_in_pieces() {
        for piece in [1, 7, 4096] {
            assert_eq!(parse(TEXT.as_bytes(), piece), ["all 2:3~rc", "bash:amd64 5.2-1"], "{piece}");
        }
    }

    #[test]
    fn a_line_without_end_takes_no_memory_and_hides_nothing_after_it() {
        let long =
            [b"Package: ".as_slice(), &[b'x'; 1 << 20], b"\nVersion: 1\nStatus: a b installed\n\n"].concat();
        let text = [&long, TEXT.as_bytes()].concat();
        let (mut status, mut packages) = (Status::default(), Packages::new());
        status.feed(&text[..1 << 20], &mut packages);
        assert!(status.line.len() <= MOST_LINE);
        assert_eq!(parse(&text, 1 << 16), ["all 2:3~rc", "bash:amd64 5.2-1"]);
        assert!(parse(&[0xff; 999], 10).is_empty());
    }
}
