//! Taking a VM's state while it lives, and continuing from it.

use super::{Harness, Outcome, Violation, boot, channel, ensure, finish, nothing_left, session};
use crate::{
    AfterCheckpoint, BootPlan, Checkpoint, CheckpointPlan, DiskStack, Instance, InstanceError,
    InstanceRecord, RestorePlan,
    memory::{Base, Delta, Memory},
};
use offshoot_guest_proto::{
    client::{Client, ExecEvents, ExecSender},
    message::{
        Entropy, ExecAttach, ExecEvent, ExitKind, GuestHello, HostTime, NewIdentity, Reseeded, Thaw, Thawed,
    },
};
use offshoot_types::SnapshotId;
use std::{path::PathBuf, sync::Arc, time::Duration};
use uuid::Uuid;

/// For the guest to make its processes stand still; on a busy host, so no measure of how long that takes.
const FREEZE: Duration = Duration::from_secs(5);
/// A process that stands still says nothing within this; one that runs answers at once.
const SILENCE: Duration = Duration::from_millis(500);

/// A state that was taken, and what it takes to continue from it.
struct Taken {
    checkpoint: Checkpoint,
    /// The disk as it was: its layers are frozen.
    disk: DiskStack,
    dir: PathBuf,
}

impl Taken {
    fn delta(&self) -> Outcome<&Delta> {
        self.checkpoint.memory.as_ref().ok_or_else(|| Violation::new("the checkpoint has no memory"))
    }

    /// All of its memory as a delta to inject.
    fn injected(&self, base: Option<Arc<Base>>) -> Outcome<Memory> {
        Ok(Memory { base, delta: Some(Arc::new(self.delta()?.clone())) })
    }

    /// All of its memory as a base to map.
    fn mapped(&self, id: SnapshotId, below: Option<&Base>) -> Outcome<Memory> {
        Ok(Memory { base: Some(Arc::new(Base::build(id, below, self.delta()?)?)), delta: None })
    }
}

/// A machine that runs, its disk as it is now, and the agent in it.
struct Live {
    plan: BootPlan,
    record: InstanceRecord,
    instance: Box<dyn Instance>,
    client: Client,
    hello: GuestHello,
}

async fn start(harness: &dyn Harness) -> Outcome<Live> {
    let plan = harness.plan();
    let instance = boot(harness, &plan).await?;
    let (client, hello) = session::connect(instance.as_ref(), &plan).await?;
    ensure!(!hello.frozen, "a guest that has just booted stands still");
    Ok(Live { record: harness.record(&plan), plan, instance, client, hello })
}

impl Live {
    fn checkpoint_plan(&self, harness: &dyn Harness, then: AfterCheckpoint) -> Outcome<CheckpointPlan> {
        let top = self.plan.disk.top().ok_or_else(|| Violation::new("a disk without layers"))?;
        Ok(CheckpointPlan {
            dir: harness.checkpoint_dir(),
            memory: true,
            next_layer: harness.layer(top),
            then,
        })
    }

    async fn take(&mut self, plan: &CheckpointPlan) -> Outcome<Taken> {
        let disk = self.plan.disk.clone();
        let checkpoint = self.instance.checkpoint(plan).await?;
        self.plan.disk.layers.insert(0, plan.next_layer.clone());
        Ok(Taken { checkpoint, disk, dir: plan.dir.clone() })
    }

    /// Quiesced, as the engine does it; the machine goes on.
    async fn snapshot(&mut self, harness: &dyn Harness) -> Outcome<Taken> {
        let plan = self.checkpoint_plan(harness, AfterCheckpoint::Continue)?;
        self.client.freeze(FREEZE).await?;
        let taken = self.take(&plan).await?;
        self.client.unfreeze().await?;
        Ok(taken)
    }

