//! API keys: who they are, what they are good for, and how often they may ask.
//!
//! ```text
//! secret --hash--> register (memory) --not expired, rate--> Actor::ApiKey     no disk on the way of a request
//!                      ^
//!      create, remove: on disk first, with their audit
//! ```
//! A key that was made with another counts for it, takes from its rate, and goes with it.

use crate::{Engine, core::Core, error, host_key::random, rest::left, sync::lock, tasks::TaskKind};
use jiff::Timestamp;
use offshoot_policy::{Authorized, Grant, KeyFacts};
use offshoot_store::{AuditDecision, AuditEntry, KeyRecord, NewKey, StoreError};
use offshoot_types::{Actor, Command, ErrorCode, Failure, KeyId, KeyLimits, KeyName, VmName, VmPrefix};
use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Every secret begins with it: clients look for it.
const MARK: &str = "e2b_";
const SECRET: usize = 20;
/// Between two looks at the clock for a key that expires: it may be set meanwhile.
const LOOK: Duration = Duration::from_secs(30);

/// A key as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyView {
    pub id: KeyId,
    pub name: KeyName,
    pub limits: KeyLimits,
    /// The key it was made with.
    pub parent: Option<KeyId>,
    pub created: Timestamp,
}

impl From<&KeyRecord> for KeyView {
    fn from(key: &KeyRecord) -> Self {
        let KeyRecord { id, name, limits, parent, created, .. } = key.clone();
        Self { id, name, limits, parent, created }
    }
}

/// A new key, with its secret, which is never seen again.
#[derive(Clone, PartialEq, Eq)]
pub struct MadeKey {
    pub key: KeyView,
    pub secret: String,
}

impl std::fmt::Debug for MadeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MadeKey").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The keys there are. What is in here is on disk.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    register: Mutex<Register>,
    /// One change at a time, on disk and in the register: else a key that is made while its maker is removed would be
    /// known for longer than it exists.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Register {
    by_digest: HashMap<[u8; 32], KeyId>,
    by_id: HashMap<KeyId, Arc<Held>>,
}

#[derive(Debug)]
struct Held {
    record: KeyRecord,
    /// Cancelled when it is removed, for whom it let in before.
    removed: CancellationToken,
    bucket: Option<Mutex<Bucket>>,
    /// The key it was made with, and so on.
    above: Option<Arc<Held>>,
}

/// How much of a rate is left.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn has_one(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.rate).min(self.rate);
        self.at = now;
        self.left >= 1.0
    }

    fn take(&mut self) {
        self.left -= 1.0;
    }
}

impl Held {
    fn holds(&self, now: Timestamp) -> bool {
        self.record.limits.expires.is_none_or(|expires| now < expires)
    }

    /// This key, the one it was made with, and so on.
    fn line(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |key| key.above.as_deref())
    }

    /// Takes one request from the rate of each of its line, or none from any; the key whose rate is used up.
    fn take_one(&self, now: Instant) -> Result<(), &Self> {
        // From a key to its maker, for everybody: nobody waits in a circle.
        let mut taken = Vec::new();
        for key in self.line() {
            let Some(bucket) = &key.bucket else { continue };
            let mut bucket = lock(bucket);
            if !bucket.has_one(now) {
                return Err(key);
            }
            taken.push(bucket);
        }
        taken.iter_mut().for_each(|bucket| bucket.take());
        Ok(())
    }
}

/// Which VMs an actor may know of.
#[derive(Debug)]
pub(crate) enum Sees {
    All,
    Only(VmPrefix),
    /// Its key was removed since it was permitted.
    Nothing,
}

impl Sees {
    pub fn name(&self, name: &VmName) -> bool {
        match self {
            Self::All => true,
            Self::Only(prefix) => prefix.begins(name),
            Self::Nothing => false,
        }
    }

    /// Refuses whoever may know of some only.
    pub fn all(&self, what: &str) -> Result<(), Failure> {
        let message = match self {
            Self::All => return Ok(()),
            Self::Only(prefix) => {
                format!("this API key may not list the {what} of VMs that do not begin with `{prefix}`")
            }
            Self::Nothing => format!("this API key may not list the {what}: it does not exist any more"),
        };
        Err(Failure::new(ErrorCode::Denied, message).hint("name the VM they are of"))
    }
}

impl Keys {
    fn add(&self, record: KeyRecord) {
        let mut register = lock(&self.register);
        let above = record.parent.and_then(|parent| register.by_id.get(&parent).cloned());
        let bucket = record.limits.rate.map(|rate| {
            let rate = f64::from(rate.get());
            Mutex::new(Bucket { rate, left: rate, at: Instant::now() })
        });
        register.by_digest.insert(record.digest, record.id);
        let removed = CancellationToken::new();
        register.by_id.insert(record.id, Arc::new(Held { record, removed, bucket, above }));
    }

