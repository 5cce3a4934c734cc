//! Which rules judge whom: one judge for each way in.

use crate::{
    PolicyRevision, holder_of_key, holder_of_token,
    judge::{Judge, JudgeFailure, Question, Verdict},
    owner_of_socket::OwnerOfSocket,
};
use offshoot_types::Actor;

#[derive(Debug, Clone, Copy)]
pub(crate) struct BuiltIn {
    pub socket: OwnerOfSocket,
}

impl Judge for BuiltIn {
    fn revision(&self) -> PolicyRevision {
        PolicyRevision::fixed("built-in/1")
    }

    fn judge(&self, question: Question<'_>) -> Result<Verdict, JudgeFailure> {
        Ok(match question.actor {
            Actor::Daemon => self.socket.daemon(),
            Actor::LocalUser { uid, .. } => self.socket.judge(*uid, question.action),
            Actor::ApiKey { id, .. } => holder_of_key::judge(*id, &question),
            Actor::Sandbox { vm, .. } => holder_of_token::judge(*vm, &question),
        })
    }
}
