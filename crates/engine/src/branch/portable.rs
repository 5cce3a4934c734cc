//! Snapshots that leave a state directory, and come into one.
//!
//! ```text
//! import: header --> it fits this host --> layers in the record --> files, every byte compared, flushed
//!         --> one transaction: a VM, Suspended (or Stopped, with the disk alone), and its snapshot, sealed with our key
//!         --> the files in their place
//! ```
//! An import cut off before the transaction leaves layers nobody needs and a directory nobody knows, which are removed;
//! one cut off after it is put in its place by the next start.

use super::SnapshotView;
use crate::{
    Engine,
    core::{Authority, Core},
    driver::Beginning,
    error, layers,
    operations::Ticket,
    placement,
    saga::create,
    snapshots::{Arrival, Export, Incoming, snapshot_of_import},
    tasks::TaskKind,
};
use offshoot_policy::{Authorized, Grant};
use offshoot_provider::{archive::Contents, parts::Hash};
use offshoot_store::{Move, NewSnapshot, NewVm, StoreError, Tx, VmRecord};
use offshoot_types::{
    Bytes, Command, ErrorCode, Failure, IsolationClass, LayerId, Lifetime, OperationKind, OperationOutcome,
    Owner, ProviderChoice, ProviderKind, SnapshotId, SnapshotKind, SnapshotOrigin, VmId, VmName, VmRef,
    VmSpec, VmState,
};
use serde_json::Value;
use std::{io::Read, sync::Arc};

/// What is asked of an import beyond the VM's name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// What the exporting side printed: anything else is refused before a byte of it is used.
    pub expect: Option<Hash>,
    /// Leave memory and device state out: the VM boots from the disk.
    pub disk_only: bool,
}

/// What became of an exported snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportReport {
    pub snapshot: SnapshotView,
    /// The VM that continues from it when it is started.
    pub vm: VmId,
    pub name: VmName,
    /// Of everything that was read. Who handed it over vouches for it, nobody else.
    pub hash: Hash,
}

impl Engine {
    /// Opens a snapshot for export ([`Command::ExportSnapshot`]).
    pub async fn export_snapshot(&self, permit: Authorized<Command>) -> Result<Export, Failure> {
        let snapshot = match permit.get() {
            Command::ExportSnapshot { snapshot } => snapshot.clone(),
            other => return Err(error::wrong_permit("export_snapshot", other.action())),
        };
        let found = self.core().find_snapshot(&snapshot, &permit.grant().actor().owner()).await?;
        self.core().export(&found).await
    }

    /// Makes a VM of an exported snapshot ([`Command::ImportSnapshot`]). `from` is read on a thread that may block.
    pub async fn import_snapshot(
        &self,
        permit: Authorized<Command>,
        options: ImportOptions,
        from: impl Read + Send + 'static,
    ) -> Result<ImportReport, Failure> {
        self.core().manager.check_open()?;
        let (command, grant) = permit.into_parts();
        let Command::ImportSnapshot { name } = command else {
            return Err(error::wrong_permit("import_snapshot", command.action()));
        };
        let core = self.core().clone();
        self.core()
            .detached(TaskKind::Acceptor, async move { core.import(name, options, grant, from).await })
            .await
    }
}

