//! The stage `tree`: a Debian root filesystem with the recipe's packages, as a tar archive.

use super::{Build, BuildError, IoFor, Stage, process::Program, tools};
use crate::{
    Package, Part, Recipe,
    store::{StageKey, StageRecord},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    path::Path,
};

/// Makes any Debian root the root of a VM of ours; runs inside it after the recipe's own setup.
const FINISH: &str = include_str!("finish.sh");

/// Never unpacked, and not by a later `apt-get install` in a VM either. Copyright files stay: licences ask for them.
const EXCLUDED: [&str; 8] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/bug/*",
    "path-exclude=/usr/share/bash-completion/*",
];

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) tar: Part,
    pub(super) packages: Vec<Package>,
    /// Stamped on whatever the build itself made.
    pub(super) created: jiff::Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Facts {
    packages: Vec<Package>,
    created: jiff::Timestamp,
}

pub(super) fn key(recipe: &Recipe) -> StageKey {
    StageKey::new("tree", 1, &(&recipe.suite, &recipe.packages, &recipe.setup, FINISH, EXCLUDED))
}

pub(super) fn stage(build: &mut Build<'_>, recipe: &Recipe) -> Result<Tree, BuildError> {
    build.stage(Stage::Tree, key(recipe), read, |build, directory| make(build, directory, recipe))
}

fn read(record: &StageRecord) -> Option<Tree> {
    let Facts { packages, created } = record.facts()?;
    Some(Tree { tar: record.blob("tar")?, packages, created })
}

fn make(build: &mut Build<'_>, directory: &Path, recipe: &Recipe) -> Result<StageRecord, BuildError> {
    let now = jiff::Timestamp::now().as_second();
    let created = jiff::Timestamp::from_second(now).expect("the clock's own time is in range");
    let packages: Vec<&str> = recipe.packages.iter().map(|package| package.as_str()).collect();
    let mut program = mmdebstrap(directory)?
        .args(["--variant=minbase", "--format=tar"])
        .args(EXCLUDED.map(|option| format!("--dpkgopt={option}")))
        .directory(directory)
        // Times of files the installation makes; those from packages are older and keep theirs, which Python
        // compares with what it wrote into its compiled files.
        .env("SOURCE_DATE_EPOCH", created.as_second().to_string());
    if !packages.is_empty() {
        program = program.arg(format!("--include={}", packages.join(",")));
    }
    // Scripts go by the environment: mmdebstrap repeats every hook it runs, and nothing in them needs quoting.
    for (name, script) in [("OFFSHOOT_SETUP", recipe.setup.as_str()), ("OFFSHOOT_FINISH", FINISH)] {
        if !script.is_empty() {
            let hook = format!("--customize-hook=chroot \"$1\" sh -euc \"${name}\"");
            program = program.env(name, script).arg(hook);
        }
    }
    let program = program.args([recipe.suite.as_str(), "root.tar"]);
    build.run_program(Stage::Tree, program)?;

    let packages = installed(build, directory)?;
    let tar = build.store.add_file(&directory.join("root.tar"))?;
    Ok(StageRecord::new([("tar", tar)], &Facts { packages, created }))
}

/// mmdebstrap with what every use of it here has in common.
pub(super) fn mmdebstrap(directory: &Path) -> Result<Program, BuildError> {
    let mut program = Program::confined("mmdebstrap").args([
        "--architectures=amd64",
        "--components=main",
        "--aptopt=APT::Install-Recommends \"false\"",
        "--aptopt=Acquire::Retries \"3\"",
        "--aptopt=Acquire::Languages \"none\"",
    ]);
    if tools::is_root() {
        // Its tree lies with our temporary files and is swept up with them. Without root it belongs to users below
        // us, who must be able to get there, so it stays in /tmp and mmdebstrap removes it.
        let tmp = directory.join("mmdebstrap");
        fs::create_dir(&tmp).during("create", &tmp)?;
        program = program.env("TMPDIR", &tmp).arg("--mode=root");
    } else {
        program = program.arg("--mode=unshare");
    }
    Ok(program)
}

/// The packages in the tree, from its own dpkg database.
fn installed(build: &mut Build<'_>, directory: &Path) -> Result<Vec<Package>, BuildError> {
    let path = directory.join("status");
    let file = File::create(&path).during("create", &path)?;
    let program = Program::new("tar")
        .args(["--extract", "--to-stdout", "--file=root.tar", "./var/lib/dpkg/status"])
        .directory(directory)
        .stdout(file);
    build.run_program(Stage::Tree, program)?;
    let text = fs::read_to_string(&path).during("read", &path)?;
    let packages = parse_status(&text);
    if packages.is_empty() {
        return Err(BuildError::Unexpected {
            stage: Stage::Tree,
            program: "mmdebstrap",
            reason: "the tree has no installed packages".into(),
        });
    }
    Ok(packages)
}

/// Paragraphs of `Field: value`, separated by empty lines.
fn parse_status(text: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = text
        .split("\n\n")
        .filter_map(|paragraph| {
            let field = |name: &str| {
                paragraph
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                    .map(str::to_owned)
            };
            (field("Status")? == "install ok installed").then_some(())?;
            Some(Package {
                name: field("Package")?,
                version: field("Version")?,
                architecture: field("Architecture")?,
            })
        })
        .collect();
    packages.sort();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_are_listed_in_order() {
        let text = "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.2.13\n\
                    Description: library\n Package: not a field\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n\
                    Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2.15-2+b8\n";
        let packages = parse_status(text);
        let names: Vec<_> = packages.iter().map(|p| (p.name.as_str(), p.version.as_str())).collect();
        assert_eq!(names, [("bash", "5.2.15-2+b8"), ("zlib1g", "1:1.2.13")]);
    }
}
