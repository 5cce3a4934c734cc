//! `offshoot mcp`: where its connections come from, and how clients are told of it.
//!
//! ```text
//! session --> offshoot_mcp --> Client --Dial--> Revived: the daemon's socket, and a new daemon if it has ended
//! install --> clients (where each reads what) --> ordered (JSON), codex (TOML) --> place (backup, rename)
//! ```

pub mod clients;
mod codex;
pub mod install;
mod ordered;
mod place;
pub mod revived;
