//! What a request means in this VM: program candidates, environment, directory, limits.

use crate::{entries::at_home, fault::invalid, users::User};
use offshoot_guest_proto::message::{ExecCommand, ExecStart, GuestError, ResourceLimits};
use rustix::process::{Resource, Rlimit, getrlimit};
use std::{collections::BTreeMap, ffi::CString};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SHELL: &str = "/bin/bash";
/// What login sessions get, as programs that use `select` need; the agent's own limit is far higher. A program may
/// raise it to the agent's maximum.
const OPEN_FILES: u64 = 1024;

/// What a process becomes. All of it is made before the process, which must not allocate.
#[derive(Debug)]
pub struct Command {
    /// Paths tried in turn, as `execvp` would.
    pub programs: Vec<CString>,
    pub argv: Vec<CString>,
    pub environment: Vec<CString>,
    pub directory: Directory,
    pub limits: Vec<(Resource, Rlimit)>,
}

#[derive(Debug)]
pub enum Directory {
    /// The caller's choice: must exist.
    Chosen(CString),
    /// The user's home, or `/` where that cannot be entered.
    Home(CString),
}

impl Command {
    pub fn resolve(start: &ExecStart, user: &User) -> Result<Self, GuestError> {
        let environment = environment(&start.env, user, start.pty.is_some())?;
        let path = environment.get("PATH").map_or("", String::as_str);
        let argv = match &start.command {
            ExecCommand::Argv(argv) if argv.is_empty() || argv[0].is_empty() => {
                return Err(invalid("argv: no program named"));
            }
            ExecCommand::Argv(argv) => {
                argv.iter().map(|word| c_string("argv", word)).collect::<Result<_, _>>()?
            }
            ExecCommand::Shell(script) => {
                vec![c_string("shell", SHELL)?, c_string("shell", "-c")?, c_string("script", script)?]
            }
        };
        let programs = match &start.command {
            ExecCommand::Argv(argv) => candidates(&argv[0], path)?,
            ExecCommand::Shell(_) => vec![c_string("shell", SHELL)?],
        };
        let directory = match &start.cwd {
            Some(path) => Directory::Chosen(c_string("working directory", &at_home(path, &user.home)?)?),
            None => Directory::Home(c_string("home", &user.home)?),
        };
        let environment = environment
            .iter()
            .map(|(key, value)| c_string("environment", &format!("{key}={value}")))
            .collect::<Result<_, _>>()?;
        Ok(Self { programs, argv, environment, directory, limits: limits(&start.limits) })
    }
}

fn environment(
    wanted: &BTreeMap<String, String>,
    user: &User,
    terminal: bool,
) -> Result<BTreeMap<String, String>, GuestError> {
    let mut environment: BTreeMap<String, String> = [
        ("PATH", PATH),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
        ("LANG", "C.UTF-8"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    if terminal {
        environment.insert("TERM".to_owned(), "xterm-256color".to_owned());
    }
    for (key, value) in wanted {
        if key.is_empty() || key.contains('=') {
            return Err(invalid(format!("environment {key:?}: not a variable's name")));
        }
        environment.insert(key.clone(), value.clone());
    }
    Ok(environment)
}

/// Where `execvp` would look. An empty element of PATH means the working directory, as it always has.
fn candidates(program: &str, path: &str) -> Result<Vec<CString>, GuestError> {
    if program.contains('/') {
        return Ok(vec![c_string("program", program)?]);
    }
    path.split(':')
        .map(|directory| match directory {
            "" => c_string("program", program),
            directory => c_string("program", &format!("{directory}/{program}")),
        })
        .collect()
}

fn limits(wanted: &ResourceLimits) -> Vec<(Resource, Rlimit)> {
    let both = |value: u64| Rlimit { current: Some(value), maximum: Some(value) };
    let usual = || Rlimit { current: Some(OPEN_FILES), maximum: getrlimit(Resource::Nofile).maximum };
    let mut limits = vec![(Resource::Nofile, wanted.open_files.map_or_else(usual, both))];
    let optional = [
        (Resource::As, wanted.address_space),
        (Resource::Fsize, wanted.file_size),
        (Resource::Cpu, wanted.cpu_seconds),
    ];
    limits.extend(optional.into_iter().filter_map(|(resource, value)| Some((resource, both(value?)))));
    limits
}

fn c_string(what: &str, text: &str) -> Result<CString, GuestError> {
    CString::new(text).map_err(|_| invalid(format!("{what}: contains a NUL byte")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::FileIdentity;

    fn user() -> User {
        User {
            name: "user".into(),
            home: "/home/user".into(),
            shell: "/bin/bash".into(),
            identity: FileIdentity { uid: 1000, gid: 1000, groups: vec![1000] },
        }
    }

    fn start(command: ExecCommand) -> ExecStart {
        ExecStart {
            exec: [0; 16],
            command,
            env: BTreeMap::new(),
            cwd: None,
            user: "user".into(),
            pty: None,
            stdin: false,
            timeout_ms: None,
            max_output: None,
            limits: ResourceLimits::default(),
        }
    }

    #[test]
    fn a_bare_name_is_looked_up_in_the_path_the_program_will_see() {
        let mut request = start(ExecCommand::Argv(vec!["tool".into()]));
        request.env.insert("PATH".into(), "/a:/b".into());
        let command = Command::resolve(&request, &user()).unwrap();
        assert_eq!(command.programs, [c"/a/tool".to_owned(), c"/b/tool".to_owned()]);
        assert!(command.environment.contains(&c"PATH=/a:/b".to_owned()));
        assert!(command.environment.contains(&c"HOME=/home/user".to_owned()));
    }

    #[test]
    fn a_terminal_has_a_type_and_pipes_have_none() {
        let mut request = start(ExecCommand::Shell("true".into()));
        let has_term =
            |command: &Command| command.environment.iter().any(|e| e.to_bytes().starts_with(b"TERM="));
        assert!(!has_term(&Command::resolve(&request, &user()).unwrap()));
        request.pty = Some(offshoot_guest_proto::message::PtySize { rows: 1, cols: 1 });
        assert!(has_term(&Command::resolve(&request, &user()).unwrap()));
    }

    #[test]
    fn a_directory_may_be_named_as_in_a_shell() {
        for (cwd, expected) in [("/srv", c"/srv"), ("sub", c"/home/user/sub"), ("~/a", c"/home/user/a")] {
            let request = ExecStart { cwd: Some(cwd.into()), ..start(ExecCommand::Shell(String::new())) };
            let command = Command::resolve(&request, &user()).unwrap();
            assert!(matches!(&command.directory, Directory::Chosen(path) if path.as_c_str() == expected));
        }
    }

    #[test]
    fn what_the_kernel_could_not_take_is_refused_by_name() {
        let mut requests = vec![
            start(ExecCommand::Argv(vec![])),
            start(ExecCommand::Argv(vec![String::new()])),
            start(ExecCommand::Argv(vec!["a\0b".into()])),
            start(ExecCommand::Shell("a\0b".into())),
        ];
        for (key, value) in [("", "x"), ("A=B", "x"), ("A", "x\0y")] {
            let mut request = start(ExecCommand::Shell(String::new()));
            request.env.insert(key.into(), value.into());
            requests.push(request);
        }
        requests.push(ExecStart { cwd: Some("~other".into()), ..start(ExecCommand::Shell(String::new())) });
        for request in requests {
            let error = Command::resolve(&request, &user()).unwrap_err();
            assert_eq!(
                error.kind,
                offshoot_guest_proto::message::GuestErrorKind::InvalidArgument,
                "{request:?}"
            );
        }
    }
}
