//! Disk layers: what was written between two snapshots, as files that lie over each other.
//!
//! ```text
//!   VM a --writes to--> top ----parent----> frozen <----parent---- top <--writes to-- VM b (a fork)
//!                                              ^
//!                              snapshot -------+ names the disk as it was
//! ```
//! A layer is recorded before its file is made and forgotten after the file was seen gone. Chains are read from here
//! and never from the files' headers.

use crate::{
    StoreError, Tx, View,
    row::{json, parsed, parsed_option, time, to_json},
};
use jiff::Timestamp;
use offshoot_types::{DiskMib, ImageDigest, Labels, LayerId, NodeName, OperationId, Owner, SnapshotId, VmId};
use rusqlite::{Row, params};

/// A layer about to be made. Its file is that of `image`'s disk template where neither it nor a layer below was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLayer {
    pub id: LayerId,
    pub owner: Owner,
    pub node: NodeName,
    /// `None`: it lies directly over the image's template.
    pub parent: Option<LayerId>,
    pub image: ImageDigest,
    /// Relative to the state directory; no other layer has it.
    pub path: String,
    /// What the guest sees, whatever part of it is written.
    pub size: DiskMib,
    /// Who makes it: until this operation has ended, [`View::unused_layers`] leaves the layer out.
    pub operation: Option<OperationId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRecord {
    pub id: LayerId,
    pub owner: Owner,
    pub labels: Labels,
    pub node: NodeName,
    pub parent: Option<LayerId>,
    pub image: ImageDigest,
    pub path: String,
    pub size: DiskMib,
    pub operation: Option<OperationId>,
    /// Nobody writes to it any more, ever.
    pub frozen: bool,
    pub created: Timestamp,
}

const COLUMNS: &str = "id, owner, labels, node, parent, image, path, size_mib, operation, frozen, created";

fn from_row(row: &Row<'_>) -> Result<LayerRecord, rusqlite::Error> {
    let size = DiskMib::from_mib(row.get("size_mib")?);
    let size = size.map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Integer, Box::new(error))
    })?;
    Ok(LayerRecord {
        id: parsed(row, "id")?,
        owner: parsed(row, "owner")?,
        labels: json(row, "labels")?,
        node: parsed(row, "node")?,
        parent: parsed_option(row, "parent")?,
        image: parsed(row, "image")?,
        path: row.get("path")?,
        size,
        operation: parsed_option(row, "operation")?,
        frozen: row.get("frozen")?,
        created: time(row, "created")?,
    })
}

