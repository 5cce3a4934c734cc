//! API keys: hashes of their secrets, and what they are good for. How many VMs one has is counted where VMs are made.

use crate::{
    LedgerExceeded, LedgerResource, StoreError, Tx, View,
    row::{hash, json, parsed, parsed_option, time, to_json},
};
use jiff::Timestamp;
use offshoot_types::{Actor, KeyId, KeyLimits, KeyName, Labels, NodeName, Owner};
use rusqlite::{Row, params};
use std::num::NonZeroU32;

/// A key, one that was made with it, and so on: so many at most, which bounds what each request of the last is checked
/// against.
const DEEPEST: usize = 8;
/// Keys that were made with one key, and with those, at most.
const MOST_MADE: u64 = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    pub id: KeyId,
    pub owner: Owner,
    pub node: NodeName,
    pub name: KeyName,
    /// Of the secret.
    pub digest: [u8; 32],
    pub limits: KeyLimits,
    pub maker: Actor,
    /// The key it was made with.
    pub parent: Option<KeyId>,
    pub created: Timestamp,
}

/// A key to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    pub id: KeyId,
    pub owner: Owner,
    pub node: NodeName,
    pub name: KeyName,
    pub digest: [u8; 32],
    pub limits: KeyLimits,
    pub maker: Actor,
}

impl View<'_> {
    /// Of all owners, makers before what was made with them.
    pub fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        // Not by age: the clock of a host may be set back.
        let sql = "WITH RECURSIVE line (id, depth) AS (
                SELECT id, 0 FROM keys WHERE parent IS NULL
                UNION ALL SELECT keys.id, depth + 1 FROM keys JOIN line ON keys.parent = line.id)
            SELECT keys.* FROM keys JOIN line ON keys.id = line.id ORDER BY depth, created, keys.id";
        self.many("list keys", sql, [], key_of)
    }

    /// This key, the one it was made with, and so on.
    fn line(&self, id: KeyId) -> Result<Vec<KeyRecord>, StoreError> {
        let mut line: Vec<KeyRecord> = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            let key = self.key(id)?.ok_or_else(|| not_found(id))?;
            next = key.parent;
            line.push(key);
        }
        Ok(line)
    }

    fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.one("find a key", "SELECT * FROM keys WHERE id = ?1", params![id.to_string()], key_of)
    }

    /// Whether there is room for another VM made with this key, and by the keys that it was made with.
    pub fn admit_key(&self, actor: &Actor) -> Result<(), StoreError> {
        let Actor::ApiKey { id, .. } = actor else { return Ok(()) };
        for key in self.line(*id)? {
            if let Some(limit) = key.limits.max_vms.map(NonZeroU32::get) {
                let sql = "WITH RECURSIVE made (id) AS (
                        SELECT ?1 UNION ALL SELECT keys.id FROM keys JOIN made ON keys.parent = made.id)
                    SELECT count(*) FROM vms WHERE state <> 'destroyed' AND made_with IN (SELECT id FROM made)";
                let counted =
                    self.one("count the VMs of a key", sql, params![key.id.to_string()], |row| {
                        row.get::<_, u64>(0)
                    })?;
                let in_use = counted.unwrap_or_default();
                if in_use >= u64::from(limit) {
                    let limit = u64::from(limit);
                    return Err(LedgerExceeded {
                        resource: LedgerResource::VmsOfKey,
                        limit,
                        in_use,
                        asked: 1,
                    }
                    .into());
                }
            }
        }
        Ok(())
    }

    /// Whether another key may be made with this one.
    fn admit_made_key(&self, id: KeyId) -> Result<(), StoreError> {
        let line = self.line(id)?;
        let exceeded =
            |limit, in_use| LedgerExceeded { resource: LedgerResource::KeysOfKey, limit, in_use, asked: 1 };
        if line.len() >= DEEPEST {
            return Err(exceeded(DEEPEST as u64 - 1, line.len() as u64 - 1).into());
        }
        let Some(first) = line.last() else { return Ok(()) };
        let sql = "WITH RECURSIVE made (id) AS (
                SELECT id FROM keys WHERE parent = ?1 UNION ALL SELECT keys.id FROM keys JOIN made ON keys.parent = made.id)
            SELECT count(*) FROM made";
        let counted = self
            .one("count the keys of a key", sql, params![first.id.to_string()], |row| row.get::<_, u64>(0))?;
        match counted.unwrap_or_default() {
            in_use if in_use >= MOST_MADE => Err(exceeded(MOST_MADE, in_use).into()),
            _ => Ok(()),
        }
    }
}

