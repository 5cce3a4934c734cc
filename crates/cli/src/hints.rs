//! What to do next, for failures that do not say so themselves.
//!
//! Whoever makes a failure knows best and sets its hint; here stand only the hints that follow from the code.

use offshoot_types::{ErrorCode, Failure};

/// The failure with a hint, if there is one to give.
pub fn complete(failure: Failure) -> Failure {
    match (&failure.hint, for_code(failure.code)) {
        (None, Some(hint)) => failure.hint(hint),
        _ => failure,
    }
}

const fn for_code(code: ErrorCode) -> Option<&'static str> {
    match code {
        ErrorCode::AlreadyExists => Some("choose another name, or remove the old one first"),
        ErrorCode::WrongState => Some("`offshoot status` shows the state"),
        ErrorCode::StaleGeneration => Some("the VM has moved on: look again with `offshoot status`"),
        ErrorCode::Busy => Some("try again, or see what is under way with `offshoot status`"),
        ErrorCode::InTransaction => {
            Some("name the transaction with `--transaction`, or end it: `offshoot tx list NAME` shows it")
        }
        ErrorCode::InUse => Some("`offshoot snapshot list --tree` shows what depends on what"),
        ErrorCode::Snapshot => Some("`offshoot snapshot verify` tells what is damaged"),
        ErrorCode::Thaw => {
            Some("nothing was handed out: try again, or look at `offshoot logs NAME --console`")
        }
        ErrorCode::Timeout => Some("`offshoot status` shows how far it came; `--timeout` gives it longer"),
        ErrorCode::NoResource => Some("`offshoot destroy` what is no longer needed, or ask for less"),
        ErrorCode::Unavailable | ErrorCode::Backend => Some("`offshoot doctor` shows what this host lacks"),
        ErrorCode::Image => Some("`offshoot image verify` tells what is damaged"),
        ErrorCode::Guest => Some("`offshoot logs NAME --console` shows what the guest printed"),
        ErrorCode::Internal => Some("this is a defect of ours: please report it with the request id"),
        ErrorCode::ExecFailed => Some("it has to be in the VM: `offshoot shell NAME` lets you look"),
        ErrorCode::Unauthenticated => Some("`offshoot key list` shows the keys there are"),
        ErrorCode::RateLimited => Some("wait a moment, or ask for a key with a higher rate"),
        ErrorCode::KeyReused => Some("use a new key for a new request"),
        ErrorCode::AlreadyDone | ErrorCode::OutcomeUnknown => {
            Some("look at what came of the operations named, then send what is still wanted with a new key")
        }
        // Whoever did not find it knows best what it was.
        ErrorCode::NotFound
        | ErrorCode::MethodNotAllowed
        | ErrorCode::TooLarge
        | ErrorCode::UnsupportedMediaType
        | ErrorCode::InvalidArgument
        | ErrorCode::Denied
        | ErrorCode::Unsupported
        | ErrorCode::Interrupted => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_that_came_with_the_failure_is_kept() {
        let given = complete(Failure::new(ErrorCode::Guest, "no VM `wbe`").hint("did you mean `web`?"));
        assert_eq!(given.hint.as_deref(), Some("did you mean `web`?"));
        let added = complete(Failure::new(ErrorCode::Guest, "silence"));
        assert!(added.hint.unwrap().contains("--console"));
    }
}