impl Core {
    async fn import(
        self: &Arc<Self>,
        name: Option<VmName>,
        options: ImportOptions,
        grant: Grant,
        from: impl Read + Send + 'static,
    ) -> Result<ImportReport, Failure> {
        let incoming = Incoming::open(from).await?;
        if let Some(expected) = options.expect.filter(|expected| *expected != incoming.hash()) {
            let message =
                format!("what was handed over has the hash {}, and {expected} was expected", incoming.hash());
            return Err(Failure::new(ErrorCode::InvalidArgument, message)
                .hint("it is another snapshot, or was changed on the way"));
        }
        let fits = self.fits(incoming.contents(), options.disk_only).await?;
        let owner = grant.actor().owner();
        let authority = Authority::Granted(Box::new(grant));
        let hash = incoming.hash();
        let reason = format!("snapshot {hash} was handed over");
        let new = self.new_operation(&authority, OperationKind::Import, None, &owner, reason);
        let ticket = self.opened(self.store.begin_operation(new).await?.into_operation());
        let made = self.make_import(&ticket, name, fits, &authority, owner, incoming).await;
        match made {
            Ok((row, snapshot)) => {
                let (operation, vm, name) = (ticket.id(), row.id, row.name.clone());
                self.drive(row, Vec::new(), Beginning::AtRest);
                self.closed(ticket, OperationOutcome::Done);
                let (record, vm_row) = self.snapshot_record(snapshot).await?;
                let snapshot = super::snapshots::view(&record, vm_row.as_ref(), None, Some(operation));
                Ok(ImportReport { snapshot, vm, name, hash })
            }
            Err(failure) => {
                self.forget_import(snapshot_of_import(ticket.id())).await;
                self.close(ticket, OperationOutcome::Failed { failure: failure.clone() }).await;
                self.collect_layers().await;
                Err(failure)
            }
        }
    }

    /// That this host can go on from it: image, provider and, for its memory, the very machine.
    async fn fits(&self, contents: &Contents, disk_only: bool) -> Result<Fits, Failure> {
        let (images, digest) = (self.options.images.clone(), contents.image.clone());
        let found = offshoot_store::blocking(move || images.boot_files(&digest).map(drop)).await;
        found.map_err(|_| error::shutting_down())?.map_err(|failure| {
            let message =
                format!("the snapshot lies over image {}, which cannot be used here", contents.image);
            Failure::new(failure.code, message)
                .caused_by(&failure)
                .hint(format!("build or import that image first (it was called `{}`)", contents.origin.image))
        })?;
        let kind = if disk_only { SnapshotKind::DiskOnly } else { contents.kind };
        let choice = match kind {
            SnapshotKind::Full => ProviderChoice::Named(contents.provider),
            SnapshotKind::DiskOnly => ProviderChoice::Auto,
        };
        let (provider, isolation) = placement::choose(&self.capabilities().await, None, choice, None)?;
        if let (SnapshotKind::Full, Some(saved)) = (kind, &contents.machine) {
            let differs = saved.mismatches(&self.machine_facts(provider).await?);
            if !differs.is_empty() {
                let differs: Vec<String> = differs.iter().map(ToString::to_string).collect();
                let message = format!("the snapshot is of another machine: {}", differs.join(", "));
                return Err(Failure::new(ErrorCode::Snapshot, message)
                    .hint("its disk can be used: `offshoot snapshot import --disk-only`"));
            }
        }
        Ok(Fits { kind, choice, provider, isolation })
    }

