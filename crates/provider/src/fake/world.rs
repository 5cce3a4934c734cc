//! What the programs of a fake guest share: files, names, random numbers, the power switch.

use super::{files::Files, host::GuestFaults, stillness::Still};
use crate::Exit;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

pub(super) const MACHINE_ID: &str = "/etc/machine-id";

#[derive(Debug)]
pub(super) struct World {
    pub boot_id: String,
    pub files: Files,
    pub still: watch::Sender<Still>,
    hostname: Mutex<String>,
    random: Mutex<Random>,
    /// `Some` once the guest has ended itself.
    power: watch::Sender<Option<Exit>>,
    pub faults: GuestFaults,
}

impl World {
    pub fn new(boot_id: String, files: Files, faults: GuestFaults) -> Self {
        let random = Random::new(uuid::Uuid::new_v4().as_bytes());
        Self::with(boot_id, files, String::new(), random, Still::default(), faults)
    }

    pub fn with(
        boot_id: String,
        files: Files,
        hostname: String,
        random: Random,
        still: Still,
        faults: GuestFaults,
    ) -> Self {
        Self {
            boot_id,
            files,
            still: watch::Sender::new(still),
            hostname: Mutex::new(hostname),
            random: Mutex::new(random),
            power: watch::Sender::new(None),
            faults,
        }
    }

    pub fn hostname(&self) -> MutexGuard<'_, String> {
        self.hostname.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn random(&self) -> MutexGuard<'_, Random> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn end(&self, exit: Exit) {
        self.power.send_replace(Some(exit));
    }

    pub fn power(&self) -> watch::Receiver<Option<Exit>> {
        self.power.subscribe()
    }
}

/// The state of a random number generator: two copies of it give the same numbers until one is renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Random {
    seed: [u8; 32],
    drawn: u64,
}

impl Random {
    pub fn new(entropy: &[u8]) -> Self {
        Self { seed: *blake3::hash(entropy).as_bytes(), drawn: 0 }
    }

    /// Mixes fresh entropy into what there is.
    pub fn renew(&mut self, entropy: &[u8]) {
        *self = Self { seed: *blake3::keyed_hash(&self.seed, entropy).as_bytes(), drawn: 0 };
    }

    pub fn draw(&mut self) -> [u8; 16] {
        self.drawn += 1;
        let drawn = blake3::keyed_hash(&self.seed, &self.drawn.to_le_bytes());
        std::array::from_fn(|index| drawn.as_bytes()[index])
    }

    /// Between `low` and `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        let drawn = self.draw();
        let number = u64::from_le_bytes(std::array::from_fn(|index| drawn[index]));
        low + number % (high.saturating_sub(low).saturating_add(1)).max(1)
    }
}
