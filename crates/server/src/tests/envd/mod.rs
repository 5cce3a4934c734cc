//! What the wire calls envd, on the fake provider, by plain requests.

mod files;
mod filesystem;
mod process;
mod wire;
