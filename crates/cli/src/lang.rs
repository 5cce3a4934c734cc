//! Languages `offshoot run` knows: from code or a file to the command that runs it inside a VM.

use clap::ValueEnum;
use std::path::Path;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    #[value(alias = "py", alias = "python3")]
    Python,
    #[value(alias = "js", alias = "node")]
    Javascript,
    #[value(alias = "sh")]
    Bash,
    /// In image `full`.
    #[value(alias = "golang")]
    Go,
    /// In image `full`.
    #[value(alias = "rs")]
    Rust,
}

/// How a piece of code becomes a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// The code is an argument of the interpreter.
    Inline(Vec<String>),
    /// The code must first be a file of this name inside the VM.
    File { name: String },
}

impl Language {
    /// By the extension of a file, if that says it.
    pub fn of_file(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "py" => Some(Self::Python),
            "js" | "mjs" | "cjs" => Some(Self::Javascript),
            "sh" | "bash" => Some(Self::Bash),
            "go" => Some(Self::Go),
            "rs" => Some(Self::Rust),
            _ => None,
        }
    }

    /// How to run `code` given on the command line.
    pub fn plan(self, code: &str) -> Plan {
        let inline =
            |interpreter: &str, flag: &str| Plan::Inline(vec![interpreter.into(), flag.into(), code.into()]);
        match self {
            Self::Python => inline("python3", "-c"),
            Self::Javascript => inline("node", "-e"),
            Self::Bash => inline("bash", "-c"),
            Self::Go => Plan::File { name: "main.go".into() },
            Self::Rust => Plan::File { name: "main.rs".into() },
        }
    }

    /// The command that runs the file at `path` inside the VM.
    pub fn run_file(self, path: &str) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match self {
            Self::Python => words(&["python3", path]),
            Self::Javascript => words(&["node", path]),
            Self::Bash => words(&["bash", path]),
            Self::Go => words(&["go", "run", path]),
            // There is no `rustc run`: compile beside the source, then become the program.
            Self::Rust => words(&[
                "sh",
                "-c",
                "source=$1; shift; rustc -o \"$source.out\" \"$source\" && exec \"$source.out\" \"$@\"",
                "sh",
                path,
            ]),
        }
    }
}

/// What stands between `-c CODE` and its arguments. Node would take an argument such as `-v` for its own.
pub fn code_arguments(language: Language, arguments: &[String]) -> Vec<String> {
    match (language, arguments) {
        (_, []) => Vec::new(),
        (Language::Javascript, given) => {
            std::iter::once("--".to_owned()).chain(given.iter().cloned()).collect()
        }
        // The first argument after `bash -c CODE` is `$0`, not `$1`.
        (Language::Bash, given) => std::iter::once("bash".to_owned()).chain(given.iter().cloned()).collect(),
        (_, given) => given.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_names_the_language() {
        assert_eq!(Language::of_file(Path::new("a/b.py")), Some(Language::Python));
        assert_eq!(Language::of_file(Path::new("x.mjs")), Some(Language::Javascript));
        assert_eq!(Language::of_file(Path::new("Makefile")), None);
        assert_eq!(Language::of_file(Path::new(".py")), None);
    }

    #[test]
    fn code_is_passed_as_one_argument_whatever_it_contains() {
        let Plan::Inline(argv) = Language::Bash.plan("echo \"$1\" 'x'; -c") else {
            panic!("bash runs code inline")
        };
        assert_eq!(argv, ["bash", "-c", "echo \"$1\" 'x'; -c"]);
        assert_eq!(Language::Go.plan("package main"), Plan::File { name: "main.go".into() });
    }

    #[test]
    fn arguments_reach_the_code_as_its_first_argument() {
        let given = ["-v".to_owned(), "b".to_owned()];
        assert_eq!(code_arguments(Language::Python, &given), ["-v", "b"]);
        assert_eq!(code_arguments(Language::Javascript, &given), ["--", "-v", "b"]);
        assert_eq!(code_arguments(Language::Bash, &given), ["bash", "-v", "b"]);
        assert!(code_arguments(Language::Javascript, &[]).is_empty());
    }
}