impl View<'_> {
    pub fn layer(&self, id: LayerId) -> Result<Option<LayerRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM layers WHERE id = ?1");
        self.one("read a disk layer", &sql, params![id.to_string()], from_row)
    }

    /// Every layer there is a record of, oldest first.
    pub fn layers(&self) -> Result<Vec<LayerRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM layers ORDER BY created, id");
        self.many("list disk layers", &sql, [], from_row)
    }

    /// A layer and all it lies over, newest first: the disk, as a VMM is told of it. Empty if there is no such layer.
    pub fn layer_chain(&self, id: LayerId) -> Result<Vec<LayerRecord>, StoreError> {
        let sql = format!(
            "WITH RECURSIVE chain (link, depth) AS (
                SELECT ?1, 0 UNION ALL
                SELECT layers.parent, depth + 1 FROM chain JOIN layers ON layers.id = link
                WHERE layers.parent IS NOT NULL)
             SELECT {COLUMNS} FROM chain JOIN layers ON layers.id = link ORDER BY depth"
        );
        self.many("read a disk's layers", &sql, params![id.to_string()], from_row)
    }

    /// Layers neither a VM nor a snapshot needs, those lying over others first, so that they can be forgotten in this
    /// order. What an unfinished operation made is not among them: it may be about to be used.
    pub fn unused_layers(&self) -> Result<Vec<LayerRecord>, StoreError> {
        let sql = format!(
            "WITH RECURSIVE needed (link) AS (
                SELECT layer FROM vms WHERE layer IS NOT NULL UNION
                SELECT layer FROM snapshots UNION
                SELECT layers.id FROM layers JOIN operations ON operations.id = layers.operation
                    WHERE operations.phase <> 'ended' UNION
                SELECT layers.parent FROM needed JOIN layers ON layers.id = link
                    WHERE layers.parent IS NOT NULL),
             unused (link, depth) AS (
                SELECT id, 0 FROM layers WHERE id NOT IN (SELECT link FROM needed) UNION ALL
                SELECT layers.parent, depth + 1 FROM unused JOIN layers ON layers.id = link
                    WHERE layers.parent IS NOT NULL AND layers.parent NOT IN (SELECT link FROM needed))
             SELECT {COLUMNS} FROM (SELECT link, max(depth) AS depth FROM unused GROUP BY link)
                JOIN layers ON layers.id = link ORDER BY depth, id"
        );
        self.many("list unused disk layers", &sql, [], from_row)
    }

    pub(crate) fn expect_layer(&self, id: LayerId) -> Result<LayerRecord, StoreError> {
        self.layer(id)?.ok_or_else(|| StoreError::NotFound { what: "disk layer", id: id.to_string() })
    }

    /// Who needs a layer, in words.
    fn layer_users(&self, id: LayerId) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT 'VM ' || name AS user FROM vms WHERE layer = ?1 UNION ALL
            SELECT 'snapshot ' || id FROM snapshots WHERE layer = ?1 UNION ALL
            SELECT 'disk layer ' || id FROM layers WHERE parent = ?1";
        self.many("find who needs a disk layer", sql, params![id.to_string()], |row| row.get("user"))
    }
}