impl Tx<'_> {
    /// Records a key. Its parent is the key that its maker asked with.
    pub fn add_key(&self, key: &NewKey) -> Result<KeyRecord, StoreError> {
        let sql = "SELECT id FROM keys WHERE owner = ?1 AND name = ?2";
        let taken =
            self.one("find a key's name", sql, params![key.owner.as_str(), key.name.as_str()], |row| {
                parsed::<KeyId>(row, "id")
            })?;
        if let Some(by) = taken {
            return Err(StoreError::KeyNameTaken { name: key.name.clone(), by });
        }
        let parent = match &key.maker {
            Actor::ApiKey { id, .. } => {
                self.admit_made_key(*id)?;
                Some(*id)
            }
            Actor::LocalUser { .. } | Actor::Sandbox { .. } | Actor::Daemon => None,
        };
        let sql = "INSERT INTO keys (id, owner, labels, node, name, digest, limits, maker, parent, created)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let params = params![
            key.id.to_string(),
            key.owner.as_str(),
            to_json(&Labels::new()),
            key.node.as_str(),
            key.name.as_str(),
            key.digest,
            to_json(&key.limits),
            to_json(&key.maker),
            parent.map(|id| id.to_string()),
            self.now_micros(),
        ];
        self.execute("record a key", sql, params)?;
        self.key(key.id)?.ok_or_else(|| not_found(key.id))
    }

    /// Removes a key of the owner with all that were made with it. Returns what is gone. VMs that were made with those
    /// count for the key that made the removed one from now on: else its quota would be as many VMs as it makes keys.
    pub fn remove_key(&self, id: KeyId, owner: &Owner) -> Result<Vec<KeyId>, StoreError> {
        let removed = self.key(id)?.filter(|key| key.owner == *owner).ok_or_else(|| not_found(id))?;
        let sql = "WITH RECURSIVE made (id) AS (
                SELECT ?1 UNION ALL SELECT keys.id FROM keys JOIN made ON keys.parent = made.id)
            SELECT id FROM made";
        let gone =
            self.many("find what a key made", sql, params![id.to_string()], |row| parsed(row, "id"))?;
        if let Some(parent) = removed.parent {
            let sql = "WITH RECURSIVE made (id) AS (
                    SELECT ?1 UNION ALL SELECT keys.id FROM keys JOIN made ON keys.parent = made.id)
                UPDATE vms SET made_with = ?2 WHERE made_with IN (SELECT id FROM made)";
            self.execute("hand on the VMs of a key", sql, params![id.to_string(), parent.to_string()])?;
        }
        self.execute("remove a key", "DELETE FROM keys WHERE id = ?1", params![id.to_string()])?;
        Ok(gone)
    }
}

fn not_found(id: KeyId) -> StoreError {
    StoreError::NotFound { what: "API key", id: id.to_string() }
}

