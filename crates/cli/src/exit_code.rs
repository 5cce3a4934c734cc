//! What the program's exit status says.
//!
//! | status | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | no: a check found a fault, code in a live context raised an error, nobody won a race, `diff --exit-code` found a difference, the person declined |
//! | 2 | usage: an option, name or size that cannot be |
//! | 3 | no such VM, operation or image |
//! | 4 | exists already, or is in the wrong state for the verb |
//! | 5 | denied by policy |
//! | 6 | a deadline passed |
//! | 7 | out of memory, disk or another resource |
//! | 8 | the VMM, the image or the guest failed, the host lacks something, or a defect of ours |
//! | 124 | `run`, `exec`, `try`: the program's time was up |
//! | 125 | `run`, `exec`, `try`: any failure of ours, whatever it is elsewhere |
//! | 127 | `run`, `exec`, `try`: the program is not in the VM, or cannot be executed there |
//! | 130 | interrupted by Ctrl-C, SIGTERM or SIGHUP |
//!
//! `run`, `exec`, `try` and `shell` otherwise pass the guest program's own status through, 128 + N for signal N.

use offshoot_types::{ErrorCode, ExecStatus};

/// The statuses that are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    Done = 0,
    CheckFailed = 1,
    Usage = 2,
    NotFound = 3,
    Conflict = 4,
    Denied = 5,
    Timeout = 6,
    NoResource = 7,
    Backend = 8,
    ProgramTimedOut = 124,
    OwnFailure = 125,
    NoSuchProgram = 127,
    Interrupted = 130,
}

impl From<ErrorCode> for ExitCode {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::InvalidArgument
            | ErrorCode::MethodNotAllowed
            | ErrorCode::TooLarge
            | ErrorCode::UnsupportedMediaType
            | ErrorCode::KeyReused => Self::Usage,
            ErrorCode::NotFound => Self::NotFound,
            ErrorCode::AlreadyExists
            | ErrorCode::WrongState
            | ErrorCode::StaleGeneration
            | ErrorCode::Busy
            | ErrorCode::InTransaction
            | ErrorCode::InUse
            | ErrorCode::AlreadyDone
            | ErrorCode::OutcomeUnknown => Self::Conflict,
            ErrorCode::Denied | ErrorCode::Unauthenticated => Self::Denied,
            ErrorCode::Timeout => Self::Timeout,
            ErrorCode::NoResource | ErrorCode::RateLimited => Self::NoResource,
            ErrorCode::Unavailable
            | ErrorCode::Backend
            | ErrorCode::Image
            | ErrorCode::Snapshot
            | ErrorCode::Thaw
            | ErrorCode::Guest
            | ErrorCode::ExecFailed
            | ErrorCode::Unsupported
            | ErrorCode::Internal => Self::Backend,
            ErrorCode::Interrupted => Self::Interrupted,
        }
    }
}

/// How the program ends when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Own(ExitCode),
    /// A guest program's, as a shell would report it.
    Guest(u8),
}

impl Status {
    pub const DONE: Self = Self::Own(ExitCode::Done);

    /// The status that stands for how a guest program ended.
    pub fn of_guest(status: ExecStatus) -> Self {
        match status {
            ExecStatus::TimedOut => Self::Own(ExitCode::ProgramTimedOut),
            // A status has eight bits; a guest that claims more must not be able to claim success by overflow.
            other => Self::Guest(u8::try_from(other.shell_status()).unwrap_or(u8::MAX)),
        }
    }

    pub const fn number(self) -> u8 {
        match self {
            Self::Own(code) => code as u8,
            Self::Guest(status) => status,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_code_has_the_exit_status_its_documentation_promises() {
        for code in ErrorCode::ALL {
            assert_eq!(ExitCode::from(*code) as u8, code.exit_code(), "{code}");
        }
    }

    macro_rules! one_test_per_status {
        ($($name:ident: $code:ident => $status:literal;)*) => {$(
            #[test]
            fn $name() {
                assert_eq!(ExitCode::from(ErrorCode::$code) as u8, $status);
            }
        )*};
    }
    one_test_per_status! {
        a_bad_argument_exits_2: InvalidArgument => 2;
        an_unknown_vm_exits_3: NotFound => 3;
        a_taken_name_exits_4: AlreadyExists => 4;
        a_wrong_state_exits_4: WrongState => 4;
        a_busy_vm_exits_4: Busy => 4;
        a_vm_in_a_transaction_exits_4: InTransaction => 4;
        a_needed_snapshot_exits_4: InUse => 4;
        a_denial_exits_5: Denied => 5;
        a_passed_deadline_exits_6: Timeout => 6;
        an_exhausted_ledger_exits_7: NoResource => 7;
        a_failed_vmm_exits_8: Backend => 8;
        a_broken_image_exits_8: Image => 8;
        a_broken_snapshot_exits_8: Snapshot => 8;
        a_guest_that_is_not_renewed_exits_8: Thaw => 8;
        a_missing_program_exits_8: Unavailable => 8;
        an_interruption_exits_130: Interrupted => 130;
    }

    #[test]
    fn a_guest_status_passes_through_and_a_timeout_is_124() {
        assert_eq!(Status::of_guest(ExecStatus::Exited(7)).number(), 7);
        assert_eq!(Status::of_guest(ExecStatus::Signaled(9)).number(), 137);
        assert_eq!(Status::of_guest(ExecStatus::TimedOut).number(), 124);
        assert_eq!(Status::DONE.number(), 0);
    }

    #[test]
    fn a_status_no_process_can_have_is_never_taken_for_success() {
        for absurd in [256, -1, i32::MAX, i32::MIN] {
            assert_eq!(Status::of_guest(ExecStatus::Exited(absurd)).number(), 255, "{absurd}");
        }
        assert_eq!(Status::of_guest(ExecStatus::Signaled(1000)).number(), 255);
    }
}
