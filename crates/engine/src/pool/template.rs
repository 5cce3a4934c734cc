//! Making the snapshot that warm VMs of an image continue from, finding those of earlier daemons, and removing them.
//!
//! ```text
//! create, boot --> sync, caches dropped --> an interpreter of each language kept ready --> free memory zeroed
//!   --> snapshot --> destroy
//! ```
//! The VM belongs to a request that never ends: whatever cuts this off, the next start of the daemon destroys it.

use super::{Key, member};
use crate::{
    accept::Asked,
    admission::RequestKind,
    ask::SnapshotAsk,
    core::{Authority, Core},
    error,
    manager::VmHandle,
    saga::Input,
    tasks::TaskKind,
    trace::{Scope, TraceEvent},
};
use offshoot_guest_proto::{
    client::{Client, ClientError},
    message::ExecCommand,
};
use offshoot_store::{SnapshotRecord, StoreError};
use offshoot_types::{
    Actor, ErrorCode, Failure, ImageDigest, OperationKind, OperationOutcome, Owner, SnapshotId, SnapshotKind,
    SnapshotOrigin, SnapshotState, VmId, VmSpec,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const TRIM: Duration = Duration::from_secs(30);

/// What only the boot needed is dropped from memory; what the interpreters read afterwards stays there.
const DROPPED: &str = "sync && echo 3 > /proc/sys/vm/drop_caches";
/// What is not on the disk is written there, and memory that is free is filled with zeros, which are not kept: most of
/// it holds what was dropped. A part is left to those who ask for some meanwhile.
const ZEROED: &str = "sync
while read -r key value _; do [ \"$key\" = MemFree: ] && free=$value; done < /proc/meminfo
fill=$((free - free / 8 - 4096))
[ $fill -gt 0 ] || exit 0
dir=$(mktemp -d /run/offshoot-XXXXXX) && mount -t tmpfs -o size=100% trim \"$dir\" || exit 1
head -c ${fill}K /dev/zero > \"$dir/zeros\"
status=$?
umount \"$dir\" && rmdir \"$dir\" && exit $status";

/// The label of a template's VM that says what it booted with. An image boots with the agent of the daemon's version: a
/// template of another version's is worth nothing to this one.
const BOOTED: &str = "initramfs";

impl Core {
    /// Makes the template of a key; returns once it is durable.
    pub(super) async fn build_template(
        self: &Arc<Self>,
        key: &Key,
        spec: &VmSpec,
        cancel: &CancellationToken,
    ) -> Result<SnapshotId, Failure> {
        let id = VmId::new();
        let mut spec = member::spec(spec, member::name("template", id)?);
        let booted = self.boots_with(&key.image).await?;
        spec.labels.insert(BOOTED.into(), booted);
        let built = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(given_up()),
            built = self.boot_and_keep(id, key, spec) => built,
        };
        // Cut off or not: a snapshot that was asked for outlives it.
        self.end_member(id).await;
        if built.is_err() {
            self.remove_templates_of(id).await;
        }
        built
    }

    async fn remove_templates_of(&self, vm: VmId) {
        match self.store.read(move |view| view.snapshots(Some(vm))).await {
            Ok(snapshots) => {
                for snapshot in snapshots {
                    self.remove_template(snapshot.id).await;
                }
            }
            Err(error) => self.store_failed("list the snapshots of a template's VM", &error),
        }
    }

    async fn boot_and_keep(
        self: &Arc<Self>,
        id: VmId,
        key: &Key,
        spec: VmSpec,
    ) -> Result<SnapshotId, Failure> {
        let placed = (key.provider, key.isolation);
        let core = self.clone();
        // Given up or not, what is begun of it is known to a driver in the end.
        let made = self.detached(TaskKind::Acceptor, async move {
            core.create_as(id, spec, placed, Authority::Daemon, Owner::daemon(), None).await
        });
        let made = self.wait(made.await?.id, None).await?;
        if let offshoot_types::OperationState::Ended { outcome: OperationOutcome::Failed { failure } } =
            made.state
        {
            return Err(failure);
        }
        let handle = self.manager.get(id).ok_or_else(error::shutting_down)?;
        let asked = Asked {
            kind: OperationKind::Start,
            request: RequestKind::Start,
            authority: Authority::Daemon,
            command: None,
            within: None,
            grace: Duration::ZERO,
            key: None,
            input: Input::None,
            reason: "a template is made of it".into(),
        };
        self.change_and_wait(&handle, asked).await?;
        self.make_ready(&handle).await?;
        let note = Some("what VMs of its image and size start from".into());
        let ask = SnapshotAsk::new(None, SnapshotKind::Full, SnapshotOrigin::Template, note, false);
        let (_, taken) = self.take_snapshot(&handle, Authority::Daemon, None, None, ask).await?;
        let snapshot = taken.snapshot;
        let found = self.store.read(move |view| view.snapshot(snapshot)).await?;
        match found {
            Some(found) if found.quiesced => Ok(snapshot),
            _ => Err(Failure::new(ErrorCode::Snapshot, "its guest did not stand still for its snapshot")),
        }
    }

    async fn make_ready(&self, handle: &VmHandle) -> Result<(), Failure> {
        let link = self.borrow_guest(handle, Authority::Daemon, None, None).await?;
        let name = &handle.name;
        let until = Instant::now() + self.options.deadlines.reconnect;
        let client = link.client(until).await.map_err(|e| error::guest_silent(name, &e.to_string()))?;
        self.trim(handle, &client, DROPPED).await?;
        let interpreters = member::ready_interpreters(handle.id, &client).await;
        interpreters.map_err(|error| error::guest_failure(name, &error))?;
        self.trim(handle, &client, ZEROED).await
    }

    /// A template that could not be trimmed is larger than it could be, and right all the same.
    async fn trim(&self, handle: &VmHandle, client: &Client, script: &str) -> Result<(), Failure> {
        let refused = match member::run(client, ExecCommand::Shell(script.into()), TRIM).await {
            Ok(true) => return Ok(()),
            Ok(false) => "the commands in its guest did not succeed".into(),
            Err(ClientError::Guest(refused)) => refused.message,
            Err(error) => return Err(error::guest_failure(&handle.name, &error)),
        };
        let scope = Scope { vm: Some(handle.id), ..Scope::default() };
        TraceEvent::NotWarmed { what: "trim", error: &refused }.emit(&scope);
        Ok(())
    }

    async fn boots_with(&self, image: &ImageDigest) -> Result<String, Failure> {
        let (images, image) = (self.options.images.clone(), image.clone());
        let files = offshoot_store::blocking(move || images.boot_files(&image));
        let files = files.await.map_err(|_| error::shutting_down())??;
        Ok(files.initramfs.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// Whether this daemon would boot what the template was made of.
    pub(super) async fn is_current(&self, spec: &VmSpec) -> bool {
        // An image that is gone, or damaged, is one of nobody's.
        let now = self.boots_with(&spec.image_digest).await;
        now.is_ok_and(|now| spec.labels.get(BOOTED) == Some(&now))
    }

    /// Templates of earlier daemons, each with the key it is of and what it was booted as; the newest of a key first.
    pub(super) async fn templates(&self) -> Result<Vec<(Key, VmSpec, SnapshotRecord)>, StoreError> {
        let read = self.store.read(|view| {
            let mut found = Vec::new();
            for snapshot in view.snapshots(None)? {
                let is_template = snapshot.origin == SnapshotOrigin::Template
                    && snapshot.owner == Owner::daemon()
                    && snapshot.state == SnapshotState::Durable;
                if is_template && let Some(vm) = view.vm(snapshot.vm)? {
                    found.push((Key::of(&vm), vm.spec, snapshot));
                }
            }
            found.sort_by_key(|(_, _, snapshot)| std::cmp::Reverse(snapshot.id));
            Ok(found)
        });
        read.await
    }

    /// Removes a template. One that a VM still maps, or whose pages a snapshot needs, goes when the pool next looks.
    pub(super) async fn remove_template(&self, id: SnapshotId) -> bool {
        let kind = OperationKind::RemoveSnapshot;
        let reason = format!("template {id} is not used any more");
        let new = self.new_operation(&Authority::Daemon, kind, None, &Owner::daemon(), reason);
        let ticket = match self.store.begin_operation(new).await {
            Ok(begun) => self.opened(begun.into_operation()),
            Err(error) => {
                self.store_failed("begin to remove a template", &error);
                return false;
            }
        };
        let removed = self.remove_snapshot(id, true, ticket.id(), &Actor::Daemon).await;
        let gone = removed.is_ok();
        let outcome = match removed {
            Ok(()) => OperationOutcome::Done,
            Err(failure) => OperationOutcome::Failed { failure },
        };
        self.close(ticket, outcome).await;
        self.collect_layers().await;
        gone
    }
}

fn given_up() -> Failure {
    Failure::new(ErrorCode::Interrupted, "making it was given up for somebody who needed the room")
}
