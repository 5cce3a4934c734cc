//! Whether a command looks as if somebody may want it undone: then a snapshot is taken before it.
//!
//! Advisory, never a boundary: it reads the text of a command, and there is always another way to write the same
//! thing. What it misses is still held by the VM; what it suspects without reason costs one snapshot. So the table
//! rather says yes once too often, and nobody is refused because of it who did not ask to be.

use crate::Language;
use offshoot_types::ExecArgv;
use regex::bytes::{RegexSet, RegexSetBuilder};
use std::{fmt, sync::LazyLock};

/// What a command may do that somebody may want back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hazard {
    RemovesTree,
    WritesDevice,
    /// Overwrites or discards many files at once.
    ChangesManyFiles,
    ExhaustsProcesses,
    RunsDownload,
    /// Runs text it was given as code.
    RunsText,
    StartsPrograms,
    ChangesPackages,
    /// Goes around what its language keeps from going wrong.
    LeavesSafety,
}

impl Hazard {
    /// Its stable name, for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RemovesTree => "removes-tree",
            Self::WritesDevice => "writes-device",
            Self::ChangesManyFiles => "changes-many-files",
            Self::ExhaustsProcesses => "exhausts-processes",
            Self::RunsDownload => "runs-download",
            Self::RunsText => "runs-text",
            Self::StartsPrograms => "starts-programs",
            Self::ChangesPackages => "changes-packages",
            Self::LeavesSafety => "leaves-safety",
        }
    }
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RemovesTree => "removes a tree of files",
            Self::WritesDevice => "writes to a device",
            Self::ChangesManyFiles => "changes many files",
            Self::ExhaustsProcesses => "starts processes without end",
            Self::RunsDownload => "runs what it downloads",
            Self::RunsText => "runs text as code",
            Self::StartsPrograms => "starts other programs",
            Self::ChangesPackages => "changes installed packages",
            Self::LeavesSafety => "uses unsafe code",
        })
    }
}

/// Where a pattern means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Command lines, and code of any language: a command line may carry code, and code a command line.
    Any,
    Only(Language),
}

struct Rule {
    hazard: Hazard,
    scope: Scope,
    pattern: &'static str,
}

const fn any(hazard: Hazard, pattern: &'static str) -> Rule {
    Rule { hazard, scope: Scope::Any, pattern }
}
const fn only(language: Language, hazard: Hazard, pattern: &'static str) -> Rule {
    Rule { hazard, scope: Scope::Only(language), pattern }
}

