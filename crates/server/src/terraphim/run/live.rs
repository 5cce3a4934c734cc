//! Code in the live interpreter of an agent.

use super::{Outputs, Piece, Ran, Site, cancelled, overtime};
use crate::terraphim::settings::USER;
use jiff::Timestamp;
use offshoot_engine::{CodeEvent, CodeSession, OutputStream};
use offshoot_guest_proto::message::{EXIT_STATUS, INTERPRETER_DIED, INTERPRETER_KILLED};
use offshoot_types::{Command, ContextCode, ContextName, ErrorCode, Failure, Language, VmRef};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep_until};

/// How long an interrupted interpreter may take to say that it was. Its session ends with us, and that interrupts it again.
const GRACE: Duration = Duration::from_secs(10);

/// An agent has one interpreter of each language in a VM, and another for each directory it asks for, as an interpreter has
/// one directory.
fn context(agent: &str, language: Language, cwd: Option<&str>) -> ContextName {
    let mut hasher = blake3::Hasher::new();
    hasher.update(agent.as_bytes()).update(b"\0").update(cwd.unwrap_or_default().as_bytes());
    let name = format!("agent-{}-{language}", &hasher.finalize().to_hex()[..12]);
    name.parse().expect("letters, digits and dashes")
}

pub async fn run(piece: &Piece, language: Language, site: Site<'_>) -> Result<Ran, Failure> {
    let limit = piece.limit(site.vm);
    let code = ContextCode {
        context: context(&piece.agent, language, piece.working_dir.as_deref()),
        language: Some(language),
        code: piece.code.clone(),
        timeout: Some(limit),
        user: USER.into(),
        cwd: piece.working_dir.clone(),
        context_env: BTreeMap::new(),
        env: BTreeMap::new(),
        existing: false,
    };
    let (call, vm) = (&site.asker.call, VmRef::Id(site.vm.id));
    let permit = call.permit(Command::RunCode { vm, code: Box::new(code) }).await?;
    let session = call.until_cut(call.engine.run_code(permit)).await?;
    follow(session, limit, site).await
}

async fn follow(mut session: CodeSession, limit: Duration, site: Site<'_>) -> Result<Ran, Failure> {
    let Site { asker, listener, cancel, .. } = site;
    let execution = session.operation.to_string();
    let started = Timestamp::now();
    let (mut outputs, mut value, mut failed) = (Outputs::default(), None, None);
    let mut deadline: Option<Instant> = None;
    let (interrupted, took) = loop {
        let event = tokio::select! {
            biased;
            () = cancel.cancelled(), if deadline.is_none() => {
                deadline = Some(Instant::now() + GRACE);
                // One that is over already has its end on the way.
                let _over = session.interrupt().await;
                continue;
            }
            () = late(deadline) => {
                return Err(Failure::new(ErrorCode::Interrupted, "the code did not react to its interruption yet"));
            }
            () = asker.call.app.shutdown.expired() => {
                return Err(Failure::new(ErrorCode::Interrupted, "the daemon is stopping"));
            }
            event = session.next() => event,
        };
        match event {
            Some(CodeEvent::Started { .. }) => {
                listener.say("execution_started", serde_json::json!({ "execution_id": execution })).await;
            }
            Some(CodeEvent::Output { stream: OutputStream::Stdout, data }) => {
                outputs.stdout(&data, listener).await
            }
            Some(CodeEvent::Output { stream: OutputStream::Stderr, data }) => {
                outputs.stderr(&data, listener).await
            }
            // Of what is shown there is a text only here.
            Some(CodeEvent::Display { mut mime, .. }) => {
                if let Some(text) = mime.remove("text/plain") {
                    outputs.stdout(format!("{text}\n").as_bytes(), listener).await;
                }
            }
            Some(CodeEvent::Value { mut mime }) => value = mime.remove("text/plain"),
            Some(CodeEvent::Error { name, message, traceback }) => {
                let (status, said, why) = uncaught(&name, &message, &traceback);
                outputs.stderr(said.as_bytes(), listener).await;
                failed = Some((status, why));
            }
            Some(CodeEvent::Ended { interrupted, wall }) => break (interrupted, wall),
            Some(CodeEvent::Failed(failure)) => return Err(failure),
            None => return Err(Failure::new(ErrorCode::Internal, "the code ended without an end")),
        }
    };
    outputs.end(listener).await;
    let (exit_code, error) = match (interrupted, failed) {
        (true, _) if cancel.is_cancelled() => some(cancelled()),
        (true, _) => some(overtime(limit)),
        (false, Some((status, why))) => (status, why),
        (false, None) => (0, None),
    };
    Ok(Ran { execution, exit_code, outputs, value, error, started, took })
}

fn some((status, why): (i32, String)) -> (i32, Option<String>) {
    (status, Some(why))
}

async fn late(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What an uncaught error is as the end of a program: its status, what it writes to stderr, and why it ended if that was not
/// its own doing.
fn uncaught(name: &str, message: &str, traceback: &str) -> (i32, String, Option<String>) {
    let after = |words: &str| {
        let digits = message.split_once(words)?.1;
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits[..end].parse::<i32>().ok()
    };
    match name {
        EXIT_STATUS => (after("exit status ").unwrap_or(1), String::new(), None),
        // It asked to end, which an interpreter does with all its variables.
        INTERPRETER_DIED => match (after("ended with status "), after("ended by signal ")) {
            (Some(status), _) => (status, String::new(), None),
            (None, Some(signal)) => (128 + signal, String::new(), Some(message.to_owned())),
            (None, None) => (1, String::new(), Some(message.to_owned())),
        },
        INTERPRETER_KILLED => (137, String::new(), Some(message.to_owned())),
        _ if traceback.is_empty() => (1, format!("{name}: {message}\n"), None),
        _ => (1, format!("{}\n", traceback.trim_end()), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_languages_and_directories_have_interpreters_of_their_own() {
        let names = [
            context("a", Language::Python, None),
            context("b", Language::Python, None),
            context("a", Language::Bash, None),
            context("a", Language::Python, Some("/tmp")),
        ];
        for (index, name) in names.iter().enumerate() {
            assert!(names[index + 1..].iter().all(|other| other != name), "{name}");
        }
        assert_eq!(context("a", Language::Python, None), names[0], "the same one the next time");
    }

    #[test]
    fn a_status_is_the_one_that_the_program_ended_with() {
        let status = |name, message| uncaught(name, message, "").0;
        assert_eq!(status(EXIT_STATUS, "exit status 7"), 7);
        let died = "the python interpreter ended with status 3; its variables are gone";
        assert_eq!(uncaught(INTERPRETER_DIED, died, ""), (3, String::new(), None));
        assert_eq!(
            status(INTERPRETER_DIED, "the bash interpreter was ended by signal 9; its variables are gone"),
            137
        );
        assert_eq!(status(INTERPRETER_DIED, "the bash interpreter ended; its variables are gone"), 1);
        let (status, said, why) = uncaught("ValueError", "no", "Traceback\nValueError: no\n");
        assert_eq!((status, said.as_str(), why), (1, "Traceback\nValueError: no\n", None));
        assert_eq!(uncaught("ValueError", "no", "").1, "ValueError: no\n");
    }
}
