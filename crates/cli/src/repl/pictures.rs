//! Pictures that code shows, as files: a terminal cannot show them.

use crate::failure::{Result, file, host};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Media types that are saved: the end of the file's name, and whether they are in base64.
const KINDS: [(&str, &str, bool); 4] = [
    ("image/png", "png", true),
    ("image/jpeg", "jpg", true),
    ("image/svg+xml", "svg", false),
    ("application/pdf", "pdf", true),
];

/// So many directories that others have left are passed over.
const MOST_LEFT: u32 = 1000;

/// Made with the first picture, in a directory that nobody else can look into.
#[derive(Debug, Default)]
pub struct Pictures {
    directory: Option<PathBuf>,
    saved: u32,
}

impl Pictures {
    /// Saves what is a picture of a value; of several forms of it the first.
    pub fn save(&mut self, mime: &BTreeMap<String, String>) -> Result<Vec<PathBuf>> {
        let found = KINDS.iter().find_map(|&(kind, end, encoded)| Some((mime.get(kind)?, end, encoded)));
        let Some((text, end, encoded)) = found else { return Ok(Vec::new()) };
        let bytes = match encoded {
            false => text.as_bytes().to_vec(),
            true => STANDARD
                .decode(text.split_whitespace().collect::<String>())
                .map_err(|error| host("the code showed a picture that is not base64", &error))?,
        };
        self.saved += 1;
        let name = format!("figure-{}.{end}", self.saved);
        let path = self.directory()?.join(name);
        fs::write(&path, bytes).map_err(|error| file("write", &path, error))?;
        Ok(vec![path])
    }

    fn directory(&mut self) -> Result<&Path> {
        if self.directory.is_none() {
            let made = |path: &PathBuf| fs::DirBuilder::new().mode(0o700).create(path);
            let name = format!("offshoot-repl-{}", std::process::id());
            let mut path = std::env::temp_dir().join(&name);
            let mut outcome = made(&path);
            // Pictures of an earlier process of this number are somebody's.
            for another in 2..=MOST_LEFT {
                if !outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::AlreadyExists) {
                    break;
                }
                path = std::env::temp_dir().join(format!("{name}-{another}"));
                outcome = made(&path);
            }
            outcome.map_err(|error| file("make", &path, error))?;
            self.directory = Some(path);
        }
        Ok(self.directory.as_deref().unwrap_or_else(|| Path::new("/")))
    }
}

impl Drop for Pictures {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            // One that is not empty stays: it is empty where its first picture could not be written.
            let _kept = fs::remove_dir(directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_a_file_of_its_own_and_text_is_none() {
        let mime = |kind: &str, text: &str| [(kind.to_owned(), text.to_owned())].into();
        // What a process of the same number has left is in nobody's way.
        let left = std::env::temp_dir().join(format!("offshoot-repl-{}", std::process::id()));
        fs::create_dir(&left).unwrap();
        let mut pictures = Pictures::default();
        assert!(pictures.save(&mime("text/plain", "x")).unwrap().is_empty());
        let first = pictures.save(&mime("image/png", "UE5H\n")).unwrap();
        let second = pictures.save(&mime("image/svg+xml", "<svg/>")).unwrap();
        assert_eq!(
            (fs::read(&first[0]).unwrap(), fs::read(&second[0]).unwrap()),
            (b"PNG".to_vec(), b"<svg/>".to_vec())
        );
        assert!(second[0].ends_with("figure-2.svg"));
        assert!(pictures.save(&mime("image/png", "?")).is_err());
        fs::remove_dir(left).unwrap();
        let own = first[0].parent().unwrap();
        fs::remove_file(&first[0]).unwrap();
        fs::remove_file(&second[0]).unwrap();
        drop(pictures);
        assert!(!own.exists(), "an empty one does not stay");
    }
}
