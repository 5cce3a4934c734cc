//! The log of a run: the same lines for the same seed.

use std::sync::{Arc, Mutex};

#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn line(&self, text: impl Into<String>) {
        self.0.lock().unwrap().push(text.into());
    }
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}
