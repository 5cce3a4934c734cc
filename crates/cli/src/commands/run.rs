use crate::{
    context::Context,
    duration::Span,
    exit_code::Status,
    failure::{Result, Stop, file, usage},
    lang::{self, Language, Plan},
    options::{ProcessOptions, VmOptions},
    session::{self, Program, Sink, Stdin},
    terminal,
};
use offshoot_api::v1::{Output, RunFile, RunRequest};
use std::path::{Path, PathBuf};
use tokio::{fs::File, io::AsyncReadExt};

const EXAMPLES: &str = "Examples:
  offshoot run -c 'import platform; print(platform.release())'
  offshoot run --lang javascript -c 'console.log(6 * 7)'
  offshoot run script.py -- --some argument
  offshoot run --timeout 30s --memory 512M -- sh -c 'uname -a; exit 7'

The first Ctrl-C goes to the program as a signal; if it is still there after 5 s, its whole tree is killed. \
The VM goes with it in any case.";

/// Larger files do not fit the request.
const MAX_FILE: u64 = 512 * 1024;
/// Where code that must be a file is put inside the VM.
const PLACE: &str = "/tmp/offshoot-run";

/// Run code in a fresh VM, which is removed afterwards
///
/// Ends with the program's own status: 128 + N after signal N, 124 when --timeout has passed, 125 for any failure
/// that is not the program's.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = "offshoot run [OPTIONS] <-c CODE | FILE | -- ARGV...>")]
pub struct Args {
    /// Code to run, in the language of --lang
    #[arg(short, long, value_name = "CODE", conflicts_with = "file")]
    code: Option<String>,
    /// A local file to run; its extension tells the language
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// A program and its arguments; after -c or FILE, arguments for that
    #[arg(value_name = "ARGV", last = true, required_unless_present_any = ["code", "file"])]
    argv: Vec<String>,
    /// Language of the code [default: python, or by the file's extension]
    #[arg(short, long, value_name = "LANGUAGE", value_enum)]
    lang: Option<Language>,
    /// Kill the program, and all it started, after this long [default: no limit]
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Span>,
    /// Leave the VM running, and say its name on standard error
    #[arg(long)]
    keep: bool,
    /// Do not read our standard input; the program's is empty
    #[arg(short = 'n', long)]
    no_stdin: bool,
    #[command(flatten)]
    vm: VmOptions,
    #[command(flatten)]
    process: ProcessOptions,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let json = context.printer.is_json();
    // Opening a pipe waits for whoever writes to it.
    let Job { argv, files } = context.interrupt.race(job(&args)).await.map_err(|_| Stop::Interrupted)??;
    // In the background, reading a terminal would stop the whole job.
    let forward = !args.no_stdin && (!terminal::stdin_is_terminal() || terminal::stdin_is_ours());
    let mut exec = args.process.request(argv, args.timeout, json);
    exec.stdin = forward;
    let settings = args.vm.settings();
    let request = RunRequest {
        image: settings.image,
        provider: settings.provider,
        isolation: settings.isolation,
        memory_mib: settings.memory_mib,
        cpus: settings.cpus,
        disk_mib: settings.disk_mib,
        labels: settings.labels,
        snapshot_policy: settings.snapshot_policy,
        life: settings.life,
        name: None,
        keep: args.keep,
        files,
        exec,
    };
    let client = args.process.speaking(context.client().await?);
    let opening = async { Ok(client.run(&request).await?) };
    let connection = context.interrupt.race(opening).await.map_err(|_| Stop::Interrupted)?;
    let options = session::Options {
        stdin: if forward { Stdin::Forwarded } else { Stdin::Empty },
        pty: false,
        raw: false,
        sink: Sink::of(&context.printer),
        waiting_for: "creating a VM".into(),
        limited: args.timeout.is_some(),
    };
    let finished = session::drive(context, connection.map_err(|stop: Stop| stop)?, options).await?;
    if args.keep
        && let Some(started) = &finished.started
        && !json
    {
        context.printer.note(&format!("kept VM `{}`", started.vm_name));
    }
    let status = Status::of_guest(finished.status());
    if json {
        context.printer.document(&Program { kept: Some(args.keep), ..Program::new(finished, status) })?;
    }
    Ok(status)
}

/// What is executed, and what has to be there for it.
#[derive(Debug, PartialEq, Eq)]
struct Job {
    argv: Vec<String>,
    files: Vec<RunFile>,
}

