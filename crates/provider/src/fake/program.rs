//! What the fake guest's processes can do: a shell's grammar in small, and a few builtins.
//!
//! ```text
//! script  = command { (";" | "&&" | "||" | newline) command }      words may be 'quoted' or "quoted"
//! command = word { word } [ (">" | ">>") file ]
//! ```

use super::{
    bytes,
    world::{MACHINE_ID, World},
};
use crate::Exit;
use offshoot_guest_proto::message::{ExecCommand, GuestError, GuestErrorKind};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, time::Duration};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Builtin {
    Exit(Option<i32>),
    /// `true`, `false`.
    Status(i32),
    Print(#[serde(with = "bytes")] Vec<u8>),
    /// `cat` without a file: input to output.
    Copy,
    Sleep(Duration),
    Cat(String),
    Remove(String),
    MakeDirectory(String),
    Touch(String),
    Exists(String),
    /// `od ... /dev/urandom`: sixteen bytes of the kernel's random numbers in hexadecimal.
    Random,
    /// `shuf -i LOW-HIGH -n 1`.
    Shuffle(u64, u64),
    Hostname,
    /// The guest's kernel panics.
    Panic,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum When {
    Always,
    Succeeded,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Command {
    when: When,
    pub builtin: Builtin,
    /// Where standard output goes instead, and whether it is added there.
    to: Option<(String, bool)>,
}

impl Command {
    /// Whether it is to run after a command that ended with `status`.
    pub fn wanted(&self, status: i32) -> bool {
        match self.when {
            When::Always => true,
            When::Succeeded => status == 0,
            When::Failed => status != 0,
        }
    }

    /// Runs what never waits; standard output, standard error and status.
    pub fn run(&self, world: &World) -> (Vec<u8>, Vec<u8>, i32) {
        let files = &world.files;
        let done = |result: Result<Vec<u8>, GuestError>| match result {
            Ok(output) => (output, Vec::new(), 0),
            Err(error) => (Vec::new(), format!("{}\n", error.message).into_bytes(), 1),
        };
        let (output, error, status) = match &self.builtin {
            Builtin::Status(status) => (Vec::new(), Vec::new(), *status),
            Builtin::Print(text) => (text.clone(), Vec::new(), 0),
            Builtin::Cat(path) => done(files.read_whole(path)),
            Builtin::Remove(path) => {
                // As `rm -rf`: what is not there is no failure.
                let gone = files.remove(path, true);
                done(
                    gone.or_else(|error| match error.kind {
                        GuestErrorKind::NotFound => Ok(()),
                        _ => Err(error),
                    })
                    .map(|()| Vec::new()),
                )
            }
            Builtin::MakeDirectory(path) => {
                done(files.make_directory(path, true, 0o755).map(|()| Vec::new()))
            }
            Builtin::Touch(path) => done(files.write_whole(path, b"", true).map(|()| Vec::new())),
            Builtin::Exists(path) => (Vec::new(), Vec::new(), i32::from(!files.exists(path))),
            Builtin::Random => (hex(&world.random().draw()), Vec::new(), 0),
            Builtin::Shuffle(low, high) => {
                (format!("{}\n", world.random().between(*low, *high)).into_bytes(), Vec::new(), 0)
            }
            Builtin::Hostname => (format!("{}\n", world.hostname()).into_bytes(), Vec::new(), 0),
            Builtin::Panic => {
                let line = "Kernel panic - not syncing: asked for".to_owned();
                world.end(Exit::GuestPanic { line });
                (Vec::new(), Vec::new(), 1)
            }
            Builtin::Exit(_) | Builtin::Copy | Builtin::Sleep(_) => (Vec::new(), Vec::new(), 0),
        };
        match &self.to {
            Some((path, append)) if status == 0 => {
                done(files.write_whole(path, &output, *append).map(|()| Vec::new()))
            }
            _ => (output, error, status),
        }
    }
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    text.into_bytes()
}

/// The commands of a start request. `stdin` tells whether there will be input.
pub(super) fn parse(command: &ExecCommand, stdin: bool) -> Result<VecDeque<Command>, GuestError> {
    let mut commands: VecDeque<Command> = match command {
        ExecCommand::Shell(script) => parse_script(script)?,
        ExecCommand::Argv(words) => match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [shell, "-c" | "-lc", script, ..] | [shell, "-l", "-c", script, ..]
                if matches!(base_name(shell), "sh" | "bash") =>
            {
                parse_script(script)?
            }
            // One that is typed into says what it was told.
            [shell, "-i", "-l"] if matches!(base_name(shell), "sh" | "bash") => parse_script("cat")?,
            words => VecDeque::from([Command { when: When::Always, builtin: builtin(words)?, to: None }]),
        },
    };
    if !stdin {
        for command in &mut commands {
            if command.builtin == Builtin::Copy {
                command.builtin = Builtin::Status(0);
            }
        }
    }
    Ok(commands)
}

fn parse_script(script: &str) -> Result<VecDeque<Command>, GuestError> {
    let mut commands = VecDeque::new();
    let (mut when, mut words) = (When::Always, Vec::new());
    for token in tokens(script).into_iter().chain([Token::Operator(";")]) {
        match token {
            Token::Word(word) => words.push(Token::Word(word)),
            Token::Operator(redirect @ (">" | ">>")) => words.push(Token::Operator(redirect)),
            Token::Operator(operator) => {
                if !words.is_empty() {
                    commands.push_back(one(when, std::mem::take(&mut words))?);
                }
                when = match operator {
                    "&&" => When::Succeeded,
                    "||" => When::Failed,
                    _ => When::Always,
                };
            }
        }
    }
    Ok(commands)
}

fn one(when: When, tokens: Vec<Token>) -> Result<Command, GuestError> {
    let (mut words, mut to, mut tokens) = (Vec::new(), None, tokens.into_iter());
    while let Some(token) = tokens.next() {
        match token {
            Token::Word(word) => words.push(word),
            Token::Operator(operator) => match tokens.next() {
                Some(Token::Word(path)) => to = Some((path, operator == ">>")),
                _ => return Err(unknown("a redirection without a file")),
            },
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(Command { when, builtin: builtin(&words)?, to })
}

enum Token {
    Word(String),
    Operator(&'static str),
}

fn tokens(script: &str) -> Vec<Token> {
    const OPERATORS: [(&str, &str); 6] =
        [("&&", "&&"), ("||", "||"), (">>", ">>"), (">", ">"), (";", ";"), ("\n", ";")];
    let (mut tokens, mut word, mut rest) = (Vec::new(), None::<String>, script);
    while let Some(next) = rest.chars().next() {
        if let Some((text, operator)) = OPERATORS.iter().find(|(text, _)| rest.starts_with(text)) {
            tokens.extend(word.take().map(Token::Word));
            tokens.push(Token::Operator(operator));
            rest = &rest[text.len()..];
            continue;
        }
        rest = &rest[next.len_utf8()..];
        match next {
            '\'' | '"' => {
                let (quoted, after) = rest.split_once(next).unwrap_or((rest, ""));
                word.get_or_insert_default().push_str(quoted);
                rest = after;
            }
            space if space.is_whitespace() => tokens.extend(word.take().map(Token::Word)),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    tokens.extend(word.take().map(Token::Word));
    tokens
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn unknown(what: &str) -> GuestError {
    let message = format!("execute {what:?}: the fake guest has no such program");
    GuestError { kind: GuestErrorKind::ExecFailed, message }
}

fn builtin(words: &[&str]) -> Result<Builtin, GuestError> {
    let Some((program, arguments)) = words.split_first() else { return Err(unknown("")) };
    let number = |text: &str| text.parse::<f64>().unwrap_or(0.0);
    Ok(match (base_name(program), arguments) {
        ("true" | ":" | "sync", _) => Builtin::Status(0),
        ("false", _) => Builtin::Status(1),
        ("exit", []) => Builtin::Exit(None),
        ("exit", [status, ..]) => Builtin::Exit(Some(number(status) as i32)),
        ("echo", ["-n", words @ ..]) => Builtin::Print(words.join(" ").into_bytes()),
        ("echo", words) => Builtin::Print(format!("{}\n", words.join(" ")).into_bytes()),
        ("cat", []) => Builtin::Copy,
        ("cat", ["/dev/urandom"]) => return Err(unknown("cat /dev/urandom")),
        ("cat", [path]) => Builtin::Cat((*path).to_owned()),
        ("sleep", [time, ..]) => Builtin::Sleep(Duration::from_secs_f64(number(time).clamp(0.0, 1e9))),
        ("rm", ["-r" | "-f" | "-rf" | "-fr", path] | [path]) => Builtin::Remove((*path).to_owned()),
        ("mkdir", ["-p", path] | [path]) => Builtin::MakeDirectory((*path).to_owned()),
        ("touch", [path]) => Builtin::Touch((*path).to_owned()),
        ("test", ["-e" | "-f" | "-d", path]) => Builtin::Exists((*path).to_owned()),
        ("od", [.., "/dev/urandom"]) => Builtin::Random,
        ("shuf", ["-i", range, ..]) => {
            let (low, high) = range.split_once('-').unwrap_or((range, range));
            Builtin::Shuffle(number(low) as u64, number(high) as u64)
        }
        ("hostname", []) => Builtin::Hostname,
        ("machine-id", []) => Builtin::Cat(MACHINE_ID.to_owned()),
        ("kernel-panic", []) => Builtin::Panic,
        _ => return Err(unknown(&words.join(" "))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_commands_with_conditions_quotes_and_redirections() {
        let script = "echo 'a;  b' >>/tmp/x && rm -rf \"/workspace\" || exit 3; true\nsleep 0.5";
        let commands = parse(&ExecCommand::Shell(script.into()), false).unwrap();
        let seen: Vec<_> = commands.iter().map(|c| (c.when, c.builtin.clone(), c.to.clone())).collect();
        assert_eq!(
            seen,
            [
                (When::Always, Builtin::Print(b"a;  b\n".to_vec()), Some(("/tmp/x".into(), true))),
                (When::Succeeded, Builtin::Remove("/workspace".into()), None),
                (When::Failed, Builtin::Exit(Some(3)), None),
                (When::Always, Builtin::Status(0), None),
                (When::Always, Builtin::Sleep(Duration::from_millis(500)), None),
            ]
        );
        assert!(parse(&ExecCommand::Shell("true; nonsense".into()), false).is_err());
    }
}