impl Tx<'_> {
    /// Records a layer that is about to be made. Repeating it changes nothing; another layer of this id is refused.
    pub fn add_layer(&self, layer: &NewLayer) -> Result<(), StoreError> {
        let NewLayer { id, owner, node, parent, image, path, size, operation } = layer;
        let invalid = |detail: String| StoreError::Invalid { what: "disk layer", detail };
        if let Some(found) = self.layer(*id)? {
            let same = (&found.parent, &found.image, &found.path, &found.size) == (parent, image, path, size);
            return if same { Ok(()) } else { Err(invalid(format!("{id} is recorded already, as another"))) };
        }
        if path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(invalid(format!("`{path}` does not lie in the state directory")));
        }
        if let Some(parent) = parent {
            let below = self.expect_layer(*parent)?;
            if below.image != *image || below.size > *size {
                let detail = format!("{id} does not fit over {parent}: another image, or a smaller disk");
                return Err(invalid(detail));
            }
        }
        let sql =
            "INSERT INTO layers (id, owner, labels, node, parent, image, path, size_mib, operation, created)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let params = params![
            id.to_string(),
            owner.as_str(),
            to_json(&Labels::new()),
            node.as_str(),
            parent.map(|parent| parent.to_string()),
            image.to_string(),
            path,
            size.mib(),
            operation.map(|operation| operation.to_string()),
            self.now_micros(),
        ];
        self.execute("record a disk layer", sql, params).map(drop)
    }

    /// From now on nobody writes to it. Repeating it changes nothing; there is no way back.
    pub fn freeze_layer(&self, id: LayerId) -> Result<(), StoreError> {
        self.expect_layer(id)?;
        let sql = "UPDATE layers SET frozen = 1 WHERE id = ?1";
        self.execute("freeze a disk layer", sql, params![id.to_string()]).map(drop)
    }

    /// Which layer a VM writes to from now on. Refused if it is frozen or another VM's.
    pub fn set_vm_layer(&self, vm: VmId, layer: LayerId) -> Result<(), StoreError> {
        self.expect_vm(vm)?;
        let record = self.expect_layer(layer)?;
        if record.frozen {
            let detail = format!("{layer} is frozen, so VM {vm} cannot write to it");
            return Err(StoreError::Invalid { what: "disk layer", detail });
        }
        let sql = "SELECT name FROM vms WHERE layer = ?1 AND id <> ?2";
        let other = self.one(
            "find who writes to a disk layer",
            sql,
            params![layer.to_string(), vm.to_string()],
            |row| row.get::<_, String>("name"),
        )?;
        if let Some(name) = other {
            let (what, by) = (format!("disk layer {layer}"), vec![format!("VM {name}")]);
            return Err(StoreError::InUse { what, by });
        }
        let sql = "UPDATE vms SET layer = ?2 WHERE id = ?1";
        self.execute("set a VM's disk layer", sql, params![vm.to_string(), layer.to_string()]).map(drop)
    }

    /// From now on `merged`, which lies over what the last of `covered` lies over, stands for all of them: consecutive
    /// layers, newest first, that nobody names and that lie below one layer only. Refused while a VM above them is
    /// starting, for it has listed them, and while there is a snapshot above them that is none of `told`: one that is being
    /// written, or has been since the caller looked, lists them too. The layers themselves stay, needed by nobody.
    pub fn merge_layers(
        &self,
        merged: LayerId,
        covered: &[LayerId],
        told: &[SnapshotId],
    ) -> Result<(), StoreError> {
        let invalid = |detail: String| StoreError::Invalid { what: "disk layer", detail };
        let new = self.expect_layer(merged)?;
        let [newest, .., oldest] = covered else {
            return Err(invalid("one layer cannot be merged".into()));
        };
        let mut above = None;
        for id in covered {
            let layer = self.expect_layer(*id)?;
            if !layer.frozen || layer.image != new.image || layer.size != new.size {
                return Err(invalid(format!("{id} cannot be part of {merged}")));
            }
            let users = self.layer_users(*id)?;
            let only_one_above = match &above {
                Some(above) => users == [format!("disk layer {above}")],
                None => users.len() == 1 && users[0].starts_with("disk layer "),
            };
            if !only_one_above {
                return Err(StoreError::InUse { what: format!("disk layer {id}"), by: users });
            }
            above = Some(*id);
        }
        if self.expect_layer(*oldest)?.parent != new.parent || !new.frozen {
            return Err(invalid(format!("{merged} does not lie where those it covers do")));
        }
        let by = self.listing(*newest, told)?;
        if !by.is_empty() {
            return Err(StoreError::InUse { what: format!("disk layer {newest}"), by });
        }
        let sql = "UPDATE layers SET parent = ?2 WHERE parent = ?1 AND id <> ?2";
        let params = params![newest.to_string(), merged.to_string()];
        self.execute("put a disk layer in place of others", sql, params).map(drop)
    }

    /// Who lists a layer as part of a disk and is none of `told`, in words. What a damaged snapshot lists does not count.
    fn listing(&self, layer: LayerId, told: &[SnapshotId]) -> Result<Vec<String>, StoreError> {
        const ABOVE: &str = "WITH RECURSIVE above (link) AS (
            SELECT ?1 UNION SELECT layers.id FROM above JOIN layers ON layers.parent = link)";
        let sql = format!(
            "{ABOVE} SELECT snapshots.id AS id FROM snapshots JOIN above ON snapshots.layer = link
                WHERE snapshots.state <> 'damaged' ORDER BY taken"
        );
        let above: Vec<SnapshotId> =
            self.many("find the snapshots above a disk layer", &sql, params![layer.to_string()], |row| {
                parsed(row, "id")
            })?;
        let sql = format!(
            "{ABOVE} SELECT 'VM ' || vms.name AS user FROM vms JOIN above ON vms.layer = link
                WHERE vms.state = 'starting'"
        );
        let starting =
            self.many("find who is about to read a disk layer", &sql, params![layer.to_string()], |row| {
                row.get("user")
            })?;
        let untold = above.into_iter().filter(|id| !told.contains(id)).map(|id| format!("snapshot {id}"));
        Ok(untold.chain(starting).collect())
    }

    /// Forgets a layer whose file was seen gone. Refused while somebody needs it; forgetting what is not recorded changes
    /// nothing.
    pub fn forget_layer(&self, id: LayerId) -> Result<(), StoreError> {
        let by = self.layer_users(id)?;
        if !by.is_empty() {
            return Err(StoreError::InUse { what: format!("disk layer {id}"), by });
        }
        self.execute("forget a disk layer", "DELETE FROM layers WHERE id = ?1", params![id.to_string()])
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, new_layer, operation};
    use offshoot_types::{ErrorCode, OperationKind, OperationOutcome, VmState};

    async fn add(f: &Fixture, layer: &NewLayer) -> Result<(), StoreError> {
        f.store.add_layer(layer.clone()).await
    }

    async fn ids(f: &Fixture) -> Vec<LayerId> {
        f.store.unused_layers().await.unwrap().into_iter().map(|layer| layer.id).collect()
    }

    #[tokio::test]
    async fn a_chain_is_read_newest_first_also_after_a_restart() {
        let mut f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let (_, first) = f.layer_on(vm).await;
        let (below, second) = f.layer_on(vm).await;
        assert_eq!(below, Some(first));
        f.reopen().await;
        let chain = f.store.layer_chain(second).await.unwrap();
        assert_eq!(chain.iter().map(|layer| layer.id).collect::<Vec<_>>(), [second, first]);
        assert_eq!(chain.iter().map(|layer| layer.frozen).collect::<Vec<_>>(), [false, true]);
        assert_eq!(f.store.layer_chain(LayerId::new()).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_layer_is_recorded_once_and_only_where_it_fits() {
        let f = Fixture::new();
        let layer = new_layer(None);
        for _ in 0..2 {
            add(&f, &layer).await.unwrap();
        }
        let over = |change: fn(&mut NewLayer)| {
            let mut wrong = new_layer(Some(layer.id));
            change(&mut wrong);
            wrong
        };
        for wrong in [
            over(|layer| layer.image = "0b".repeat(32).parse().unwrap()),
            over(|layer| layer.size = "512M".parse().unwrap()),
            over(|layer| layer.path = "/etc/passwd".into()),
            over(|layer| layer.path = "disks/../offshoot.db".into()),
            NewLayer { path: "disks/other".into(), ..layer.clone() },
        ] {
            let refused = add(&f, &wrong).await.unwrap_err();
            assert!(
                matches!(refused, StoreError::Invalid { what: "disk layer", .. }),
                "{wrong:?}: {refused}"
            );
        }
        let orphan = new_layer(Some(LayerId::new()));
        assert!(matches!(add(&f, &orphan).await, Err(StoreError::NotFound { .. })));
    }

    #[tokio::test]
    async fn nobody_writes_to_a_frozen_layer_or_to_that_of_another_vm() {
        let f = Fixture::new();
        let ((a, _), (b, _)) = (f.stopped("a").await, f.stopped("b").await);
        let (_, first) = f.layer_on(a).await;
        let taken = f.store.transaction(move |tx| tx.set_vm_layer(b, first)).await.unwrap_err();
        assert_eq!(taken.to_string(), format!("disk layer {first} is needed by VM a"));
        assert_eq!(taken.code(), ErrorCode::InUse);
        f.layer_on(a).await;
        let frozen = f.store.transaction(move |tx| tx.set_vm_layer(b, first)).await.unwrap_err();
        assert!(frozen.to_string().contains("is frozen"), "{frozen}");
    }

    #[tokio::test]
    async fn unused_layers_come_in_the_order_in_which_they_can_be_forgotten() {
        let f = Fixture::new();
        let (a, at) = f.stopped("a").await;
        let kept = f.take_named(a, "kept").await;
        let named = f.store.snapshot(kept).await.unwrap().unwrap().layer;
        let (_, second) = f.layer_on(a).await;
        let top = f.store.vm(a).await.unwrap().unwrap().layer.unwrap();
        assert_eq!(top, second);
        assert_eq!(ids(&f).await, [], "what a VM or a snapshot lies over is needed");
        let middle = f.store.layer_chain(top).await.unwrap()[1].id;
        let refused = f.store.forget_layer(middle).await.unwrap_err();
        assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
        f.go(a, at, VmState::Destroyed).await.unwrap();
        assert_eq!(ids(&f).await, [top, middle], "a destroyed VM needs nothing, its named snapshot does");
        assert_eq!(f.store.images_in_use().await.unwrap().len(), 1, "and the image under it");
        for layer in [top, middle] {
            f.store.forget_layer(layer).await.unwrap();
        }
        f.remove(kept).await.unwrap();
        assert_eq!(ids(&f).await, [named]);
        for _ in 0..2 {
            f.store.forget_layer(named).await.unwrap();
        }
        assert_eq!(f.store.images_in_use().await.unwrap().len(), 0);
    }

    #[tokio::test]
    async fn layers_nobody_names_are_covered_by_one_and_unused_then() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let kept = f.take_named(vm, "kept").await;
        let base = f.store.snapshot(kept).await.unwrap().unwrap().layer;
        for _ in 0..3 {
            f.layer_on(vm).await;
        }
        let top = f.store.vm(vm).await.unwrap().unwrap().layer.unwrap();
        let chain: Vec<LayerId> =
            f.store.layer_chain(top).await.unwrap().iter().map(|layer| layer.id).collect();
        let [_, c, b, a, last] = chain[..] else { panic!("{chain:?}") };
        assert_eq!(last, base);
        let new = new_layer(Some(base));
        let merged = new.id;
        add(&f, &new).await.unwrap();
        f.store.transaction(move |tx| tx.freeze_layer(merged)).await.unwrap();
        let merge_told = |covered: Vec<LayerId>, told: Vec<SnapshotId>| {
            f.store.transaction(move |tx| tx.merge_layers(merged, &covered, &told))
        };
        let merge = |covered| merge_told(covered, vec![]);
        for wrong in [vec![c], vec![b, c], vec![c, a], vec![top, c], vec![a, base], vec![c, b]] {
            assert!(merge(wrong.clone()).await.is_err(), "{wrong:?}");
        }
        // One that is being written lists them.
        let writing = f.take(vm, offshoot_types::SnapshotOrigin::Auto).await;
        let refused = merge(vec![c, b, a]).await.unwrap_err();
        assert!(refused.to_string().contains(&format!("snapshot {writing}")), "{refused}");
        let refused = merge_told(vec![c, b, a], vec![kept]).await.unwrap_err();
        assert!(refused.to_string().contains(&format!("snapshot {writing}")), "{refused}");
        // And one that has become durable since the caller looked still does.
        f.store.snapshot_durable(writing, serde_json::json!({}), offshoot_types::Bytes(1)).await.unwrap();
        let refused = merge(vec![c, b, a]).await.unwrap_err();
        assert!(refused.to_string().contains(&format!("snapshot {writing}")), "{refused}");
        let merge = |covered| merge_told(covered, vec![writing]);
        // So does a VM that starts.
        let at = f.store.vm(vm).await.unwrap().unwrap().generation;
        let at = f.go(vm, at, offshoot_types::VmState::Starting).await.unwrap();
        let refused = merge(vec![c, b, a]).await.unwrap_err();
        assert!(refused.to_string().ends_with("is needed by VM a"), "{refused}");
        f.go(vm, at, offshoot_types::VmState::Running).await.unwrap();
        merge(vec![c, b, a]).await.unwrap();
        let top = f.store.vm(vm).await.unwrap().unwrap().layer.unwrap();
        let chain: Vec<LayerId> =
            f.store.layer_chain(top).await.unwrap().iter().map(|layer| layer.id).collect();
        assert_eq!(chain[2..], [merged, base]);
        assert_eq!(ids(&f).await, [c, b, a]);
    }

    #[tokio::test]
    async fn what_an_unfinished_operation_made_is_not_unused() {
        let f = Fixture::new();
        let new = operation(OperationKind::Rollback, None);
        let layer = NewLayer { operation: Some(new.id), ..new_layer(None) };
        let by = new.id;
        f.store.begin_operation(new).await.unwrap();
        add(&f, &layer).await.unwrap();
        assert_eq!(ids(&f).await, []);
        f.store.end_operation(by, OperationOutcome::Interrupted { undone: true }).await.unwrap();
        assert_eq!(ids(&f).await, [layer.id]);
    }
}