    fn remove(&self, gone: &[KeyId]) {
        let mut register = lock(&self.register);
        for (_, held) in register.by_id.extract_if(|id, _| gone.contains(id)) {
            held.removed.cancel();
        }
        register.by_digest.retain(|_, id| !gone.contains(id));
    }

    fn get(&self, id: KeyId) -> Option<Arc<Held>> {
        lock(&self.register).by_id.get(&id).cloned()
    }

    pub fn facts(&self, actor: &Actor, now: Timestamp) -> Option<KeyFacts> {
        let Actor::ApiKey { id, .. } = actor else { return None };
        let held = self.get(*id).filter(|held| held.holds(now))?;
        Some(KeyFacts { id: *id, limits: held.record.limits.clone() })
    }

    pub fn sees(&self, actor: &Actor) -> Sees {
        let Actor::ApiKey { id, .. } = actor else { return Sees::All };
        match self.get(*id) {
            None => Sees::Nothing,
            Some(held) => held.record.limits.vm_prefix.clone().map_or(Sees::All, Sees::Only),
        }
    }

    /// Looked for by the hash of what was sent: how long that takes tells nothing of the secrets there are.
    fn authenticate(&self, secret: &str, now: Timestamp) -> Result<Actor, Failure> {
        let unknown = || {
            Failure::new(ErrorCode::Unauthenticated, "this API key is not known here, or has expired")
                .hint("`offshoot key list` shows the keys there are, `offshoot key create` makes one")
        };
        let digest = blake3::hash(secret.as_bytes());
        let held = {
            let register = lock(&self.register);
            register.by_digest.get(digest.as_bytes()).and_then(|id| register.by_id.get(id)).cloned()
        };
        let held = held.filter(|held| digest == held.record.digest && held.holds(now)).ok_or_else(unknown)?;
        if let Err(key) = held.take_one(Instant::now()) {
            let rate = key.record.limits.rate.map_or(0, std::num::NonZero::get);
            let message = format!("API key `{}` is good for {rate} requests a second", key.record.name);
            return Err(Failure::new(ErrorCode::RateLimited, message).hint("wait a second, then repeat it"));
        }
        Ok(Actor::ApiKey { id: held.record.id, owner: held.record.owner.clone() })
    }
}

impl Core {
    pub async fn load_keys(&self) -> Result<(), StoreError> {
        for key in self.store.read(|view| view.keys()).await? {
            self.keys.add(key);
        }
        Ok(())
    }

    async fn make_key(&self, name: KeyName, limits: KeyLimits, grant: Grant) -> Result<MadeKey, Failure> {
        let mut bytes = [0; SECRET];
        random(&mut bytes)?;
        let mut secret = MARK.to_owned();
        for byte in bytes {
            write!(secret, "{byte:02x}").expect("a String takes any text");
        }
        let new = NewKey {
            id: KeyId::new(),
            owner: grant.actor().owner(),
            node: self.options.node.clone(),
            name,
            digest: *blake3::hash(secret.as_bytes()).as_bytes(),
            limits,
            maker: grant.actor().clone(),
        };
        let words = format!("made `{}`: {}", new.name, words(&new.limits));
        let entry = audit(&grant, "create-key", new.id, words);
        let _one_at_a_time = self.keys.changing.lock().await;
        let written = self.store.transaction(move |tx| {
            let key = tx.add_key(&new)?;
            tx.audit_entry(&entry)?;
            Ok(key)
        });
        let record = written.await?;
        let key = KeyView::from(&record);
        self.keys.add(record);
        Ok(MadeKey { key, secret })
    }

    async fn unmake_key(&self, key: KeyId, grant: Grant) -> Result<Vec<KeyId>, Failure> {
        let _one_at_a_time = self.keys.changing.lock().await;
        if let Actor::ApiKey { id, .. } = grant.actor() {
            let its_own = self.keys.get(key).is_none_or(|held| held.line().any(|key| key.record.id == *id));
            if !its_own {
                let message = format!("API key {key} was not made with the one that would remove it");
                return Err(Failure::new(ErrorCode::Denied, message)
                    .hint("ask with the key it was made with, or over the daemon's own socket"));
            }
        }
        let entry = audit(&grant, "remove-key", key, "removed, with what was made with it".into());
        let owner = grant.actor().owner();
        let written = self.store.transaction(move |tx| {
            let gone = tx.remove_key(key, &owner)?;
            tx.audit_entry(&entry)?;
            Ok(gone)
        });
        let gone = written.await?;
        self.keys.remove(&gone);
        Ok(gone)
    }
}

fn words(limits: &KeyLimits) -> String {
    serde_json::to_string(limits).expect("limits are plain data")
}

fn audit(grant: &Grant, action: &str, key: KeyId, detail: String) -> AuditEntry {
    AuditEntry {
        actor: grant.actor().clone(),
        action: action.into(),
        target: key.to_string(),
        decision: AuditDecision::Permit,
        rules: grant.rules().iter().map(ToString::to_string).collect(),
        revision: grant.revision().to_string(),
        detail,
    }
}

