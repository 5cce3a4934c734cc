//! Asks the judge and turns its verdict into a decision. Everything unexpected is a deny.

use crate::{
    Authorized, Decision, Declined, Denial, DenialKind, Facts, Grant, Required, RuleId,
    built_in::BuiltIn,
    judge::{Judge, Question, Verdict},
    owner_of_socket::OwnerOfSocket,
};
use offshoot_types::{Actor, Command};
use std::{borrow::Cow, fmt, sync::Arc};

/// Names the exact rules that judged: their kind and version, or later a digest of their text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PolicyRevision(Cow<'static, str>);

impl PolicyRevision {
    pub(crate) const fn fixed(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for PolicyRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

const JUDGE_FAILED: RuleId = RuleId::fixed("policy/engine-failure");
const FACTS_MISMATCH: RuleId = RuleId::fixed("policy/facts-mismatch");
const MALFORMED_VERDICT: RuleId = RuleId::fixed("policy/malformed-verdict");

const HELD_BY_CALLER: RuleId = RuleId::fixed("caller/holds-hazards");
const REFUSED_BY_CALLER: RuleId = RuleId::fixed("caller/refuses-hazards");

/// The one decision point. Cheap to clone; shared by every transport.
#[derive(Debug, Clone)]
pub struct Policy {
    judge: Arc<dyn Judge>,
}

impl Policy {
    /// The user `uid`, who owns the daemon's socket, and the daemon itself may all; a key is good for what it was made
    /// for, an access token for one VM; anyone else may nothing.
    pub fn built_in(uid: u32) -> Self {
        Self { judge: Arc::new(BuiltIn { socket: OwnerOfSocket { uid } }) }
    }

    pub fn revision(&self) -> PolicyRevision {
        self.judge.revision()
    }

    /// The denial of a command that its own caller declined, `sentence` saying why, for the record: nothing was judged, and
    /// nothing can be permitted so.
    pub fn declined(&self, actor: &Actor, command: &Command, how: Declined, sentence: String) -> Denial {
        let (rule, hint) = match how {
            Declined::Held => (HELD_BY_CALLER, "approve it, or leave it"),
            Declined::Refused => (REFUSED_BY_CALLER, "the request says that such code is not to be run"),
        };
        Denial {
            kind: DenialKind::Rule,
            actor: actor.clone(),
            action: command.action(),
            revision: self.judge.revision(),
            rule_ids: vec![rule],
            sentence,
            hint: Some(hint.into()),
        }
    }

    /// Judges one command. `facts` describe the state it would act on, read just before.
    pub fn decide(&self, actor: &Actor, command: Command, facts: &Facts) -> Decision {
        let action = command.action();
        let revision = self.judge.revision();
        let deny = |kind, rule_ids, sentence, hint| {
            let (actor, revision) = (actor.clone(), revision.clone());
            Decision::Deny(Denial { kind, actor, action, revision, rule_ids, sentence, hint })
        };
        let failed = |rule, sentence| {
            let hint = "nothing was done; whoever runs the daemon must look at its policy".to_owned();
            deny(DenialKind::EngineFailure, vec![rule], sentence, Some(hint))
        };

        if !facts.are_about(&command) {
            let sentence = format!("`{action}` was not decided: the facts given are about another VM");
            return failed(FACTS_MISMATCH, sentence);
        }
        match self.judge.judge(Question { actor, action, command: &command, facts }) {
            Err(failure) => failed(JUDGE_FAILED, format!("`{action}` was not decided: {failure}")),
            Ok(Verdict::Permit { rules }) if !rules.is_empty() => {
                let judged = facts.vm.as_ref().map(|vm| (vm.id, vm.generation));
                let grant = Grant::new(actor.clone(), action, revision, rules, judged, facts.beside.clone());
                Decision::Permit(Authorized::mint(command, grant))
            }
            Ok(Verdict::Deny { rules, sentence, hint }) if !rules.is_empty() => {
                deny(DenialKind::Rule, rules, sentence, hint)
            }
            Ok(Verdict::Require { rules, obligations }) if !rules.is_empty() && !obligations.is_empty() => {
                Decision::Require(Required { command, rule_ids: rules, obligations })
            }
            Ok(Verdict::Permit { .. } | Verdict::Deny { .. } | Verdict::Require { .. }) => failed(
                MALFORMED_VERDICT,
                format!("`{action}` was not decided: policy `{revision}` gave a verdict without saying why"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Obligation, VmFacts,
        judge::{JudgeFailure, Verdict},
    };
    use offshoot_types::{
        Action, ErrorCode, Failure, Generation, Labels, Owner, ProviderKind, VmId, VmRef, VmStateName,
    };
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Gives one verdict, whatever it is asked, and remembers that it was.
    #[derive(Debug)]
    struct Fixed {
        verdict: fn() -> Result<Verdict, JudgeFailure>,
        asked: AtomicBool,
    }
    impl Judge for Fixed {
        fn revision(&self) -> PolicyRevision {
            PolicyRevision::fixed("fixed/1")
        }
        fn judge(&self, _: Question<'_>) -> Result<Verdict, JudgeFailure> {
            self.asked.store(true, Ordering::SeqCst);
            (self.verdict)()
        }
    }

    fn fixed(verdict: fn() -> Result<Verdict, JudgeFailure>) -> (Policy, Arc<Fixed>) {
        let judge = Arc::new(Fixed { verdict, asked: AtomicBool::new(false) });
        (Policy { judge: judge.clone() }, judge)
    }

    const ONE_RULE: RuleId = RuleId::fixed("fixed/rule");

    fn actor() -> Actor {
        Actor::LocalUser { uid: 1000, owner: Owner::default() }
    }
    fn vm(name: &str) -> VmFacts {
        VmFacts {
            id: VmId::new(),
            name: name.parse().unwrap(),
            owner: Owner::default(),
            labels: Labels::new(),
            provider: ProviderKind::Qemu,
            state: VmStateName::Stopped,
            generation: Generation(7),
        }
    }
    fn start(vm: &str) -> Command {
        Command::Start { vm: vm.parse().unwrap() }
    }

    #[test]
    fn what_its_caller_declines_is_denied_by_name_and_without_asking_the_judge() {
        let (policy, judge) = fixed(|| Ok(Verdict::Permit { rules: vec![ONE_RULE] }));
        for (how, rule) in
            [(Declined::Held, "caller/holds-hazards"), (Declined::Refused, "caller/refuses-hazards")]
        {
            let denial = policy.declined(&actor(), &start("a"), how, "it removes a tree of files".into());
            assert_eq!((denial.action, denial.revision.as_str()), (Action::Start, "fixed/1"));
            assert_eq!(denial.rule_ids.iter().map(RuleId::as_str).collect::<Vec<_>>(), [rule]);
            assert_eq!(Failure::from(denial).code, ErrorCode::Denied);
        }
        assert!(!judge.asked.load(Ordering::SeqCst));
    }
    fn denial(decision: Decision) -> Denial {
        match decision {
            Decision::Deny(denial) => denial,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_permit_carries_the_command_unchanged_and_the_evidence_of_the_decision() {
        let facts = Facts { vm: Some(vm("a")), ..Facts::NONE };
        let judged = facts.vm.clone().unwrap();
        let decision = Policy::built_in(1000).decide(&actor(), start("a"), &facts);
        let Decision::Permit(authorized) = decision else { panic!("{decision:?}") };
        assert_eq!(authorized.get(), &start("a"));
        let (command, grant) = authorized.into_parts();
        assert_eq!(command, start("a"));
        assert_eq!((grant.actor(), grant.action()), (&actor(), Action::Start));
        assert_eq!((grant.vm(), grant.generation()), (Some(judged.id), Some(Generation(7))));
        assert_eq!(grant.revision().as_str(), "built-in/1");
        assert_eq!(grant.rules().iter().map(RuleId::as_str).collect::<Vec<_>>(), ["owner-of-socket/owner"]);
    }

    #[test]
    fn a_judge_that_fails_is_a_deny_with_a_code_of_its_own() {
        let (policy, _) = fixed(|| {
            let revision = PolicyRevision::fixed("fixed/1");
            Err(JudgeFailure { revision, message: "out of memory".into() })
        });
        let denial = denial(policy.decide(&actor(), start("a"), &Facts::NONE));
        assert_eq!(denial.kind, DenialKind::EngineFailure);
        assert_eq!(denial.rule_ids, [JUDGE_FAILED]);
        let failure = Failure::from(denial);
        assert_eq!(failure.code, ErrorCode::Denied);
        assert!(failure.message.contains("out of memory"), "{failure:?}");
        assert_eq!(failure.cause.as_deref(), Some("policy-engine-failed: policy/engine-failure"));
    }

    #[test]
    fn facts_about_another_vm_are_a_deny_and_no_rule_is_asked() {
        let (policy, judge) = fixed(|| Ok(Verdict::Permit { rules: vec![ONE_RULE] }));
        let facts = Facts { vm: Some(vm("b")), ..Facts::NONE };
        let by_id = Command::Destroy { vm: VmRef::Id(VmId::new()) };
        for command in [start("a"), by_id, Command::StopDaemon { vms: true }] {
            let denial = denial(policy.decide(&actor(), command, &facts));
            assert_eq!(
                (denial.kind, &denial.rule_ids[..]),
                (DenialKind::EngineFailure, &[FACTS_MISMATCH][..])
            );
        }
        assert!(!judge.asked.load(Ordering::SeqCst));
        assert!(matches!(policy.decide(&actor(), start("b"), &facts), Decision::Permit(_)));
    }

    #[test]
    fn a_verdict_that_does_not_say_why_is_a_deny() {
        let silent: [fn() -> Result<Verdict, JudgeFailure>; 4] = [
            || Ok(Verdict::Permit { rules: vec![] }),
            || Ok(Verdict::Deny { rules: vec![], sentence: "no".into(), hint: None }),
            || Ok(Verdict::Require { rules: vec![ONE_RULE], obligations: vec![] }),
            || {
                let question = "may it?".into();
                Ok(Verdict::Require { rules: vec![], obligations: vec![Obligation::Approval { question }] })
            },
        ];
        for verdict in silent {
            let denial = denial(fixed(verdict).0.decide(&actor(), start("a"), &Facts::NONE));
            assert_eq!(denial.rule_ids, [MALFORMED_VERDICT]);
        }
    }

    #[test]
    fn an_obligation_gives_the_command_back_unauthorised() {
        let (policy, _) = fixed(|| {
            let obligations = vec![Obligation::Approval { question: "may it?".into() }];
            Ok(Verdict::Require { rules: vec![ONE_RULE], obligations })
        });
        let decision = policy.decide(&actor(), start("a"), &Facts::NONE);
        let Decision::Require(required) = decision else { panic!("{decision:?}") };
        assert_eq!((required.command, required.rule_ids), (start("a"), vec![ONE_RULE]));
    }

    #[test]
    fn a_deny_tells_the_caller_who_may_and_what_to_do() {
        let stranger = Actor::LocalUser { uid: 0, owner: Owner::default() };
        let denial = denial(Policy::built_in(1000).decide(&stranger, start("a"), &Facts::NONE));
        assert_eq!(denial.kind, DenialKind::Rule);
        let failure = Failure::from(denial);
        assert_eq!((failure.code, failure.code.http_status()), (ErrorCode::Denied, 403));
        assert_eq!(
            failure.message,
            "user 0 may not start here: this daemon serves only user 1000, who owns its socket"
        );
        assert_eq!(failure.cause.as_deref(), Some("denied-by-rule: owner-of-socket/stranger"));
        assert!(failure.hint.unwrap().contains("as user 1000"));
    }
}