async fn job(args: &Args) -> Result<Job> {
    match (&args.code, &args.file) {
        (Some(code), _) => Ok(of_code(args.lang.unwrap_or(Language::Python), code, &args.argv)),
        (None, Some(path)) => {
            let language = args.lang.or_else(|| Language::of_file(path)).ok_or_else(|| {
                usage(format!("cannot tell the language of `{}` by its extension", path.display()))
                    .hint("name it with `--lang`")
            })?;
            of_file(language, path, &args.argv).await
        }
        (None, None) if args.lang.is_some() => {
            Err(usage("`--lang` says how to run code or a file, not a command")
                .hint("give code with `-c`, or leave out `--lang`")
                .into())
        }
        (None, None) => Ok(Job { argv: args.argv.clone(), files: Vec::new() }),
    }
}

fn of_code(language: Language, code: &str, arguments: &[String]) -> Job {
    match language.plan(code) {
        Plan::Inline(mut argv) => {
            argv.extend(lang::code_arguments(language, arguments));
            Job { argv, files: Vec::new() }
        }
        Plan::File { name } => at_place(language, &name, Output::Utf8(code.into()), arguments),
    }
}

async fn of_file(language: Language, path: &Path, arguments: &[String]) -> Result<Job> {
    let opened = File::open(path).await.map_err(|error| file("open", path, error))?;
    let mut content = Vec::new();
    // Not trusting its size: a pipe or device has none.
    let read = opened.take(MAX_FILE + 1).read_to_end(&mut content).await;
    read.map_err(|error| file("read", path, error))?;
    if content.len() as u64 > MAX_FILE {
        let hint = "create a VM, then `offshoot cp` the file into it and `offshoot exec` it";
        let message = format!("`{}` is larger than {MAX_FILE} bytes", path.display());
        return Err(usage(message).hint(hint).into());
    }
    // Only the name reaches the VM, so that messages of the interpreter show it.
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(at_place(language, &name, Output::from_bytes(content), arguments))
}

fn at_place(language: Language, name: &str, content: Output, arguments: &[String]) -> Job {
    let path = format!("{PLACE}/{name}");
    let mut argv = language.run_file(&path);
    argv.extend_from_slice(arguments);
    Job { argv, files: vec![RunFile { path, mode: Some(0o755), content }] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};
    use clap::Parser;
    use std::fs;

    fn parsed(line: &[&str]) -> Result<Args, clap::Error> {
        let words = ["offshoot", "run"].iter().chain(line);
        match Cli::try_parse_from(words)?.verb {
            Verb::Run(args) => Ok(args),
            other => panic!("parsed as {other:?}"),
        }
    }

    async fn argv(line: &[&str]) -> Vec<String> {
        match job(&parsed(line).unwrap()).await {
            Ok(job) => job.argv,
            Err(stop) => panic!("{stop:?}"),
        }
    }

    #[tokio::test]
    async fn code_a_file_and_a_command_are_the_three_things_that_run() {
        assert_eq!(argv(&["-c", "print(1)"]).await, ["python3", "-c", "print(1)"]);
        assert_eq!(argv(&["--lang", "js", "-c", "1", "--", "-v"]).await, ["node", "-e", "1", "--", "-v"]);
        assert_eq!(argv(&["--", "sh", "-c", "exit 7"]).await, ["sh", "-c", "exit 7"]);
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("a b.sh");
        fs::write(&script, "true").unwrap();
        let script = script.to_str().unwrap();
        assert_eq!(argv(&[script, "--", "x"]).await, ["bash", "/tmp/offshoot-run/a b.sh", "x"]);
    }

    #[test]
    fn nothing_to_run_and_two_things_at_once_are_usage_errors() {
        assert!(parsed(&[]).is_err());
        assert!(parsed(&["-c", "1", "file.py"]).is_err());
        assert!(parsed(&["--memory", "0", "-c", "1"]).is_err());
        assert!(parsed(&["--timeout", "0s", "-c", "1"]).is_err());
        assert!(parsed(&["--lang", "cobol", "-c", "1"]).is_err());
    }

    #[tokio::test]
    async fn a_language_for_a_command_is_refused_rather_than_ignored() {
        assert!(job(&parsed(&["--lang", "python", "--", "echo", "hi"]).unwrap()).await.is_err());
    }

    #[tokio::test]
    async fn a_file_without_a_known_extension_needs_a_language() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        fs::write(&path, [0xff, 0xfe]).unwrap();
        let path = path.to_str().unwrap();
        assert!(job(&parsed(&[path]).unwrap()).await.is_err());
        let Ok(known) = job(&parsed(&["--lang", "bash", path]).unwrap()).await else {
            panic!("the language is named")
        };
        assert_eq!(known.files[0].content, Output::Base64("//4=".into()));
    }

    #[tokio::test]
    async fn a_file_without_end_is_not_read_to_the_end() {
        let endless = parsed(&["--lang", "bash", "/dev/zero"]).unwrap();
        let Err(Stop::Failed(report)) = job(&endless).await else { panic!("it is too large") };
        assert_eq!(report.failure.message, "`/dev/zero` is larger than 524288 bytes");
    }
}