impl Engine {
    /// Who asks with this secret. Counts against the rate of the key.
    pub fn authenticate(&self, secret: &str) -> Result<Actor, Failure> {
        self.core().keys.authenticate(secret, self.core().now())
    }

    /// Resolves when this actor's key is removed or expires, at once if it has been; `None` for actors without one. What
    /// goes on for a long time must not go on for longer than that.
    pub fn key_ends(&self, actor: &Actor) -> Option<impl Future<Output = ()> + Send + use<>> {
        let Actor::ApiKey { id, .. } = actor else { return None };
        let (core, held) = (self.core().clone(), self.core().keys.get(*id));
        Some(async move {
            let Some(held) = held else { return };
            let expired = async {
                let Some(expires) = held.record.limits.expires else { return std::future::pending().await };
                while let Some(left) = left(expires, core.now()) {
                    tokio::time::sleep(left.min(LOOK)).await;
                }
            };
            tokio::select! {
                () = held.removed.cancelled() => {}
                () = expired => {}
            }
        })
    }

    /// How far the key of this actor reaches; `None` if it has none.
    pub fn key_limits(&self, actor: &Actor) -> Option<KeyLimits> {
        self.core().keys.facts(actor, self.core().now()).map(|key| key.limits)
    }

    /// Makes a key ([`Command::CreateKey`]). Its secret is in the answer and nowhere else.
    pub async fn create_key(&self, permit: Authorized<Command>) -> Result<MadeKey, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::CreateKey { name, limits } = command else {
            return Err(error::wrong_permit("create_key", command.action()));
        };
        let core = self.core().clone();
        let made = async move { core.make_key(name, *limits, grant).await };
        self.core().detached(TaskKind::Acceptor, made).await
    }

    /// Keys of the actor's owner, oldest first ([`Command::ListKeys`]).
    pub fn keys(&self, permit: Authorized<Command>) -> Result<Vec<KeyView>, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::ListKeys = command else {
            return Err(error::wrong_permit("keys", command.action()));
        };
        let owner = grant.actor().owner();
        let register = lock(&self.core().keys.register);
        let held = register.by_id.values().filter(|held| held.record.owner == owner);
        let mut keys: Vec<KeyView> = held.map(|held| KeyView::from(&held.record)).collect();
        keys.sort_by_key(|key| (key.created, key.id));
        Ok(keys)
    }

    /// Removes a key and what was made with it ([`Command::RemoveKey`]); from then on nobody is known by them.
    pub async fn remove_key(&self, permit: Authorized<Command>) -> Result<Vec<KeyId>, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::RemoveKey { key } = command else {
            return Err(error::wrong_permit("remove_key", command.action()));
        };
        let core = self.core().clone();
        self.core().detached(TaskKind::Acceptor, async move { core.unmake_key(key, grant).await }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_so_many_a_second_in_bursts_of_as_many() {
        let start = Instant::now();
        let mut bucket = Bucket { rate: 2.0, left: 2.0, at: start };
        let at = |ms| start + Duration::from_millis(ms);
        let mut take = |ms| {
            let enough = bucket.has_one(at(ms));
            if enough {
                bucket.take();
            }
            enough
        };
        assert!(take(0) && take(0) && !take(0));
        assert!(!take(400) && take(500) && !take(500));
        assert!(take(60_000) && take(60_000) && !take(60_000));
    }

    fn key(name: &str, parent: Option<KeyId>, rate: u32) -> KeyRecord {
        KeyRecord {
            id: KeyId::new(),
            owner: offshoot_types::Owner::default(),
            node: offshoot_types::NodeName::default(),
            name: name.parse().unwrap(),
            digest: *blake3::hash(name.as_bytes()).as_bytes(),
            limits: KeyLimits { rate: std::num::NonZero::new(rate), ..KeyLimits::NONE },
            maker: Actor::Daemon,
            parent,
            created: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_request_that_a_makers_rate_refuses_takes_nothing_from_the_keys_own() {
        let keys = Keys::default();
        let maker = key("maker", None, 1);
        let made = key("made", Some(maker.id), 2);
        let (maker_id, made_id) = (maker.id, made.id);
        keys.add(maker);
        keys.add(made);
        let held = keys.get(made_id).unwrap();
        let start = Instant::now();
        held.take_one(start).unwrap();
        for _ in 0..5 {
            assert_eq!(held.take_one(start).unwrap_err().record.id, maker_id);
        }
        assert!(lock(held.bucket.as_ref().unwrap()).has_one(start), "one of its two is left");
    }

    #[test]
    fn a_key_that_is_gone_sees_nothing() {
        let keys = Keys::default();
        let one = key("one", None, 1);
        let actor = Actor::ApiKey { id: one.id, owner: one.owner.clone() };
        let (id, name) = (one.id, "web".parse().unwrap());
        keys.add(one);
        assert!(keys.sees(&actor).name(&name));
        keys.remove(&[id]);
        assert!(!keys.sees(&actor).name(&name));
        assert!(keys.sees(&actor).all("things").is_err());
    }
}
