//! Live contexts: which interpreters a VM's guest is known to have. A note for lists; the guest has the last word.

use crate::{
    StoreError, Tx, View,
    row::{named, parsed, time, to_json, to_name},
};
use jiff::Timestamp;
use offshoot_types::{ContextName, Labels, Language, VmId};
use rusqlite::params;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextRecord {
    pub name: ContextName,
    pub language: Language,
    pub created: Timestamp,
}

impl View<'_> {
    /// By name.
    pub fn contexts(&self, vm: VmId) -> Result<Vec<ContextRecord>, StoreError> {
        let sql = "SELECT name, language, created FROM contexts WHERE vm = ?1 ORDER BY name";
        self.many("list a VM's contexts", sql, params![vm.to_string()], |row| {
            Ok(ContextRecord {
                name: parsed(row, "name")?,
                language: named(row, "language")?,
                created: time(row, "created")?,
            })
        })
    }
}

impl Tx<'_> {
    /// Notes that the VM has this context. One noted with another language was made anew in between.
    pub fn put_context(&self, vm: VmId, name: &ContextName, language: Language) -> Result<(), StoreError> {
        let record = self.expect_vm(vm)?;
        let sql = "INSERT INTO contexts (vm, name, owner, labels, node, language, created)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
            ON CONFLICT (vm, name) DO UPDATE SET language = excluded.language, created = excluded.created
            WHERE language <> excluded.language";
        let params = params![
            vm.to_string(),
            name.as_str(),
            record.owner.as_str(),
            to_json(&Labels::new()),
            record.node.as_str(),
            to_name(&language),
            self.now_micros(),
        ];
        self.execute("note a context", sql, params).map(drop)
    }

    /// Forgetting what is not noted changes nothing.
    pub fn forget_context(&self, vm: VmId, name: &ContextName) -> Result<(), StoreError> {
        let sql = "DELETE FROM contexts WHERE vm = ?1 AND name = ?2";
        self.execute("forget a context", sql, params![vm.to_string(), name.as_str()]).map(drop)
    }

    /// The VM's memory is gone, and every interpreter with it.
    pub fn forget_contexts(&self, vm: VmId) -> Result<(), StoreError> {
        let sql = "DELETE FROM contexts WHERE vm = ?1";
        self.execute("forget a VM's contexts", sql, params![vm.to_string()]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;
    use jiff::SignedDuration;

    #[tokio::test]
    async fn a_context_keeps_its_age_until_it_is_made_anew_and_goes_when_it_is_forgotten() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let put = async |name: &str, language| {
            let name = name.parse().unwrap();
            f.store.transaction(move |tx| tx.put_context(vm, &name, language)).await.unwrap();
        };
        put("b", Language::Bash).await;
        put("a", Language::Python).await;
        let first = f.store.contexts(vm).await.unwrap();
        assert_eq!(
            first.iter().map(|c| (c.name.as_str(), c.language)).collect::<Vec<_>>(),
            [("a", Language::Python), ("b", Language::Bash)]
        );
        f.clock.advance(SignedDuration::from_secs(1));
        put("a", Language::Python).await;
        assert_eq!(f.store.contexts(vm).await.unwrap(), first, "used again, not made anew");
        put("a", Language::Javascript).await;
        let again = f.store.contexts(vm).await.unwrap();
        assert_eq!(again[0].language, Language::Javascript);
        assert!(again[0].created > first[0].created);
        f.store.transaction(move |tx| tx.forget_context(vm, &"a".parse().unwrap())).await.unwrap();
        assert_eq!(f.store.contexts(vm).await.unwrap().len(), 1);
        f.store.transaction(move |tx| tx.forget_contexts(vm)).await.unwrap();
        assert_eq!(f.store.contexts(vm).await.unwrap(), []);
    }
}
