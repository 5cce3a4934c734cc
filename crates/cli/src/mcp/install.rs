//! Telling clients of `offshoot mcp`.

use super::{
    clients::{Agent, Entry, Form, Surroundings},
    codex, ordered, place,
};
use crate::{
    context::Context,
    exit_code::Status,
    failure::{Result, host, usage},
};
use offshoot_types::{ErrorCode, Failure};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What the server is called in a client's file.
const NAME: &str = "offshoot";

/// The command that a client is to run.
#[derive(Debug, Clone, Serialize)]
struct Server {
    command: String,
    args: Vec<String>,
}

/// What became of one client, or would.
#[derive(Debug, Serialize)]
struct Report {
    client: &'static str,
    file: PathBuf,
    /// Whether there is one.
    exists: bool,
    /// What has to stand in it.
    content: String,
    /// Absent if it was only to be printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<Written>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Written {
    /// It says so already.
    Unchanged,
    Changed {
        /// Where the file is as it was.
        backup: Option<PathBuf>,
    },
}

pub fn run(context: &Context, client: Option<Agent>, write: bool) -> Result<Status> {
    let around = surroundings()?;
    let server = server(context)?;
    let Some(agent) = client else {
        let reports = Agent::ALL.map(|agent| report(agent, &around, &server));
        context.printer.answer(&reports, || overview(&reports))?;
        context.printer.note("`offshoot mcp install CLIENT` prints what to add, `--write` adds it");
        return Ok(Status::DONE);
    };
    let mut report = report(agent, &around, &server);
    if let Some(remark) = agent.remark() {
        context.printer.note(remark);
    }
    if write {
        report.written = Some(install(agent, &report.file, &server)?);
    }
    context.printer.answer(&report, || match &report.written {
        None => report.content.clone(),
        Some(_) => report.file.display().to_string(),
    })?;
    match &report.written {
        None => context.printer.note(&format!(
            "{} reads this from {}{}",
            agent.title(),
            report.file.display(),
            if report.exists { "" } else { ", which is not there yet" }
        )),
        Some(Written::Unchanged) => context.printer.note("it says so already"),
        Some(Written::Changed { backup }) => {
            if let Some(backup) = backup {
                context.printer.note(&format!("as it was: {}", backup.display()));
            }
            context.printer.note(&format!("start {} anew", agent.title()));
        }
    }
    Ok(Status::DONE)
}

fn surroundings() -> Result<Surroundings> {
    let home = std::env::home_dir()
        .filter(|home| home.is_absolute())
        .ok_or_else(|| usage("cannot tell where clients keep their files: HOME is not set"))?;
    let config_home = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    Ok(Surroundings { home, config_home })
}

/// Clients have surroundings of their own, so all that is not the default stands in the command.
fn server(context: &Context) -> Result<Server> {
    let exe = std::env::current_exe().map_err(|error| host("cannot find our own program", &error))?;
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            usage(format!("`{}` cannot be written into a client's file: it is not UTF-8", path.display()))
        })
    };
    let mut args = vec!["mcp".to_owned()];
    let usual = std::env::home_dir().map(|home| home.join(".local/share/offshoot"));
    if usual.as_deref() != Some(&context.paths.state_dir) {
        args.extend(["--state-dir".into(), text(&context.paths.state_dir)?]);
    }
    Ok(Server { command: text(&exe)?, args })
}

fn entry(server: &Server, entry: Entry) -> Value {
    let Server { command, args } = server;
    match entry {
        Entry::Plain => json!({ "command": command, "args": args }),
        Entry::Typed => json!({ "type": "stdio", "command": command, "args": args }),
        Entry::Custom => json!({ "source": "custom", "command": command, "args": args, "env": {} }),
    }
}

fn report(agent: Agent, around: &Surroundings, server: &Server) -> Report {
    let file = agent.file(around);
    let content = match agent.form() {
        Form::Json { servers, entry: kind } => {
            let document = json!({ servers: { NAME: entry(server, kind) } });
            serde_json::to_string_pretty(&document).expect("a document of texts")
        }
        Form::Toml => codex::table(NAME, &server.command, &server.args),
    };
    Report { client: agent.word(), exists: file.exists(), file, content, written: None }
}

fn overview(reports: &[Report]) -> String {
    let width = reports.iter().map(|report| report.client.len()).max().unwrap_or_default();
    let line = |report: &Report| {
        let absent = if report.exists { "" } else { " (not there)" };
        format!("{:width$}  {}{absent}", report.client, report.file.display())
    };
    reports.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn install(agent: Agent, path: &Path, server: &Server) -> Result<Written> {
    let document = place::read(path)?;
    let unsuited = |cause: String| {
        Failure {
            cause: Some(cause),
            ..Failure::new(
                ErrorCode::InvalidArgument,
                format!("`{}` is not changed: it is not plain enough", path.display()),
            )
        }
        .hint(format!("add by hand what `offshoot mcp install {}` prints", agent.word()))
    };
    let changed = match agent.form() {
        Form::Json { servers, entry: kind } => {
            ordered::with_server(&document, servers, NAME, &entry(server, kind))
                .map_err(|error| unsuited(error.to_string()))?
        }
        Form::Toml => {
            let table = codex::table(NAME, &server.command, &server.args);
            codex::with_table(&document, NAME, &table).map_err(|error| unsuited(error.to_string()))?
        }
    };
    Ok(match changed {
        None => Written::Unchanged,
        Some(text) => Written::Changed { backup: place::replace(path, &text)? },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn server() -> Server {
        Server { command: "/usr/bin/offshoot".into(), args: vec!["mcp".into()] }
    }

    fn around(home: &Path) -> Surroundings {
        Surroundings { home: home.into(), config_home: None }
    }

    #[test]
    fn every_client_is_told_once_and_keeps_what_it_had() {
        let home = tempfile::tempdir().unwrap();
        for agent in Agent::ALL {
            let file = agent.file(&around(home.path()));
            let tell = || install(agent, &file, &server()).unwrap_or_else(|stop| panic!("{stop:?}"));
            assert_eq!(tell(), Written::Changed { backup: None }, "{agent:?}");
            assert_eq!(tell(), Written::Unchanged, "{agent:?}");
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.contains("/usr/bin/offshoot") && text.contains("\"mcp\""), "{text}");
            // What is printed is what is written.
            let printed = report(agent, &around(home.path()), &server()).content;
            match agent.form() {
                Form::Json { .. } => assert_eq!(
                    serde_json::from_str::<Value>(&printed).unwrap(),
                    serde_json::from_str::<Value>(&text).unwrap()
                ),
                Form::Toml => assert_eq!(printed, text),
            }
        }
    }

    #[test]
    fn an_older_entry_is_replaced_and_the_file_set_aside() {
        let home = tempfile::tempdir().unwrap();
        let file = Agent::Cursor.file(&around(home.path()));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let before = r#"{"mcpServers": {"offshoot": {"command": "/old"}, "other": {"url": "x"}}}"#;
        fs::write(&file, before).unwrap();
        let Ok(Written::Changed { backup: Some(backup) }) = install(Agent::Cursor, &file, &server()) else {
            panic!("it changes");
        };
        assert_eq!(fs::read_to_string(backup).unwrap(), before);
        let after: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(after["mcpServers"]["offshoot"]["command"], "/usr/bin/offshoot");
        assert_eq!(after["mcpServers"]["other"]["url"], "x");
    }

    #[test]
    fn settings_with_comments_are_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let file = Agent::Zed.file(&around(home.path()));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "// mine\n{}").unwrap();
        assert!(install(Agent::Zed, &file, &server()).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "// mine\n{}");
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }
}
