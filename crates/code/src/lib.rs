//! Code in what a model says: where it is, in which language, whether it is meant to be run, and what it may break.
//!
//! ```text
//! text --nesting.rs: bounded--> CommonMark --> fenced blocks (blocks.rs) --+--> in the order of the text, each with
//!      '-- lines outside of all blocks ------> commands (inline.rs) -------'    language, confidence and hazard
//!      '--------------------------------------> Intent: what the text as a whole asks for (confidence.rs)
//! ```
//! Pure: no I/O, nothing is run. The time for a text is bounded by its length, whatever it says.

mod blocks;
mod confidence;
mod detect;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod inline;
mod language;
mod nesting;
pub mod risk;

pub use blocks::{Block, Origin, extract};
pub use confidence::{Confidence, Intent, Suggestion};
pub use language::{Language, Tag, UnsupportedLanguage};
pub use risk::Hazard;