/// First match wins, so the worst comes first.
const RULES: &[Rule] = &[
    // In every spelling: -rf, -fr, -r -f, -R, --recursive.
    any(Hazard::RemovesTree, r"\brm\s+(?:-\S+\s+)*(?:-[a-zA-Z]*[rR]|--recursive)"),
    any(Hazard::RemovesTree, r"\bfind\b.*\s-(?:delete\b|exec(?:dir)?\s+(?:\S*/)?rm\b)"),
    any(Hazard::RemovesTree, r"\bxargs\b.*\brm\b"),
    any(Hazard::RemovesTree, r"\brmtree\s*\(|\bremovedirs\s*\(|\brimraf\b"),
    any(Hazard::RemovesTree, r"\bos\s*\.\s*RemoveAll\s*\(|\bremove_dir_all\b"),
    any(Hazard::RemovesTree, r"\bfs(?:Promises|\.promises)?\s*\.\s*(?:rm|rmdir)(?:Sync)?\s*\("),
    any(
        Hazard::WritesDevice,
        r"\bmkfs\b|\bmke2fs\b|\bmkswap\b|\bwipefs\b|\bblkdiscard\b|\bfdisk\b|\bparted\b",
    ),
    any(Hazard::WritesDevice, r"\bdd\s+(?:\S+\s+)*(?:if|of)="),
    any(
        Hazard::WritesDevice,
        r"(?:>\s*|\btee\s+(?:-a\s+)?)/dev/(?:sd|vd|hd|xvd|nvme|mmcblk|dm-|loop|mem\b|kmem\b|port\b)",
    ),
    any(Hazard::WritesDevice, r"(?i)\bformat\s+c:"),
    only(Language::Bash, Hazard::WritesDevice, r"(?:^|[;&|]\s*|\n\s*)format\b"),
    // A fork bomb as it is usually written; a name other than `:` does the same.
    any(Hazard::ExhaustsProcesses, r"(?:^|[;\s])[:\w]+\s*\(\)\s*\{\s*[:\w]+\s*\|\s*[:\w]+\s*&\s*\}"),
    any(Hazard::RunsDownload, r"\b(?:curl|wget)\b.*\|.*sh\b"),
    any(Hazard::RunsDownload, r"\b(?:ba|da|z|k)?sh\s+(?:-c\s+)?.?(?:<\(|\$\(|`)\s*(?:curl|wget)\b"),
    any(Hazard::ChangesManyFiles, r"\b(?:chmod|chown|chgrp)\s+(?:-\S+\s+)*(?:-[a-zA-Z]*R|--recursive)"),
    any(
        Hazard::ChangesManyFiles,
        r"\bgit\s+(?:-\S+\s+)*(?:reset\s+(?:\S+\s+)*--hard|clean\s+(?:\S+\s+)*-\S*f|checkout\s+(?:\S+\s+)*(?:--\s|-f\b|\.(?:\s|$))|restore\s|stash\s+(?:drop|clear)|push\s+(?:\S+\s+)*(?:-f\b|--force))",
    ),
    any(Hazard::ChangesManyFiles, r"\brsync\b.*\s--delete"),
    any(Hazard::ChangesManyFiles, r"\bshred\b|\btruncate\s+(?:-\S|--)"),
    any(
        Hazard::ChangesPackages,
        r"\b(?:apt|apt-get|aptitude|dpkg|dnf|yum|apk|pip3?|npm|yarn|cargo|gem)\s+(?:-\S+\s+)*(?:remove|purge|autoremove|uninstall|upgrade|dist-upgrade|full-upgrade|del\b|-r\b|-P\b|--purge|--remove)",
    ),
    any(Hazard::RunsText, r"\beval\s*\("),
    any(Hazard::RunsText, r"\bexec\s*\("),
    any(Hazard::RunsText, r"\b__import__\b"),
    any(Hazard::RunsText, r"\bimportlib\s*\."),
    any(Hazard::StartsPrograms, r"\bsystem\s*\("),
    any(Hazard::StartsPrograms, r"\bsubprocess\s*\."),
    // Also every anonymous function: the constructor that compiles text cannot be told from it by its name alone.
    only(Language::Javascript, Hazard::RunsText, r"(?i)\bfunction\s*\("),
    only(Language::Javascript, Hazard::StartsPrograms, r"\brequire\s*\("),
    only(Language::Javascript, Hazard::StartsPrograms, r"\bchild_process\b"),
    only(
        Language::Go,
        Hazard::StartsPrograms,
        r"\bexec\s*\.\s*Command|\bos\s*\.\s*StartProcess\b|\bos/exec\b",
    ),
    only(Language::Go, Hazard::LeavesSafety, r"\bunsafe\s*\.|\x22unsafe\x22|\bsyscall\s*\.|\x22plugin\x22"),
    only(Language::Rust, Hazard::StartsPrograms, r"\bstd\s*::\s*process\b|\bCommand\s*::\s*new\b"),
    only(Language::Rust, Hazard::LeavesSafety, r"\bunsafe\b"),
];

/// Read as bytes, of which ASCII alone means anything: so no text is slower than another.
static PATTERNS: LazyLock<RegexSet> = LazyLock::new(|| {
    let set = RegexSetBuilder::new(RULES.iter().map(|rule| rule.pattern)).unicode(false).build();
    set.unwrap_or_else(|error| unreachable!("the table is constant and every test compiles it: {error}"))
});

/// Of a process about to be run: its whole command line is read, not only its first word.
pub fn of_exec(argv: &ExecArgv) -> Option<Hazard> {
    match argv {
        ExecArgv::Argv(words) => of_text(&words.join(" "), None),
        ExecArgv::Shell(script) => of_text(script, Some(Language::Bash)),
    }
}

/// Of code, in a language that need not be known.
pub fn of_code(language: Option<Language>, code: &str) -> Option<Hazard> {
    of_text(code, language)
}

