//! Code that waits for somebody's word. An approval is good for one piece of code in one VM, once, for whoever was asked.

use offshoot_code::Language;
use offshoot_types::{Actor, ErrorCode, Failure, VmId};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use uuid::Uuid;

/// How long an answer may take. A daemon that ends forgets what it asked.
pub const PATIENCE: Duration = Duration::from_secs(3600);
/// Questions at once, and those of one caller.
const MAX: usize = 4096;
const MAX_OF_ONE: usize = 256;

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    vm: VmId,
    hash: blake3::Hash,
}

impl Subject {
    pub fn new(vm: VmId, language: Language, code: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(language.as_str().as_bytes()).update(b"\0").update(code.as_bytes());
        Self { vm, hash: hasher.finalize() }
    }

    /// The first digits of the code's hash, for the record.
    pub fn digits(&self) -> String {
        self.hash.to_hex()[..16].to_owned()
    }
}

#[derive(Debug)]
struct Question {
    actor: Actor,
    subject: Subject,
    asked: Instant,
}

#[derive(Debug, Default)]
pub struct Approvals(Mutex<HashMap<Uuid, Question>>);

impl Approvals {
    /// The id of a new question.
    pub fn ask(&self, actor: &Actor, subject: Subject) -> Result<Uuid, Failure> {
        let mut open = self.open();
        open.retain(|_, question| question.asked.elapsed() < PATIENCE);
        let own = open.values().filter(|question| question.actor == *actor).count();
        if open.len() >= MAX || own >= MAX_OF_ONE {
            let message = format!("{own} pieces of code wait for this caller's approval already");
            return Err(Failure::new(ErrorCode::NoResource, message)
                .hint("answer some; an unanswered one is over after an hour"));
        }
        let id = Uuid::new_v4();
        open.insert(id, Question { actor: actor.clone(), subject, asked: Instant::now() });
        Ok(id)
    }

    /// Takes the approval `id` for `subject`, once. `false`: it is for something else, and stays.
    pub fn take(&self, actor: &Actor, id: &str, subject: &Subject) -> Result<bool, Failure> {
        let unknown = || {
            Failure::new(ErrorCode::NotFound, format!("no code waits for the approval `{id:.80}`"))
                .hint("an approval is good once, within an hour, for whoever was asked; send the code anew to be asked again")
        };
        let id: Uuid = id.parse().map_err(|_| unknown())?;
        let mut open = self.open();
        let known =
            open.get(&id).filter(|question| question.actor == *actor && question.asked.elapsed() < PATIENCE);
        let fits = known.ok_or_else(unknown)?.subject == *subject;
        if fits {
            open.remove(&id);
        }
        Ok(fits)
    }

    /// Nobody waits for the answer any more.
    pub fn forget(&self, id: Uuid) {
        self.open().remove(&id);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Uuid, Question>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_types::Owner;

    #[test]
    fn an_approval_is_for_one_caller_one_code_one_vm_and_one_time() {
        let user = |uid| Actor::LocalUser { uid, owner: Owner::default() };
        let (approvals, vm) = (Approvals::default(), VmId::new());
        let subject = || Subject::new(vm, Language::Bash, "rm -rf /");
        let id = approvals.ask(&user(1), subject()).unwrap().to_string();
        assert_eq!(approvals.take(&user(2), &id, &subject()).unwrap_err().code, ErrorCode::NotFound);
        for other in [
            Subject::new(vm, Language::Bash, "rm -rf /x"),
            Subject::new(vm, Language::Python, "rm -rf /"),
            Subject::new(VmId::new(), Language::Bash, "rm -rf /"),
        ] {
            assert!(!approvals.take(&user(1), &id, &other).unwrap());
        }
        assert!(approvals.take(&user(1), &id, &subject()).unwrap());
        assert_eq!(approvals.take(&user(1), &id, &subject()).unwrap_err().code, ErrorCode::NotFound, "once");
        assert!(approvals.take(&user(1), "x", &subject()).is_err());
    }

    #[test]
    fn one_caller_leaves_room_for_others() {
        let user = |uid| Actor::LocalUser { uid, owner: Owner::default() };
        let approvals = Approvals::default();
        let subject = || Subject::new(VmId::new(), Language::Bash, "x");
        for _ in 0..MAX_OF_ONE {
            approvals.ask(&user(1), subject()).unwrap();
        }
        assert_eq!(approvals.ask(&user(1), subject()).unwrap_err().code, ErrorCode::NoResource);
        approvals.ask(&user(2), subject()).unwrap();
    }
}