    async fn make_import(
        &self,
        ticket: &Ticket,
        name: Option<VmName>,
        fits: Fits,
        authority: &Authority,
        owner: Owner,
        incoming: Incoming,
    ) -> Result<(VmRecord, SnapshotId), Failure> {
        let operation = ticket.id();
        let (contents, vm) = (incoming.contents().clone(), VmId::new());
        let base = name.clone().unwrap_or_else(|| contents.origin.vm.clone());
        let spec = VmSpec {
            name: base.clone(),
            image: contents.origin.image.clone(),
            image_digest: contents.image.clone(),
            provider: fits.choice,
            min_isolation: None,
            memory: contents.memory,
            cpus: contents.cpus,
            disk: contents.disk,
            lifetime: Lifetime::Kept,
            policy: Default::default(),
            life: Default::default(),
            labels: Default::default(),
            env: Default::default(),
        };
        let arrival = Arrival {
            id: snapshot_of_import(operation),
            vm,
            kind: fits.kind,
            provider: fits.provider,
            layers: contents.layers.iter().map(|_| LayerId::new()).collect(),
        };
        // Known before they are made: what is cut off is removed by its record. Over them the VM's own.
        let node = self.options.node.clone();
        let top = LayerId::from_uuid(*vm.as_uuid());
        let mut recorded = Vec::new();
        let mut below = None;
        for id in arrival.layers.iter().rev().chain([&top]) {
            recorded.push(layers::new_layer(*id, &owner, &node, &spec, below, operation));
            below = Some(*id);
        }
        let paths: Vec<_> =
            recorded.iter().rev().map(|layer| self.layout.state.join(&layer.path)).take(2).collect();
        self.store.transaction(move |tx| recorded.iter().try_for_each(|layer| tx.add_layer(layer))).await?;
        let arrived = self.unpack(incoming, &arrival).await?;
        let (size, shown) = (spec.disk, base.clone());
        let made = offshoot_store::blocking(move || match paths.as_slice() {
            [path, below] => {
                layers::make(path, Some(below), below, size, create::durability(Lifetime::Kept), &shown)
            }
            _ => Err(Failure::new(ErrorCode::Internal, "an imported disk has no layer")),
        });
        made.await.map_err(|_| error::shutting_down())??;

        let id = arrival.id;
        let snapshot = NewSnapshot {
            id,
            owner: owner.clone(),
            labels: Default::default(),
            node: node.clone(),
            vm,
            name: contents.origin.name.clone(),
            origin: SnapshotOrigin::Manual,
            kind: fits.kind,
            parent: None,
            layer: arrival.layers[0],
            memory_base: None,
            quiesced: contents.quiesced,
            note: contents.origin.note.clone(),
            manifest: Value::Null,
            size: Bytes(0),
        };
        let new = NewVm {
            id: vm,
            owner: owner.clone(),
            node,
            spec,
            provider: fits.provider,
            isolation: fits.isolation,
            memory: None,
            position: None,
        };
        let reason = format!("made of an imported snapshot of `{}`", contents.origin.vm);
        let created =
            self.new_operation(authority, OperationKind::Create, Some((vm, &base)), &owner, reason.clone());
        let (actor, frozen) = (authority.actor(), arrival.layers.clone());
        let row = self
            .settle_import(id, move |tx| {
                let mut new = new.clone();
                if name.is_none() {
                    new.spec.name = free_name(tx, &base, &new.owner)?;
                }
                tx.create_vm(&created, &new)?;
                frozen.iter().try_for_each(|layer| tx.freeze_layer(*layer))?;
                tx.set_vm_layer(vm, top)?;
                tx.add_snapshot(&snapshot, operation, &actor)?;
                tx.snapshot_durable(id, &arrived.manifest, arrived.size)?;
                let to = match snapshot.kind {
                    SnapshotKind::Full => {
                        tx.set_vm_memory(vm, Some(id))?;
                        VmState::Suspended
                    }
                    SnapshotKind::DiskOnly => VmState::Stopped,
                };
                let expected = tx.vm(vm)?.ok_or_else(|| gone(vm))?.generation;
                let (outer, operation) = (operation, Some(operation));
                let (reason, actor) = (reason.clone(), actor.clone());
                tx.move_vm(&Move { vm, expected, to, reason, actor, operation })?;
                tx.end_operation(created.id, &OperationOutcome::Done)?;
                tx.end_operation(outer, &OperationOutcome::Done)?;
                tx.vm(vm)?.ok_or_else(|| gone(vm))
            })
            .await?;
        Ok((row, id))
    }
}

/// What was found out about where it can go on.
#[derive(Debug, Clone, Copy)]
struct Fits {
    kind: SnapshotKind,
    choice: ProviderChoice,
    provider: ProviderKind,
    isolation: IsolationClass,
}

/// `base`, or the next of `base-1`, `base-2`, ... that no VM of the owner has.
fn free_name(tx: &Tx<'_>, base: &VmName, owner: &Owner) -> Result<VmName, StoreError> {
    match tx.find_vm(&VmRef::Name(base.clone()), owner)? {
        None => Ok(base.clone()),
        Some(_) => super::forks::free_name(tx, base, owner, &mut 1),
    }
}

fn gone(id: VmId) -> StoreError {
    StoreError::NotFound { what: "VM", id: id.to_string() }
}