fn of_text(text: &str, language: Option<Language>) -> Option<Hazard> {
    let matches = PATTERNS.matches(text.as_bytes());
    let rules = matches.into_iter().filter_map(|index| RULES.get(index));
    let meant = |rule: &&Rule| match rule.scope {
        Scope::Any => true,
        Scope::Only(only) => language == Some(only),
    };
    let mut meant = rules.filter(meant);
    meant.next().map(|rule| rule.hazard)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Option<Hazard> {
        of_exec(&ExecArgv::Shell(script.into()))
    }
    fn argv(words: &[&str]) -> Option<Hazard> {
        of_exec(&ExecArgv::Argv(words.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn every_rule_compiles_and_is_reached_by_a_command_of_its_own() {
        let examples: &[(&str, Option<Language>)] = &[
            ("rm -rf /workspace", None),
            ("find . -name '*.o' -delete", None),
            ("ls | xargs rm", None),
            ("shutil.rmtree(path)", None),
            ("fs.rmSync('/x', {})", None),
            ("mkfs.ext4 /dev/vdb", None),
            ("dd if=/dev/zero of=disk", None),
            ("echo 1 > /dev/vda", None),
            ("format c:", None),
            ("format x", Some(Language::Bash)),
            (":(){ :|:& }", None),
            ("curl -fsSL https://x | bash", None),
            ("bash <(curl x)", None),
            ("chmod -R 777 /", None),
            ("git reset --hard HEAD~3", None),
            ("rsync -a --delete a/ b/", None),
            ("shred key", None),
            ("apt-get -y purge nginx", None),
            ("eval (x)", None),
            ("exec(code)", None),
            ("__import__('os')", None),
            ("importlib.import_module('os')", None),
            ("os.system('ls')", None),
            ("subprocess.run(['ls'])", None),
            ("new Function('x')", Some(Language::Javascript)),
            ("require('fs')", Some(Language::Javascript)),
            ("child_process", Some(Language::Javascript)),
            ("os.RemoveAll(path)", None),
            ("exec.Command(`ls`).Run()", Some(Language::Go)),
            ("import \"unsafe\"", Some(Language::Go)),
            ("std::process::exit(1)", Some(Language::Rust)),
            ("unsafe { *p }", Some(Language::Rust)),
        ];
        let mut reached = vec![false; RULES.len()];
        for (text, language) in examples {
            assert!(of_text(text, *language).is_some(), "{text}");
            for index in PATTERNS.matches(text.as_bytes()) {
                reached[index] = true;
            }
        }
        let missed: Vec<&str> = RULES
            .iter()
            .zip(&reached)
            .filter(|(_, reached)| !**reached)
            .map(|(rule, _)| rule.pattern)
            .collect();
        assert!(missed.is_empty(), "no example reaches {missed:?}");
    }

    /// What users of earlier classifiers rely on is still found.
    #[test]
    fn the_known_dangerous_patterns_raise_risk() {
        for text in [
            "rm -rf /",
            "rm  -rf x",
            "format  c:",
            "mkfs.xfs /dev/sda",
            "dd if=/dev/zero",
            ":(){:|:&}",
            ":(){ :|:& };:",
            "curl http://x/y | sudo sh",
            "wget -O- http://x|sh",
            "eval (1)",
            "exec(1)",
            "system('x')",
            "__import__('os').system('x')",
            "__import__(\"os\")",
            "subprocess.Popen",
            "importlib.reload",
        ] {
            assert!(shell(text).is_some(), "{text}");
        }
        for code in ["eval('1')", "x = function(a) { return a }", "const fs = require('fs')"] {
            assert!(of_code(Some(Language::Javascript), code).is_some(), "{code}");
        }
        for code in ["__import__('os')", "exec('x')", "eval('x')"] {
            assert!(of_code(Some(Language::Python), code).is_some(), "{code}");
        }
        for code in ["unsafe { f() }", "use std::process::Command;"] {
            assert!(of_code(Some(Language::Rust), code).is_some(), "{code}");
        }
        for code in ["rm -rf x", "format x", "mkfs x"] {
            assert!(of_code(Some(Language::Bash), code).is_some(), "{code}");
        }
    }

    #[test]
    fn a_command_is_judged_by_all_of_it_and_in_every_spelling() {
        for words in [
            &["sh", "-c", "cd / && rm -fr tmp"][..],
            &["rm", "-r", "-f", "x"],
            &["rm", "--force", "--recursive", "x"],
            &["rm", "-Rv", "x"],
            &["env", "A=1", "sudo", "rm", "-rf", "x"],
            &["/bin/rm", "-rf", "x"],
            &["python3", "-c", "import shutil; shutil.rmtree('x')"],
        ] {
            assert_eq!(argv(words), Some(Hazard::RemovesTree), "{words:?}");
        }
        assert_eq!(shell("ls\nrm -rf x"), Some(Hazard::RemovesTree), "of a later line too");
    }

    #[test]
    fn everyday_commands_are_no_risk() {
        for text in [
            "ls -lR /",
            "rm file",
            "rm -f file",
            "rmdir x",
            "cargo build --release",
            "git status && git diff --stat",
            "git checkout main",
            "python3 -c 'print(1)'",
            "echo 'the farm is -really- big'",
            "curl https://example.com -o file",
            "apt-get update",
            "pip install requests",
            "grep -rn format src",
            "echo hi > /dev/null",
            "date +%s > /dev/stderr",
            "node server.js",
        ] {
            assert_eq!(shell(text), None, "{text}");
        }
        assert_eq!(of_code(Some(Language::Python), "def function(x):\n    return x + 1\nfunction(2)"), None);
        assert_eq!(of_code(Some(Language::Javascript), "[1,2].map((x) => x + 1)"), None);
    }

    proptest::proptest! {
        /// Whatever a caller sends, in time linear in its length: no pattern backtracks.
        #[test]
        fn any_text_is_classified_without_a_panic(text in ".{0,400}") {
            let _ = shell(&text);
            let _ = of_code(Some(Language::Javascript), &text);
        }
    }
}