    async fn says(&self, argv: &[&str]) -> Outcome<String> {
        let (output, status) = session::run(&self.client, argv).await?;
        ensure!(status == ExitKind::Code(0), "{argv:?} ended with {status:?}");
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    /// A fork's thaw.
    async fn thaw(&self) -> Outcome<Thawed> {
        let machine_id = *Uuid::new_v4().as_bytes();
        let identity = NewIdentity { hostname: format!("fork-{}", machine_id[0]), machine_id };
        let mut entropy = [0; 64];
        for part in entropy.chunks_mut(16) {
            part.copy_from_slice(Uuid::new_v4().as_bytes());
        }
        let thaw = Thaw {
            instance: *Uuid::new_v4().as_bytes(),
            time: HostTime::now(),
            entropy: Entropy(entropy),
            identity: Some(identity.clone()),
        };
        let thawed = self.client.thaw(thaw).await?;
        ensure!(!matches!(thawed.kernel_random, Reseeded::No { .. }), "not renewed: {thawed:?}");
        ensure!(
            (&thawed.hostname, &thawed.machine_id) == (&identity.hostname, &identity.machine_id_text()),
            "it is not who it was told to be: {thawed:?}"
        );
        Ok(thawed)
    }

    async fn end(self, harness: &dyn Harness) -> Outcome {
        drop((self.client, self.instance));
        finish(harness, &self.record).await
    }
}

/// The plan of another VM that continues from a state.
fn beside(harness: &dyn Harness, taken: &Taken, memory: Memory) -> Outcome<RestorePlan> {
    let top = taken.disk.top().ok_or_else(|| Violation::new("a disk without layers"))?;
    let mut disk = taken.disk.clone();
    disk.layers.insert(0, harness.layer(top));
    let boot = BootPlan { disk, ..harness.plan() };
    Ok(RestorePlan { boot, device_state: taken.dir.join("device.state"), memory })
}

async fn restore(harness: &dyn Harness, taken: &Taken, memory: Memory) -> Outcome<Live> {
    let plan = beside(harness, taken, memory)?;
    let instance = harness.provider().restore(&plan).await?;
    let record = InstanceRecord { memory_base: plan.memory_base(), ..harness.record(&plan.boot) };
    let recorded = instance.record();
    ensure!(*recorded == record, "the record is {recorded:?}, written down was {record:?}");
    ensure!(!instance.is_paused().await?, "a restored VM is paused");
    let (client, hello) = session::connect(instance.as_ref(), &plan.boot).await?;
    Ok(Live { plan: plan.boot, record, instance, client, hello })
}

async fn output(events: &mut ExecEvents) -> Outcome<Vec<u8>> {
    loop {
        match events.next().await? {
            Some(ExecEvent::Output { data, .. }) => return Ok(data),
            Some(ExecEvent::Started { .. }) => {}
            other => return Err(Violation::new(format_args!("output was expected: {other:?}"))),
        }
    }
}

/// A `cat` that has passed on one line.
async fn cat(client: &Client) -> Outcome<([u8; 16], ExecSender, ExecEvents)> {
    let start = session::exec_start(&["cat"], true);
    let exec = start.exec;
    let (mut sender, mut events) = client.exec(start).await?.split();
    sender.stdin(b"before\n").await?;
    let first = output(&mut events).await?;
    ensure!(first == b"before\n", "the process did not echo: {first:?}");
    Ok((exec, sender, events))
}

pub(super) async fn a_state_restored_beside_is_the_same_and_its_source_goes_on(
    harness: &dyn Harness,
) -> Outcome {
    let mut source = start(harness).await?;
    channel::write_file(&source.client, "/root/kept", &vec![0xa7; 300_001]).await?;
    let (exec, mut sender, mut events) = cat(&source.client).await?;
    let taken = source.snapshot(harness).await?;
    ensure!(!source.instance.is_paused().await?, "the source stands still");
    ensure!(taken.checkpoint.device_state.0 > 0, "there is no device state");

    // Same session, same streams: its user need not notice.
    sender.stdin(b"after\n").await?;
    ensure!(output(&mut events).await? == b"after\n", "the source's process does not go on");
    channel::write_file(&source.client, "/root/later", b"x").await?;

    let fork = restore(harness, &taken, taken.injected(None)?).await?;
    ensure!(fork.hello.boot_id == source.hello.boot_id, "the copy has booted");
    fork.thaw().await?;
    let kept = channel::read_file(&fork.client, "/root/kept").await?;
    ensure!(kept == vec![0xa7; 300_001], "a file came back differently, with {} bytes", kept.len());
    ensure!(
        fork.client.files("root").stat("/root/later", true).await.is_err(),
        "the copy is of a later state"
    );
    let attach = ExecAttach { exec, stdout_offset: 0, stderr_offset: 0 };
    let (mut sender, mut events) = fork.client.attach(attach).await?.split();
    ensure!(output(&mut events).await? == b"before\n", "the process in the copy has another past");
    sender.stdin(b"there\n").await?;
    ensure!(output(&mut events).await? == b"there\n", "the process in the copy does not go on");
    drop((sender, events));
    fork.end(harness).await?;
    source.end(harness).await
}

pub(super) async fn two_restores_of_one_state_differ_once_thawed(harness: &dyn Harness) -> Outcome {
    const RANDOM: &[&str] = &["od", "-An", "-N16", "-tx1", "/dev/urandom"];
    let mut source = start(harness).await?;
    let taken = source.snapshot(harness).await?;
    source.end(harness).await?;
    let memory = taken.mapped(SnapshotId::new(), None)?;
    let (one, two) =
        (restore(harness, &taken, memory.clone()).await?, restore(harness, &taken, memory).await?);
    let (first, second) = (one.thaw().await?, two.thaw().await?);
    ensure!(first.machine_id != second.machine_id, "both are {}", first.machine_id);
    for (fork, thawed) in [(&one, &first), (&two, &second)] {
        let id = fork.says(&["cat", "/etc/machine-id"]).await?;
        ensure!(id == thawed.machine_id, "attested was {}, it is {id}", thawed.machine_id);
    }
    let (random, other) = (one.says(RANDOM).await?, two.says(RANDOM).await?);
    ensure!(random != other, "both have the random numbers {random}");
    one.end(harness).await?;
    two.end(harness).await
}

pub(super) async fn a_restored_guest_stands_still_until_it_is_thawed(harness: &dyn Harness) -> Outcome {
    let mut source = start(harness).await?;
    let (exec, ..) = cat(&source.client).await?;
    let taken = source.snapshot(harness).await?;
    source.end(harness).await?;
    let fork = restore(harness, &taken, taken.injected(None)?).await?;
    ensure!(fork.hello.frozen, "the guest does not say that it stands still");
    let attach = ExecAttach { exec, stdout_offset: 7, stderr_offset: 0 };
    let (mut sender, mut events) = fork.client.attach(attach).await?.split();
    sender.stdin(b"too early\n").await?;
    let early = tokio::time::timeout(SILENCE, output(&mut events)).await;
    ensure!(early.is_err(), "a process ran before the thaw: {early:?}");
    let (again, hello) = session::connect(fork.instance.as_ref(), &fork.plan).await?;
    ensure!(hello.frozen, "it runs because somebody else connected");
    let fork = Live { client: again, ..fork };
    fork.thaw().await?;
    let attach = ExecAttach { exec, stdout_offset: 7, stderr_offset: 0 };
    let (mut sender, mut events) = fork.client.attach(attach).await?.split();
    sender.stdin(b"now\n").await?;
    let mut seen = Vec::new();
    while !seen.ends_with(b"now\n") {
        seen.extend(output(&mut events).await?);
    }
    fork.end(harness).await
}

pub(super) async fn the_state_of_a_restored_vm_holds_what_came_before(harness: &dyn Harness) -> Outcome {
    let mut at = start(harness).await?;
    let mut below: Option<Arc<Base>> = None;
    for depth in 0..3_u8 {
        channel::write_file(&at.client, &format!("/root/{depth}"), &[depth; 5000]).await?;
        let taken = at.snapshot(harness).await?;
        at.end(harness).await?;
        let against = taken.delta()?.base();
        ensure!(against == below.as_ref().map(|base| base.id()), "the delta is against {against:?}");
        // Each other time by injection, so that a base may lie more than one state back.
        let memory = match depth {
            1 => taken.injected(below.clone())?,
            _ => taken.mapped(SnapshotId::new(), below.as_deref())?,
        };
        below = memory.base.clone();
        at = restore(harness, &taken, memory).await?;
        at.thaw().await?;
        for before in 0..=depth {
            let read = channel::read_file(&at.client, &format!("/root/{before}")).await?;
            ensure!(read == [before; 5000], "of state {before} after {depth} there are {} bytes", read.len());
        }
    }
    at.end(harness).await
}

pub(super) async fn a_held_vm_stands_still_until_it_is_resumed(harness: &dyn Harness) -> Outcome {
    let mut vm = start(harness).await?;
    let plan = vm.checkpoint_plan(harness, AfterCheckpoint::Hold)?;
    vm.client.freeze(FREEZE).await?;
    let taken = vm.take(&plan).await?;
    ensure!(vm.instance.is_paused().await?, "it was to be held");
    let repeated = vm.instance.checkpoint(&plan).await?;
    let repeated = repeated.memory.ok_or_else(|| Violation::new("the repeated checkpoint has no memory"))?;
    ensure!(repeated.runs() == taken.delta()?.runs(), "the same request gave another state");
    // A state of a machine that stands still already: nothing is paused for it, and it stays as it is.
    let again = vm.checkpoint_plan(harness, AfterCheckpoint::Continue)?;
    let same = vm.take(&again).await?;
    ensure!(same.checkpoint.paused.is_zero(), "paused for {:?}", same.checkpoint.paused);
    ensure!(vm.instance.is_paused().await?, "a checkpoint of a paused VM has resumed it");
    let (first, second) = (taken.delta()?, same.delta()?);
    ensure!(first.runs() == second.runs(), "its memory changed while it stood still");
    vm.instance.resume().await?;
    vm.client.unfreeze().await?;
    ensure!(vm.says(&["echo", "on"]).await? == "on", "it does not go on");
    vm.end(harness).await
}

pub(super) async fn a_state_of_the_disk_alone_is_booted(harness: &dyn Harness) -> Outcome {
    let mut source = start(harness).await?;
    channel::write_file(&source.client, "/root/kept", b"kept").await?;
    source.says(&["sync"]).await?;
    let plan = source.checkpoint_plan(harness, AfterCheckpoint::Continue)?;
    let plan = CheckpointPlan { memory: false, ..plan };
    if !harness.provider().capabilities().await.disk {
        let refused = source.instance.checkpoint(&plan).await;
        ensure!(
            matches!(refused, Err(InstanceError::Unsupported { .. })),
            "not refused by name: {refused:?}"
        );
        ensure!(source.says(&["cat", "/root/kept"]).await? == "kept", "the refused VM has changed");
        return source.end(harness).await;
    }
    let taken = source.take(&plan).await?;
    ensure!(taken.checkpoint.memory.is_none(), "a memory nobody asked for");
    channel::write_file(&source.client, "/root/kept", b"changed").await?;
    source.says(&["sync"]).await?;
    source.end(harness).await?;

    let mut disk = taken.disk.clone();
    let top = disk.top().ok_or_else(|| Violation::new("a disk without layers"))?;
    disk.layers.insert(0, harness.layer(top));
    let plan = BootPlan { disk, ..harness.plan() };
    let instance = boot(harness, &plan).await?;
    let (client, _) = session::connect(instance.as_ref(), &plan).await?;
    let kept = channel::read_file(&client, "/root/kept").await?;
    ensure!(kept == b"kept", "the disk says {:?}", String::from_utf8_lossy(&kept));
    drop((client, instance));
    finish(harness, &harness.record(&plan)).await
}

pub(super) async fn a_checkpoint_whose_answer_was_lost_is_asked_for_again(harness: &dyn Harness) -> Outcome {
    let mut source = start(harness).await?;
    channel::write_file(&source.client, "/root/kept", b"kept").await?;
    // Whoever asked has died, say. Before it asked, it wrote down that the new layer is on top.
    let lost = source.checkpoint_plan(harness, AfterCheckpoint::Continue)?;
    source.instance.checkpoint(&lost).await?;
    source.plan.disk.layers.insert(0, lost.next_layer.clone());
    channel::write_file(&source.client, "/root/later", b"later").await?;
    let torn = source.instance.checkpoint(&lost).await;
    ensure!(torn.is_err(), "memory of now was taken with the disk of then: {torn:?}");
    ensure!(!source.instance.is_paused().await?, "the refused VM stands still");

    // And one that died before it even asked: its layer is on top by the record, and the VM never saw it.
    let unasked = source.checkpoint_plan(harness, AfterCheckpoint::Continue)?;
    source.plan.disk.layers.insert(0, unasked.next_layer);
    let taken = source.snapshot(harness).await?;
    ensure!(source.says(&["echo", "on"]).await? == "on", "the source does not go on");
    let fork = restore(harness, &taken, taken.injected(None)?).await?;
    fork.thaw().await?;
    for (path, text) in [("/root/kept", b"kept".as_slice()), ("/root/later", b"later")] {
        let read = channel::read_file(&fork.client, path).await?;
        ensure!(read == text, "{path} is of another state: {:?}", String::from_utf8_lossy(&read));
    }
    fork.end(harness).await?;
    source.end(harness).await
}

pub(super) async fn a_state_that_does_not_fit_is_refused_and_leaves_nothing(
    harness: &dyn Harness,
) -> Outcome {
    let mut source = start(harness).await?;
    let taken = source.snapshot(harness).await?;
    source.end(harness).await?;

    let mut garbage = beside(harness, &taken, taken.injected(None)?)?;
    garbage.device_state = harness.checkpoint_dir().join("device.state");
    std::fs::write(&garbage.device_state, b"this is no device state")?;
    let mut smaller = beside(harness, &taken, taken.injected(None)?)?;
    smaller.boot.memory = offshoot_types::MemMib::from_mib(u64::from(smaller.boot.memory.mib()) * 2)?;
    let base = taken.mapped(SnapshotId::new(), None)?.base;
    let crossed = beside(harness, &taken, taken.injected(base)?)?;
    for (what, plan) in [("garbage", garbage), ("another size", smaller), ("another base", crossed)] {
        let refused = harness.provider().restore(&plan).await;
        let error = refused.err().ok_or_else(|| Violation::new(format_args!("{what} was restored")))?;
        ensure!(error.undo.failed.is_empty(), "{what}: undo failed: {:?}", error.undo);
        let record = InstanceRecord { memory_base: plan.memory_base(), ..harness.record(&plan.boot) };
        nothing_left(harness, &record).await?;
        finish(harness, &record).await?;
    }
    Ok(())
}
