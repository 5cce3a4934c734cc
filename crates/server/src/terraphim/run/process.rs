//! Code in a process of its own: from a file of a new directory, compiled first where its language wants that.

use super::{Outputs, Piece, Ran, Site, cancelled, overtime};
use crate::terraphim::settings::{TIMEOUT, USER, scaled};
use bytes::Bytes;
use futures::stream;
use jiff::Timestamp;
use offshoot_api::{
    ClientError,
    client::ExecEvent,
    v1::{ExecLimits, ExecRequest, ExitStatus, MakeDirectory, RemoveFile, Stream, WriteQuery},
};
use offshoot_code::Language;
use offshoot_types::{ErrorCode, Failure, VmRef};
use serde_json::json;
use std::{
    path::Path,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Runs the compiler, or says by `$1`, which nobody else knows, that there is none.
const COMPILE: &str = r#"command -v "$2" >/dev/null 2>&1 || { echo "$1" >&2; exit 127; }; shift; exec "$@""#;

/// Where the file goes by which the code is known, and what compiles and runs it there.
struct Way {
    file: &'static str,
    compile: Option<&'static [&'static str]>,
    run: &'static [&'static str],
}

const fn way(language: Language) -> Way {
    match language {
        Language::Python => Way { file: "main.py", compile: None, run: &["python3"] },
        Language::Javascript => Way { file: "main.js", compile: None, run: &["node"] },
        Language::Bash => Way { file: "main.sh", compile: None, run: &["bash"] },
        Language::Go => {
            Way { file: "main.go", compile: Some(&["go", "build", "-o", "program", "main.go"]), run: &[] }
        }
        Language::Rust => Way {
            file: "main.rs",
            compile: Some(&["rustc", "--edition", "2021", "-o", "program", "main.rs"]),
            run: &[],
        },
    }
}

pub async fn run(piece: &Piece, site: Site<'_>) -> Result<Ran, Failure> {
    let directory = format!("/tmp/offshoot-{}", Uuid::new_v4().simple());
    let ran = within(piece, site, &directory).await;
    let request = RemoveFile { path: directory, recursive: true, user: None };
    match site.asker.client.remove_file(&VmRef::Id(site.vm.id), &request).await {
        // What the code did is what counts; a directory in `/tmp` of its VM is not.
        Err(error) if ran.is_ok() => tracing::info!(%error, "the directory of some code was left"),
        _ => {}
    }
    ran
}

async fn within(piece: &Piece, site: Site<'_>, directory: &str) -> Result<Ran, Failure> {
    let way = way(piece.language);
    let (client, vm) = (&site.asker.client, VmRef::Id(site.vm.id));
    let path = Path::new(directory).join(way.file).display().to_string();
    let user = Some(USER.to_owned());
    let make = MakeDirectory {
        path: directory.into(),
        mode: Some(0o700),
        user: user.clone(),
        ..MakeDirectory::default()
    };
    client.make_directory(&vm, &make).await.map_err(ClientError::into_failure)?;
    let write =
        WriteQuery { path: path.clone(), mode: Some(0o600), exclusive: true, user, ..WriteQuery::default() };
    let content = stream::iter([Ok(Bytes::from(piece.code.clone()))]);
    client.write_file(&vm, &write, content).await.map_err(ClientError::into_failure)?;

    let mut outputs = Outputs::default();
    if let Some(compile) = way.compile {
        let limit = scaled(TIMEOUT, piece.language, site.vm);
        let mark = Uuid::new_v4().to_string();
        let argv = ["/bin/sh", "-c", COMPILE, "compile", &mark].into_iter().chain(compile.iter().copied());
        let ended = Process { argv: argv.map(Into::into).collect(), cwd: Some(directory.into()), limit }
            .follow(&mut outputs, site)
            .await?;
        if ended.exit_code == 127 && outputs.stderr.text("").trim() == mark {
            return Err(no_compiler(piece.language, site));
        }
        if ended.exit_code != 0 || ended.error.is_some() {
            let why = format!("the {} program does not compile", piece.language);
            let mut ran = ended.told(outputs);
            ran.error.get_or_insert(why);
            return Ok(ran);
        }
    }
    let mut argv: Vec<String> = way.run.iter().map(ToString::to_string).collect();
    argv.push(if way.compile.is_some() { format!("{directory}/program") } else { path });
    let process = Process { argv, cwd: piece.working_dir.clone(), limit: piece.limit(site.vm) };
    let ended = process.follow(&mut outputs, site).await?;
    Ok(ended.told(outputs))
}

