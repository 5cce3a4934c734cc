//! A provider in memory.

use std::sync::Arc;

/// What outlives a daemon: the test keeps it, each "daemon" gets a provider on it.
#[derive(Debug, Clone, Default)]
pub struct FakeHost {
    _state: Arc<()>,
}

#[derive(Debug)]
pub struct FakeProvider {
    _host: FakeHost,
}

impl FakeProvider {
    pub fn new(host: FakeHost) -> Self {
        Self { _host: host }
    }
}