fn key_of(row: &Row<'_>) -> Result<KeyRecord, rusqlite::Error> {
    Ok(KeyRecord {
        id: parsed(row, "id")?,
        owner: parsed(row, "owner")?,
        node: parsed(row, "node")?,
        name: parsed(row, "name")?,
        digest: hash(row, "digest")?,
        limits: json(row, "limits")?,
        maker: json(row, "maker")?,
        parent: parsed_option(row, "parent")?,
        created: time(row, "created")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, actor, new_vm, operation};
    use offshoot_types::{ErrorCode, OperationKind};

    fn key(name: &str, maker: Actor, max_vms: u32) -> NewKey {
        let id = KeyId::new();
        NewKey {
            id,
            owner: Owner::default(),
            node: NodeName::default(),
            name: name.parse().unwrap(),
            digest: *blake3::hash(id.as_uuid().as_bytes()).as_bytes(),
            limits: KeyLimits { max_vms: NonZeroU32::new(max_vms), ..KeyLimits::NONE },
            maker,
        }
    }
    fn holder(key: &NewKey) -> Actor {
        Actor::ApiKey { id: key.id, owner: Owner::default() }
    }
    async fn make(f: &Fixture, name: &str, with: &NewKey) -> Result<(), StoreError> {
        let vm = new_vm(name);
        let mut operation = operation(OperationKind::Create, Some(vm.id));
        operation.actor = holder(with);
        f.store.create_vm(operation, vm).await.map(drop)
    }

    #[tokio::test]
    async fn a_key_is_read_back_as_it_was_recorded_and_gone_with_what_it_made() {
        let mut f = Fixture::new();
        let first = key("first", actor(), 5);
        let second = key("second", holder(&first), 2);
        for new in [first.clone(), second.clone()] {
            let written = f.store.transaction(move |tx| tx.add_key(&new)).await.unwrap();
            f.reopen().await;
            assert!(f.store.read(|view| view.keys()).await.unwrap().contains(&written));
        }
        let again = key("first", actor(), 5);
        let taken = f.store.transaction(move |tx| tx.add_key(&again)).await.unwrap_err();
        assert_eq!(taken.code(), ErrorCode::AlreadyExists);
        let id = first.id;
        let other: Owner = "somebody".parse().unwrap();
        let foreign = f.store.transaction(move |tx| tx.remove_key(id, &other)).await.unwrap_err();
        assert_eq!(foreign.code(), ErrorCode::NotFound);
        let gone = f.store.transaction(move |tx| tx.remove_key(id, &Owner::default())).await.unwrap();
        assert_eq!(gone.len(), 2);
        assert!(f.store.read(|view| view.keys()).await.unwrap().is_empty());
        let orphan = make(&f, "orphan", &second).await.unwrap_err();
        assert_eq!(orphan.code(), ErrorCode::NotFound, "it was removed with its maker");
    }

    #[tokio::test]
    async fn keys_that_make_keys_are_bounded_in_depth_and_number() {
        let f = Fixture::new();
        let add = |new: &NewKey| {
            let new = new.clone();
            f.store.transaction(move |tx| tx.add_key(&new))
        };
        let first = key("k0", actor(), 5);
        add(&first).await.unwrap();
        let mut last = first.clone();
        for depth in 1..DEEPEST {
            let next = key(&format!("k{depth}"), holder(&last), 5);
            add(&next).await.unwrap();
            last = next;
        }
        let deeper = add(&key("deeper", holder(&last), 5)).await.unwrap_err();
        assert_eq!(deeper.code(), ErrorCode::NoResource);
        for more in DEEPEST as u64 - 1..MOST_MADE {
            add(&key(&format!("more-{more}"), holder(&first), 5)).await.unwrap();
        }
        let one_more = add(&key("one-more", holder(&first), 5)).await.unwrap_err();
        assert_eq!(one_more.code(), ErrorCode::NoResource);
        assert!(one_more.to_string().contains("256 of 256"), "{one_more}");
        add(&key("of-nobody", actor(), 5)).await.unwrap();
        // All of them go at once, however deep.
        let id = first.id;
        let gone = f.store.transaction(move |tx| tx.remove_key(id, &Owner::default())).await.unwrap();
        assert_eq!(gone.len() as u64, MOST_MADE + 1);
    }

    #[tokio::test]
    async fn removing_a_key_gives_its_maker_no_room_for_more_vms() {
        let f = Fixture::new();
        let first = key("first", actor(), 2);
        let second = key("second", holder(&first), 2);
        for new in [first.clone(), second.clone()] {
            f.store.transaction(move |tx| tx.add_key(&new)).await.unwrap();
        }
        make(&f, "a", &second).await.unwrap();
        make(&f, "b", &second).await.unwrap();
        let id = second.id;
        f.store.transaction(move |tx| tx.remove_key(id, &Owner::default())).await.unwrap();
        let full = make(&f, "c", &first).await.unwrap_err();
        assert_eq!(full.code(), ErrorCode::NoResource);
    }

    #[tokio::test]
    async fn vms_count_for_their_key_and_for_the_keys_it_was_made_with() {
        let f = Fixture::new();
        let first = key("first", actor(), 2);
        let second = key("second", holder(&first), 2);
        for new in [first.clone(), second.clone()] {
            f.store.transaction(move |tx| tx.add_key(&new)).await.unwrap();
        }
        make(&f, "a", &second).await.unwrap();
        make(&f, "b", &first).await.unwrap();
        for with in [&first, &second] {
            let full = make(&f, "c", with).await.unwrap_err();
            assert_eq!(full.code(), ErrorCode::NoResource);
            assert!(full.to_string().contains("2 of 2"), "{full}");
        }
    }
}
