//! Instances that are ready: made from a template, and ended when nobody claims them.

use super::Pool;
use crate::{
    ask::ForkAsk,
    core::{Authority, Core},
    driver::Beginning,
    error, layers,
    link::GuestLink,
    machine::{Live, Machine},
    saga::{Change, Input, start::START, thaw::Identity},
    snapshots::Source,
    trace::{Scope, TraceEvent},
};
use offshoot_guest_proto::{
    client::{Client, ClientError},
    message::{ExecCommand, ExecEvent, ExecStart, ExitKind, Language, ResourceLimits},
};
use offshoot_provider::{Durability, InstanceRecord};
use offshoot_store::{Move, NewVm, StoreError, VmRecord};
use offshoot_types::{
    Actor, ErrorCode, Failure, LayerId, Lifetime, OperationId, OperationKind, OperationOutcome, Owner, VmId,
    VmName, VmSpec, VmState,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

/// For the exec that warms an instance: under emulation the first one is the slowest.
const WARM: Duration = Duration::from_secs(20);
/// For the interpreters that are kept ready to stand still.
const STILL: Duration = Duration::from_secs(2);
/// For one interpreter to start and to load what most code needs; longer than the guest gives it.
const INTERPRETER: Duration = Duration::from_secs(260);
/// Whom most contexts are of: the default of ours, and the default of E2B's SDKs.
const USERS: [&str; 2] = ["root", "user"];

/// A VM that runs and is nobody's. Dropping it has it ended.
#[derive(Debug)]
pub(crate) struct Member {
    pub row: VmRecord,
    pub record: InstanceRecord,
    live: Option<Live>,
    discards: mpsc::UnboundedSender<VmId>,
}

impl Member {
    pub fn id(&self) -> VmId {
        self.row.id
    }

    pub fn is_alive(&self) -> bool {
        let Some(live) = &self.live else { return false };
        live.dialer.exit().borrow().is_none() && !live.link.is_silent()
    }

    pub fn link(&self) -> Option<&GuestLink> {
        self.live.as_ref().map(|live| &live.link)
    }

    /// It is a VM's from here on.
    pub fn into_live(mut self) -> Option<Live> {
        self.live.take()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(live) = &self.live {
            live.link.close("it is not needed any more");
            // Nobody listens any more: the next start of the daemon finds it by its lifetime.
            let _ = self.discards.send(self.row.id);
        }
    }
}

/// A name among those of the daemon, told apart by the random end of the id.
pub(super) fn name(kind: &str, id: VmId) -> Result<VmName, Failure> {
    let hex = id.simple();
    format!("{kind}-{}", &hex[hex.len() - 12..]).parse().map_err(|error: offshoot_types::InvalidName| {
        Failure::new(ErrorCode::Internal, "a VM of the daemon could not be named").caused_by(&error)
    })
}

/// What a VM of the daemon is made as.
pub(super) fn spec(of: &VmSpec, name: VmName) -> VmSpec {
    VmSpec {
        name,
        lifetime: Lifetime::Request,
        labels: Default::default(),
        env: Default::default(),
        ..of.clone()
    }
}

impl Pool {
    fn member(&self, row: VmRecord, record: InstanceRecord, live: Live) -> Member {
        Member { row, record, live: Some(live), discards: self.discards.clone() }
    }
}

impl Core {
    /// Restores one instance, has it renewed, and warms it. When this fails nothing of it is left, or the reaper has it.
    pub(super) async fn make_member(
        self: &Arc<Self>,
        source: Arc<Source>,
        cancel: &CancellationToken,
    ) -> Result<Member, Failure> {
        let id = VmId::new();
        let (row, start) = self.record_member(id, &source).await?;
        let ticket = self.opened(start);
        let (mut machine, _view) = Machine::new(self.clone(), row, Vec::new());
        let limits = &self.options.deadlines;
        // Whoever claims it may keep it.
        let ask = ForkAsk::new(source, Durability::Flushed, Identity::New);
        let change = Change {
            operation: ticket.id(),
            kind: OperationKind::Start,
            actor: Actor::Daemon,
            reason: "the pool keeps an instance ready".into(),
            grace: Duration::ZERO,
            deadline: Instant::now() + limits.boot + limits.thaw + limits.start_overhead,
            input: Input::Fork(Arc::new(ask)),
        };
        let started = START.run(&mut machine, &change, cancel).await.map_err(|unwound| unwound.failure);
        let outcome = match &started {
            Ok(()) => OperationOutcome::Done,
            Err(failure) => OperationOutcome::Failed { failure: failure.clone() },
        };
        let (live, record) = (machine.live.take(), machine.own_instance().cloned());
        self.close(ticket, outcome).await;
        match (started, live, record) {
            (Ok(()), Some(live), Some(record)) => {
                let member = self.pool.member(machine.row.clone(), record, live);
                // Dropped on failure, which ends it.
                warm(&member).await?;
                Ok(member)
            }
            (started, live, _) => {
                if let Some(live) = live {
                    live.link.close("it could not be started");
                }
                self.end_member(id).await;
                Err(started.err().unwrap_or_else(|| error::process_gone(machine.name())))
            }
        }
    }

    /// Files first, then all of it in one transaction, and its start with it.
    async fn record_member(
        &self,
        id: VmId,
        source: &Source,
    ) -> Result<(VmRecord, offshoot_types::Operation), Failure> {
        let snapshot = &source.snapshot;
        let parent = self.store.vm(snapshot.vm).await?.ok_or_else(|| {
            Failure::new(ErrorCode::Internal, "the VM a template was taken of is not in the record")
        })?;
        let below = source
            .chain
            .first()
            .ok_or_else(|| Failure::new(ErrorCode::Internal, "a template has no disk layer in the record"))?;
        let (owner, authority) = (Owner::daemon(), Authority::Daemon);
        let name = name("warm", id)?;
        let spec = spec(&parent.spec, name.clone());
        let begin = |kind, reason: &str| {
            self.new_operation(&authority, kind, Some((id, &name)), &owner, reason.into())
        };
        let created = begin(OperationKind::Create, "an instance of the warm pool");
        let start = begin(OperationKind::Start, "the pool keeps an instance ready");
        let layer = LayerId::from_uuid(*id.as_uuid());
        let layer = layers::new_layer(layer, &owner, &parent.node, &spec, Some(snapshot.layer), start.id);
        let (path, below) = (self.layout.state.join(&layer.path), self.layout.state.join(&below.path));
        let (size, called) = (spec.disk, name.clone());
        let made = offshoot_store::blocking(move || {
            layers::make(&path, Some(&below), &below, size, Durability::Flushed, &called)
        });
        made.await.map_err(|_| error::shutting_down())??;
        let memory = Some(snapshot.id);
        let vm = NewVm {
            id,
            owner,
            node: self.options.node.clone(),
            spec,
            provider: parent.provider,
            isolation: parent.isolation,
            memory,
            position: None,
        };
        let written = self.store.transaction(move |tx| {
            tx.create_vm(&created, &vm)?;
            tx.end_operation(created.id, &OperationOutcome::Done)?;
            let begun = tx.begin_operation(&start)?;
            tx.add_layer(&layer)?;
            tx.set_vm_layer(id, layer.id)?;
            let gone = || StoreError::NotFound { what: "VM", id: id.to_string() };
            tx.move_vm(&Move {
                vm: id,
                expected: tx.vm(id)?.ok_or_else(gone)?.generation,
                to: VmState::Suspended,
                reason: "continues from its image's template".into(),
                actor: Actor::Daemon,
                operation: Some(created.id),
            })?;
            Ok((tx.vm(id)?.ok_or_else(gone)?, begun.into_operation()))
        });
        Ok(written.await?)
    }

    /// Ends an instance that nobody claimed; one that was claimed meanwhile is its VM's.
    pub(super) async fn end_member(self: &Arc<Self>, id: VmId) {
        // Queued behind a claim that was cut off: whether it was written is known then.
        let read = self.store.transaction(move |tx| Ok((tx.vm(id)?, tx.instances_of(id)?))).await;
        let (row, instances) = match read {
            Ok((Some(row), instances)) if row.state != VmState::Destroyed => (row, instances),
            Ok(_) => return,
            // The next start finds it by its lifetime.
            Err(error) => return self.store_failed("read an instance of the pool", &error),
        };
        let mut records = Vec::new();
        for row in instances {
            match row.decode::<InstanceRecord>() {
                Ok(record) => records.push(record),
                Err(error) => self.store_failed("read an instance of the pool", &error),
            }
        }
        if self.manager.get(id).is_none() {
            self.drive(row, records, Beginning::AtRest);
        }
        let reason = "an instance of the pool that is not needed";
        let ended = self.destroy(id, reason).await;
        let gone = match &ended {
            Ok(operation) => {
                operation.state == offshoot_types::OperationState::Ended { outcome: OperationOutcome::Done }
            }
            Err(failure) => failure.code == ErrorCode::NotFound,
        };
        if !gone {
            // A closed reaper means that the engine ends.
            let _ = self.reaper.send(crate::reaper::Reap { vm: id, reason });
        }
    }
}

/// Does once what a claim and its first process will do: under emulation that is slow where nothing is translated yet.
async fn warm(member: &Member) -> Result<(), Failure> {
    let Some(link) = member.link() else { return Err(error::process_gone(&member.row.name)) };
    let name = &member.row.name;
    let client = link
        .client(Instant::now() + WARM)
        .await
        .map_err(|error| error::guest_silent(name, &error.to_string()))?;
    match run(&client, ExecCommand::Argv(vec!["/bin/true".into()]), WARM).await {
        Ok(_) => {}
        // An image may have no such program: then it is as warm as it gets.
        Err(ClientError::Guest(_)) => {}
        Err(error) => return Err(error::guest_failure(name, &error)),
    }
    let broken = |error: ClientError| error::guest_failure(name, &error);
    ready_interpreters(member.row.id, &client).await.map_err(broken)?;
    // As a claim does first.
    match client.freeze(STILL).await {
        Ok(_) => client.unfreeze().await.map_err(broken),
        // Then they run, and a claim may have to wait longer.
        Err(ClientError::Guest(_)) => Ok(()),
        Err(error) => Err(broken(error)),
    }
}

/// Has the guest keep an interpreter of each language ready, for the contexts of each user most are of.
pub(super) async fn ready_interpreters(vm: VmId, client: &Client) -> Result<(), ClientError> {
    let languages =
        [(Language::Bash, "bash"), (Language::Javascript, "javascript"), (Language::Python, "python")];
    for user in USERS {
        for (language, what) in languages {
            match client.prepare_interpreter(language, user, INTERPRETER).await {
                Ok(()) => {}
                // Not every image has every interpreter, or such a user.
                Err(ClientError::Guest(refused)) => {
                    let scope = Scope { vm: Some(vm), ..Scope::default() };
                    TraceEvent::NotWarmed { what, error: &refused.message }.emit(&scope);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Runs a program to its end, and says whether that was success. Its output goes nowhere.
pub(super) async fn run(client: &Client, command: ExecCommand, limit: Duration) -> Result<bool, ClientError> {
    let start = ExecStart {
        exec: *OperationId::new().as_uuid().as_bytes(),
        command,
        env: Default::default(),
        cwd: Some("/".into()),
        user: "root".into(),
        pty: None,
        stdin: false,
        timeout_ms: Some(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        max_output: None,
        limits: ResourceLimits::default(),
    };
    let (_sender, mut events) = client.exec(start).await?.split();
    let mut good = false;
    while let Some(event) = events.next().await? {
        if let ExecEvent::Ended(end) = event {
            good = end.status == ExitKind::Code(0);
        }
    }
    Ok(good)
}
