//! Modules that code has to find. There is no network in a VM, so nothing is installed: they are there or they are not.

use super::Site;
use crate::terraphim::settings::USER;
use offshoot_api::{
    ClientError,
    v1::{CollectRequest, ExecLimits, ExecRequest, ExecResult, ExitStatus, InvalidField},
};
use offshoot_code::Language;
use offshoot_types::{ErrorCode, Failure, VmRef};

const MOST: usize = 64;
/// Each prints the names that are missing, then [`END`].
const PYTHON: &str = "import importlib.util, sys\nfor name in sys.argv[1:]:\n    try: found = \
    importlib.util.find_spec(name)\n    except Exception: found = None\n    if found is None: print(name)\nprint('.')";
const JAVASCRIPT: &str = "for (const name of process.argv.slice(1)) { try { require.resolve(name) } catch { \
    console.log(name) } } console.log('.')";
const BASH: &str =
    "for name; do command -v -- \"$name\" >/dev/null || printf '%s\\n' \"$name\"; done; echo .";
/// Silence says that all is there only from a program that came to its end: no name is this.
const END: &str = ".";
const TIMEOUT_MS: u64 = 120_000;

pub async fn check(wanted: &[String], language: Language, site: Site<'_>) -> Result<(), Failure> {
    if wanted.is_empty() {
        return Ok(());
    }
    if wanted.len() > MOST {
        return Err(
            InvalidField::new("requirements", format!("{} are more than {MOST}", wanted.len())).into()
        );
    }
    let program: &[&str] = match language {
        Language::Python => &["python3", "-c", PYTHON],
        Language::Javascript => &["node", "-e", JAVASCRIPT, "--"],
        Language::Bash => &["bash", "-c", BASH, "bash"],
        Language::Go | Language::Rust => return Err(missing(wanted, language)),
    };
    // A version that is asked for is not looked at, only whether it is there at all.
    let name = |wanted: &String| {
        wanted.split(['=', '<', '>', '!', '~', '[', ';', ' ']).next().unwrap_or("").to_owned()
    };
    let argv = program.iter().map(ToString::to_string).chain(wanted.iter().map(name)).collect();
    let exec = ExecRequest {
        argv: Some(argv),
        user: Some(USER.into()),
        limits: ExecLimits { timeout_ms: Some(TIMEOUT_MS), ..ExecLimits::default() },
        ..ExecRequest::default()
    };
    let request = CollectRequest { exec, input: None };
    let result = site.asker.client.exec_collect(&VmRef::Id(site.vm.id), &request).await;
    let absent = absent(result.map_err(ClientError::into_failure)?, language)?;
    if absent.is_empty() { Ok(()) } else { Err(missing(&absent, language)) }
}

fn absent(result: ExecResult, language: Language) -> Result<Vec<String>, Failure> {
    let printed = result.stdout.into_bytes().unwrap_or_default();
    let printed = String::from_utf8_lossy(&printed);
    let mut names: Vec<String> = printed.lines().map(str::to_owned).collect();
    if result.status == (ExitStatus::Exited { code: 0 }) && names.pop().as_deref() == Some(END) {
        return Ok(names);
    }
    let how = match result.status {
        ExitStatus::Exited { code } => format!("ended with exit code {code} before it was done"),
        ExitStatus::Signaled { signal } => format!("was ended by signal {signal}"),
        ExitStatus::TimedOut => format!("was not done after {TIMEOUT_MS} ms"),
    };
    let said = result.stderr.into_bytes().unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().last().map(|line| format!(": {line}")).unwrap_or_default();
    let message =
        format!("cannot tell whether the VM has the {language} modules asked for: the check {how}{last}");
    Err(Failure::new(ErrorCode::ExecFailed, message)
        .hint("look into the VM with `offshoot exec`, or leave out `requirements`"))
}

fn missing(names: &[String], language: Language) -> Failure {
    let message = format!("the VM has no {language} module {}", names.join(", "));
    Failure::new(ErrorCode::Unsupported, message)
        .hint("a VM has no network: use an image that has them, or copy them in with `offshoot cp`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_api::v1::Output;
    use offshoot_types::{ExecId, OperationId};

    fn absent_of(status: ExitStatus, stdout: &str) -> Result<Vec<String>, Failure> {
        let result = ExecResult {
            exec: ExecId::new(),
            operation: OperationId::new(),
            status,
            stdout: Output::Utf8(stdout.into()),
            stderr: Output::Utf8("Killed\n".into()),
            truncated: false,
            exec_ms: 1,
        };
        absent(result, Language::Python)
    }

    #[test]
    fn a_check_that_did_not_come_to_its_end_says_nothing_of_what_is_there() {
        const OK: ExitStatus = ExitStatus::Exited { code: 0 };
        assert_eq!(absent_of(OK, ".\n").unwrap(), Vec::<String>::new());
        assert_eq!(absent_of(OK, "numpy\npandas\n.\n").unwrap(), ["numpy", "pandas"]);
        for (status, stdout) in [
            (OK, ""),
            (OK, "numpy\n"),
            (ExitStatus::Exited { code: 127 }, ""),
            (ExitStatus::Signaled { signal: 9 }, ".\n"),
            (ExitStatus::TimedOut, ".\n"),
        ] {
            let failure = absent_of(status, stdout).unwrap_err();
            assert_eq!(failure.code, ErrorCode::ExecFailed);
            assert!(failure.message.contains("Killed"), "{}", failure.message);
        }
    }
}
