//! What the daemon writes about itself, on stderr.

use std::io::{IsTerminal, stderr};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Readable,
    /// One JSON object per line.
    Json,
}

/// Installs the process's subscriber. `filter` is in the syntax of `RUST_LOG`, which overrides it. If one is
/// installed already (a test's, say), that one stays.
pub fn install(format: LogFormat, filter: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match format {
        LogFormat::Readable => registry
            .with(fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal()).with_target(false))
            .try_init(),
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(stderr)).try_init()
        }
    };
    if installed.is_err() {
        tracing::debug!("another subscriber is installed already");
    }
}
