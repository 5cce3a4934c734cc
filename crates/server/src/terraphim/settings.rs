//! Figures of this wire, each in one place.

use offshoot_api::v1::Vm;
use offshoot_code::Language;
use offshoot_types::IsolationClass;
use std::time::Duration;

/// How long code may run if nobody says.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// The most that somebody may say.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// So much longer everything takes in a VM whose CPU is emulated. What nobody has set is given so much more time there;
/// what a request says holds as it stands.
pub const EMULATED: u32 = 4;
/// How long a snapshot, a file and the end of a transaction may take beside the code.
pub const SLACK: Duration = Duration::from_secs(120);
/// Bytes of one stream that an answer holds.
pub const INLINE: usize = 64 * 1024;
/// Largest body of a request: a long answer of a model, as JSON.
pub const MAX_BODY: usize = 8 * 1024 * 1024;
/// Longest code that a request may hold, unless its `vm_config` says otherwise.
pub const MAX_CODE: usize = 10_000;
/// Most blocks that one request runs: what they write is in one answer.
pub const MAX_RUNS: usize = 100;
/// Largest message of a socket to its caller.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Who code runs as.
pub const USER: &str = "user";

/// How much longer than others programs of a language take, in tenths.
const fn tenths(language: Language) -> u32 {
    match language {
        Language::Python | Language::Javascript => 10,
        Language::Bash => 15,
        Language::Go | Language::Rust => 30,
    }
}

/// What `base` is for code of a language in a VM.
pub fn scaled(base: Duration, language: Language, vm: &Vm) -> Duration {
    let emulated = if vm.isolation == IsolationClass::EmulatedVm { EMULATED } else { 1 };
    base * tenths(language) / 10 * emulated
}