fn no_compiler(language: Language, site: Site<'_>) -> Failure {
    let image = &site.vm.image;
    Failure::new(
        ErrorCode::Unsupported,
        format!(
            "UnsupportedLanguage: image `{image}` of VM `{}` has no compiler for {language}",
            site.vm.name
        ),
    )
    .hint("image `full` has: `offshoot image build full`, then use a VM of `vm_type` `full`")
}

struct Process {
    argv: Vec<String>,
    cwd: Option<String>,
    limit: Duration,
}

struct Ended {
    execution: String,
    exit_code: i32,
    error: Option<String>,
    started: Timestamp,
    took: Duration,
}

impl Ended {
    fn told(self, outputs: Outputs) -> Ran {
        let Self { execution, exit_code, error, started, took } = self;
        Ran { execution, exit_code, outputs, value: None, error, started, took }
    }
}

impl Process {
    /// Runs it to its end. A caller that cancels, or is gone, kills its whole tree.
    async fn follow(self, outputs: &mut Outputs, site: Site<'_>) -> Result<Ended, Failure> {
        let Site { asker, vm, listener, cancel } = site;
        let request = ExecRequest {
            argv: Some(self.argv),
            cwd: self.cwd,
            user: Some(USER.into()),
            limits: ExecLimits { timeout_ms: Some(self.limit.as_millis() as u64), ..ExecLimits::default() },
            ..ExecRequest::default()
        };
        let (started, begun) = (Timestamp::now(), Instant::now());
        let opening = asker.client.exec(&VmRef::Id(vm.id), &request).await;
        let (mut input, mut events) = opening.map_err(ClientError::into_failure)?.split();
        let (mut execution, mut killed) = (String::new(), false);
        let ended = loop {
            let event = tokio::select! {
                biased;
                () = cancel.cancelled(), if !killed => {
                    killed = true;
                    input.kill().await.map_err(ClientError::into_failure)?;
                    continue;
                }
                event = events.next() => event.map_err(ClientError::into_failure)?,
            };
            match event {
                Some(ExecEvent::Started(started)) => {
                    execution = started.operation.to_string();
                    listener.say("execution_started", json!({ "execution_id": execution })).await;
                }
                Some(ExecEvent::Output(Stream::Stdout, data)) => outputs.stdout(&data, listener).await,
                Some(ExecEvent::Output(Stream::Stderr, data)) => outputs.stderr(&data, listener).await,
                Some(ExecEvent::Ended(ended)) => break ended,
                Some(ExecEvent::Progress(_) | ExecEvent::Lost(_)) => {}
                Some(ExecEvent::Detached) | None => {
                    return Err(Failure::new(ErrorCode::Interrupted, "the process is no longer followed"));
                }
            }
        };
        outputs.end(listener).await;
        let (exit_code, error) = match ended.status {
            ExitStatus::TimedOut => overtime(self.limit),
            _ if killed => cancelled(),
            ExitStatus::Exited { code } => (code, String::new()),
            ExitStatus::Signaled { signal } => (128 + signal, format!("ended by signal {signal}")),
        };
        let error = (!error.is_empty()).then_some(error);
        Ok(Ended { execution, exit_code, error, started, took: begun.elapsed() })
    }
}
