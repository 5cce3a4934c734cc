//! "Whoever holds a VM's access token may work in that VM."
//!
//! The token is handed to programs that drive one sandbox. What moves, keeps, copies or ends the VM is not theirs.

use crate::{
    RuleId,
    judge::{Question, Verdict},
};
use offshoot_types::{Command, VmId};

const HOLDER: RuleId = RuleId::fixed("holder-of-token/holder");
const ELSEWHERE: RuleId = RuleId::fixed("holder-of-token/elsewhere");
const BEYOND: RuleId = RuleId::fixed("holder-of-token/beyond");

pub(crate) fn judge(vm: VmId, question: &Question<'_>) -> Verdict {
    let deny = |rule, sentence: String| Verdict::Deny {
        rules: vec![rule],
        sentence,
        hint: Some("ask with an API key, or over the daemon's own socket".into()),
    };
    let within = matches!(
        question.command,
        Command::Exec { .. }
            | Command::Attach { .. }
            | Command::Files { .. }
            | Command::Connect { .. }
            | Command::RunCode { .. }
            | Command::RemoveContext { .. }
            | Command::RestartContext { .. }
            | Command::Inspect { vm: Some(_) }
    );
    let its_own = question.facts.vm.as_ref().is_some_and(|found| found.id == vm);
    match (within, its_own) {
        (true, true) => Verdict::Permit { rules: vec![HOLDER] },
        (true, false) => {
            deny(ELSEWHERE, format!("a VM's access token may not {} in another VM", question.action))
        }
        (false, _) => deny(BEYOND, format!("a VM's access token is not good for `{}`", question.action)),
    }
}
