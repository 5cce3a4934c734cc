//! The one decision point: who may do what.
//!
//! ```text
//! (Actor, Command, Facts) --decide--> Permit(Authorized<Command>)   the only way such a value comes to be
//!                                     Deny(Denial)                  rule ids, a sentence, a hint
//!                                     Require(Required)             the command back, and what must happen first
//! ```
//! No engine method takes a bare `Command`, so whatever has not passed here cannot be carried out. The rules
//! are evaluated by a `Judge`, which only this crate can supply; a judge that fails, or is handed facts about
//! another VM than the command names, is a deny.
//!
//! Today's only judge is [`Policy::built_in`].

mod authorized;
mod built_in;
mod decision;
mod facts;
mod holder_of_key;
mod holder_of_token;
mod judge;
mod owner_of_socket;
mod policy;

pub use authorized::{Authorized, Grant};
pub use decision::{Decision, Declined, Denial, DenialKind, Obligation, Required, RuleId};
pub use facts::{Facts, KeyFacts, VmFacts};
pub use policy::{Policy, PolicyRevision};
