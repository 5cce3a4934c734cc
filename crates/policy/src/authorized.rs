//! What a permit is made of. Both types have private fields and no public constructor, and `Authorized` is
//! neither `Clone` nor `Deserialize`: one decision, one use.

use crate::{PolicyRevision, RuleId};
use offshoot_types::{Action, Actor, AgentName, Generation, RequestId, VmId, VmName};

/// A `T` that policy permitted, with the evidence. Minted by [`crate::Policy::decide`] alone.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that is not carried out was asked for in vain"]
pub struct Authorized<T> {
    inner: T,
    grant: Grant,
}

impl<T> Authorized<T> {
    pub(crate) const fn mint(inner: T, grant: Grant) -> Self {
        Self { inner, grant }
    }
    pub const fn get(&self) -> &T {
        &self.inner
    }
    /// The permit, of a request that is known by its idempotency key: whatever is done by it is recorded in its name.
    pub fn in_name_of(mut self, request: Option<RequestId>) -> Self {
        self.grant.request = request;
        self
    }
    /// The permit, of a caller that says on whose behalf it asks: a claim that is recorded and decides nothing.
    pub fn on_behalf_of(mut self, agent: Option<AgentName>) -> Self {
        self.grant.agent = agent;
        self
    }
    pub const fn grant(&self) -> &Grant {
        &self.grant
    }
    /// Takes the permit apart to carry it out. The parts cannot be put together again.
    pub fn into_parts(self) -> (T, Grant) {
        (self.inner, self.grant)
    }
}

/// The evidence of a permit: who, what, by which rules, and on which state of the VM it was judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    actor: Actor,
    action: Action,
    revision: PolicyRevision,
    rules: Vec<RuleId>,
    judged: Option<(VmId, Generation)>,
    beside: Option<VmName>,
    request: Option<RequestId>,
    agent: Option<AgentName>,
}

impl Grant {
    pub(crate) const fn new(
        actor: Actor,
        action: Action,
        revision: PolicyRevision,
        rules: Vec<RuleId>,
        judged: Option<(VmId, Generation)>,
        beside: Option<VmName>,
    ) -> Self {
        Self { actor, action, revision, rules, judged, beside, request: None, agent: None }
    }
    /// The request with an idempotency key that it was given for.
    pub const fn request(&self) -> Option<RequestId> {
        self.request
    }
    /// On whose behalf the actor says it asks.
    pub const fn agent(&self) -> Option<&AgentName> {
        self.agent.as_ref()
    }
    pub const fn actor(&self) -> &Actor {
        &self.actor
    }
    pub const fn action(&self) -> Action {
        self.action
    }
    pub const fn revision(&self) -> &PolicyRevision {
        &self.revision
    }
    pub fn rules(&self) -> &[RuleId] {
        &self.rules
    }
    /// The VM the decision was about; `None` for commands that name no existing VM.
    pub fn vm(&self) -> Option<VmId> {
        self.judged.map(|(vm, _)| vm)
    }
    /// The VM of the other thing that the command names.
    pub const fn beside(&self) -> Option<&VmName> {
        self.beside.as_ref()
    }
    /// The generation of that VM when it was judged. If it has moved on since, ask again before acting.
    pub fn generation(&self) -> Option<Generation> {
        self.judged.map(|(_, generation)| generation)
    }
}
