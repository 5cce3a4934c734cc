//! What the wire calls envd, on the fake provider, by plain requests.

mod process;
mod wire;
