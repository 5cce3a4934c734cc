//! What is found in the answers of models, as its users see it.

mod cost;
mod fences;
mod lines;
