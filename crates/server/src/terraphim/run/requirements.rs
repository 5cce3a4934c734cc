//! Modules that code has to find. There is no network in a VM, so nothing is installed: they are there or they are not.

use super::Site;
use crate::terraphim::settings::USER;
use offshoot_api::{
    ClientError,
    v1::{CollectRequest, ExecLimits, ExecRequest, InvalidField},
};
use offshoot_code::Language;
use offshoot_types::{ErrorCode, Failure, VmRef};

const MOST: usize = 64;
/// Each prints the names that are missing.
const PYTHON: &str = "import importlib.util, sys\nfor name in sys.argv[1:]:\n    try: found = \
    importlib.util.find_spec(name)\n    except Exception: found = None\n    if found is None: print(name)";
const JAVASCRIPT: &str = "for (const name of process.argv.slice(1)) { try { require.resolve(name) } catch { \
    console.log(name) } }";
const BASH: &str = "for name; do command -v -- \"$name\" >/dev/null || printf '%s\\n' \"$name\"; done";
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
    let printed = result.map_err(ClientError::into_failure)?.stdout.into_bytes().unwrap_or_default();
    let absent: Vec<String> = String::from_utf8_lossy(&printed).lines().map(str::to_owned).collect();
    if absent.is_empty() { Ok(()) } else { Err(missing(&absent, language)) }
}

fn missing(names: &[String], language: Language) -> Failure {
    let message = format!("the VM has no {language} module {}", names.join(", "));
    Failure::new(ErrorCode::Unsupported, message)
        .hint("a VM has no network: use an image that has them, or copy them in with `offshoot cp`")
}
