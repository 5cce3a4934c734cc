//! Taking the state of real VMs and continuing from it: what is kept bit by bit, what goes on undisturbed, and what a
//! failure in the middle leaves.

mod support;

use offshoot_guest_proto::{client::Client, message::ExecEvent};
use offshoot_provider::{
    Adoption, AfterCheckpoint, BootError, BootPlan, BootStep, Checkpoint, CheckpointPlan, DiskStack,
    Durability, Exit, Instance, InstanceError, RestorePlan,
    conformance::Harness,
    disk,
    memory::{Base, Delta, Memory},
};
use offshoot_types::{DiskMib, SnapshotId};
use std::{
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use support::{
    Real,
    session::{boot, connect, exit, finish, run, shell},
};

/// The size of every disk here, as the harness makes them.
fn size() -> DiskMib {
    DiskMib::from_mib(1024).unwrap()
}

/// What a snapshot keeps.
#[derive(Clone)]
struct Snapshot {
    id: SnapshotId,
    dir: PathBuf,
    memory: Memory,
    /// Frozen.
    disk: DiskStack,
}

impl Snapshot {
    fn complete(&self) -> Arc<Base> {
        let (base, delta) = (self.memory.base.as_deref(), self.memory.delta.as_ref().expect("a delta"));
        Arc::new(Base::build(self.id, base, delta).expect("a complete memory"))
    }
}

/// A VM with the disk it has now and the memory it maps.
struct Vm {
    instance: Box<dyn Instance>,
    plan: BootPlan,
    base: Option<Arc<Base>>,
}

impl Vm {
    async fn boot(real: &Real) -> Self {
        let plan = real.plan();
        Self { instance: boot(real, &plan).await, plan, base: None }
    }

    /// A new layer and a directory for the state.
    fn checkpoint_plan(&self, then: AfterCheckpoint) -> CheckpointPlan {
        let id = SnapshotId::new().simple();
        let dir = self.plan.state_dir.join(&id);
        std::fs::create_dir(&dir).unwrap();
        let next_layer = self.plan.state_dir.join(format!("{id}.qcow2"));
        disk::create_layer(self.plan.disk.top().unwrap(), size(), &next_layer, Durability::Volatile).unwrap();
        CheckpointPlan { dir, memory: true, next_layer, then }
    }

    async fn snapshot(&mut self, then: AfterCheckpoint) -> (Snapshot, Checkpoint) {
        let plan = self.checkpoint_plan(then);
        let mut taken = match self.instance.checkpoint(&plan).await {
            Ok(taken) => taken,
            Err(error) => panic!("{error}: {:#?}", self.instance.diagnostics().await),
        };
        let disk = self.plan.disk.clone();
        self.plan.disk.layers.insert(0, plan.next_layer);
        disk::freeze(disk.top().unwrap()).unwrap();
        let delta = Some(Arc::new(taken.memory.take().expect("memory was asked for")));
        let memory = Memory { base: self.base.clone(), delta };
        (Snapshot { id: SnapshotId::new(), dir: plan.dir, memory, disk }, taken)
    }

    /// All of the guest's memory as the VMM has it now; nothing may run.
    fn memory(&self) -> Vec<u8> {
        let pid = support::vmm(self.instance.record()).pid;
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let named = if self.base.is_some() { "/memfd:" } else { "/dev/zero" };
        let line = maps.lines().find(|line| line.contains(named)).expect("guest memory");
        let address = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        let mut memory = vec![0; self.plan.memory.bytes().0 as usize];
        let file = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
        file.read_exact_at(&mut memory, address).unwrap();
        memory
    }
}

fn restore_plan(real: &Real, snapshot: &Snapshot, memory: Memory) -> RestorePlan {
    let mut plan = real.plan();
    let layer = plan.state_dir.join("layer.qcow2");
    disk::create_layer(snapshot.disk.top().unwrap(), size(), &layer, Durability::Volatile).unwrap();
    plan.disk = snapshot.disk.clone();
    plan.disk.layers.insert(0, layer);
    RestorePlan { boot: plan, device_state: snapshot.dir.join("device.state"), memory }
}

async fn try_restore(real: &Real, plan: &RestorePlan) -> Result<Vm, BootError> {
    let instance = real.provider().restore(plan).await?;
    Ok(Vm { instance, plan: plan.boot.clone(), base: plan.memory.base.clone() })
}

/// A VM that continues from a snapshot, by injecting the delta or on the complete memory.
async fn restore(real: &Real, snapshot: &Snapshot, memory: Memory) -> Vm {
    let plan = restore_plan(real, snapshot, memory);
    try_restore(real, &plan).await.unwrap_or_else(|error| panic!("{error}: {error:#?}"))
}

/// Equal without printing a quarter of a gigabyte.
fn same(one: &[u8], other: &[u8], what: &str) {
    assert_eq!(one.len(), other.len());
    let differ = one.chunks(4096).zip(other.chunks(4096)).filter(|(a, b)| a != b).count();
    assert_eq!(differ, 0, "{what}: pages that differ");
}

fn whole(memory: &Memory, like: &[u8]) -> Vec<u8> {
    let mut whole = vec![0; like.len()];
    memory.read_at(0, &mut whole).unwrap();
    whole
}

async fn number(client: &Client, path: &str) -> u64 {
    let text = run(client, &format!("cat {path}")).await;
    text.trim().parse().unwrap_or_else(|error| panic!("{path}: {text:?}: {error}"))
}

/// Counts in memory, and prints as it goes.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/new; mv /dev/shm/new /dev/shm/count; \
                     echo $i; sleep 0.02; done";

#[tokio::test]
async fn real_vm_goes_on_beside_the_one_that_continues_from_its_snapshot() {
    let real = Real::new();
    let mut source = Vm::boot(&real).await;
    let client = connect(source.instance.as_ref()).await;
    run(&client, "echo disk > /root/kept; sync; echo cached > /root/unflushed").await;
    let (_input, mut events) = client.exec(shell(COUNT)).await.unwrap().split();
    let mut seen = 0;
    while seen < 5 {
        seen += u64::from(matches!(events.next().await.unwrap(), Some(ExecEvent::Output { .. })));
    }
    let before = number(&client, "/dev/shm/count").await;
    let (snapshot, taken) = source.snapshot(AfterCheckpoint::Continue).await;
    assert!(taken.paused > Duration::ZERO && taken.paused < Duration::from_secs(5), "{:?}", taken.paused);
    assert!(taken.device_state.0 > 1000);
    // The open exec goes on, and what is written now is in the new layer alone.
    for _ in 0..5 {
        assert!(matches!(events.next().await.unwrap(), Some(ExecEvent::Output { .. })));
    }
    run(&client, "echo later > /root/kept; sync").await;
    let source_now = number(&client, "/dev/shm/count").await;
    assert!(source_now > before);

    for memory in [snapshot.memory.clone(), Memory { base: Some(snapshot.complete()), delta: None }] {
        let fork = restore(&real, &snapshot, memory.clone()).await;
        assert_eq!(fork.instance.record().memory_base, memory.base_id());
        let theirs = connect(fork.instance.as_ref()).await;
        let counted = number(&theirs, "/dev/shm/count").await;
        assert!(counted >= before, "it continues from the snapshot: {before}, {counted}");
        assert_eq!(run(&theirs, "cat /root/kept /root/unflushed").await, "disk\ncached\n");
        run(&theirs, "echo fork > /root/kept; sync").await;
        finish(&real, fork.instance.record()).await;
    }
    assert_eq!(run(&client, "cat /root/kept").await, "later\n");
    finish(&real, source.instance.record()).await;
}

#[tokio::test]
async fn real_vm_snapshots_of_forks_of_snapshots_are_bit_exact_five_deep() {
    let real = Real::new();
    let mut vm = Vm::boot(&real).await;
    let mut sums = String::new();
    for depth in 0..6 {
        let client = connect(vm.instance.as_ref()).await;
        let check = "cd /dev/shm && sha256sum m*; cd /root && sha256sum d*";
        if depth > 0 {
            assert_eq!(run(&client, check).await, sums, "depth {depth}");
        }
        // Something new in memory and on the disk, and something old that changes or becomes zero.
        let script = format!(
            "head -c 3000000 /dev/urandom > /dev/shm/m{depth}; head -c 1000000 /dev/urandom > /root/d{depth}; \
             head -c 500000 /dev/zero | dd of=/dev/shm/m0 conv=notrunc bs=4096 seek=$((depth * 50)) 2>&1; sync"
        );
        run(&client, &script).await;
        sums = run(&client, check).await;
        let (snapshot, _) = vm.snapshot(AfterCheckpoint::Hold).await;
        assert!(vm.instance.is_paused().await.unwrap());
        let really = vm.memory();
        same(&whole(&snapshot.memory, &really), &really, "delta over base");
        let complete = Memory { base: Some(snapshot.complete()), delta: None };
        same(&whole(&complete, &really), &really, "complete memory");

        // Through a file, as a daemon that starts again would.
        let path = snapshot.dir.join("ram.delta");
        let part = snapshot.memory.delta.as_ref().unwrap().write(&path).unwrap();
        let (delta, _) = Delta::read(&path, &part, None).unwrap();
        let memory = Memory { delta: Some(Arc::new(delta)), ..snapshot.memory.clone() };
        same(&whole(&memory, &really), &really, "delta read from a file");
        finish(&real, vm.instance.record()).await;
        vm = restore(&real, &snapshot, if depth % 2 == 0 { complete } else { memory }).await;
    }
    finish(&real, vm.instance.record()).await;
}

#[tokio::test]
async fn real_vm_transfers_each_way_survive_a_checkpoint_in_their_middle() {
    const LENGTH: usize = 3 << 20;
    let real = Real::new();
    let mut vm = Vm::boot(&real).await;
    let client = connect(vm.instance.as_ref()).await;
    let data: Vec<u8> = (0..LENGTH).map(|n| (n % 251) as u8).collect();

    // Into the guest, with a checkpoint at every third.
    let mut snapshots = Vec::new();
    let mut writer = client.files("root").write("/dev/shm/in", None, false, false).await.unwrap();
    for part in data.chunks(LENGTH / 3 + 1) {
        let (sent, snapshot) = tokio::join!(writer.send(part), vm.snapshot(AfterCheckpoint::Continue));
        sent.unwrap();
        snapshots.push(snapshot.0);
    }
    writer.finish().await.unwrap();
    let sum = run(&client, "sha256sum < /dev/shm/in").await;

    // Out of it.
    let (_input, mut events) = client.exec(shell("cat /dev/shm/in")).await.unwrap().split();
    let mut received = Vec::new();
    let mut taken = 0;
    loop {
        match events.next().await.unwrap() {
            Some(ExecEvent::Output { data, .. }) => received.extend(data),
            Some(ExecEvent::Ended(_)) => break,
            Some(_) => {}
            None => panic!("no end"),
        }
        if received.len() > taken * LENGTH / 3 {
            taken += 1;
            snapshots.push(vm.snapshot(AfterCheckpoint::Continue).await.0);
        }
    }
    assert!(received == data, "what was sent came back");

    // Whatever was in flight is lost in the copies, and nothing else: each answers, and has what was complete.
    assert_eq!(snapshots.len(), 3 + taken);
    for (index, snapshot) in snapshots.iter().enumerate() {
        let memory = Memory { base: Some(snapshot.complete()), delta: None };
        let fork = restore(&real, snapshot, memory).await;
        let theirs = connect(fork.instance.as_ref()).await;
        assert_eq!(run(&theirs, "echo alive").await, "alive\n", "{index}");
        if index >= 3 {
            assert_eq!(run(&theirs, "sha256sum < /dev/shm/in").await, sum, "{index}");
        }
        finish(&real, fork.instance.record()).await;
    }
    finish(&real, vm.instance.record()).await;
}

#[tokio::test]
async fn real_vm_keeps_standing_still_or_running_as_before_a_checkpoint() {
    let real = Real::new();
    let mut vm = Vm::boot(&real).await;
    let client = connect(vm.instance.as_ref()).await;
    run(&client, "echo 1 > /dev/shm/x").await;
    vm.instance.pause().await.unwrap();
    let (snapshot, taken) = vm.snapshot(AfterCheckpoint::Continue).await;
    assert_eq!(taken.paused, Duration::ZERO, "it stood still before");
    assert!(vm.instance.is_paused().await.unwrap(), "and does after");

    // The same plan once more: nothing ran since, so it is still one instant.
    let again = CheckpointPlan {
        dir: snapshot.dir.clone(),
        memory: true,
        next_layer: vm.plan.disk.layers[0].clone(),
        then: AfterCheckpoint::Hold,
    };
    let second = vm.instance.checkpoint(&again).await.unwrap();
    let (first, really) = (whole(&snapshot.memory, &vm.memory()), vm.memory());
    same(&first, &really, "first");
    same(&whole(&Memory { base: None, delta: second.memory.map(Arc::new) }, &really), &really, "second");

    // Nor does any clock of the machine go on, however long that takes.
    let devices = || std::fs::read(again.dir.join("device.state")).unwrap();
    let (before, begun) = (devices(), Instant::now());
    while begun.elapsed() < Duration::from_millis(1200) {
        vm.instance.checkpoint(&again).await.unwrap();
        assert!(devices() == before, "the devices are others after {:?}", begun.elapsed());
    }

    vm.instance.resume().await.unwrap();
    let refused = vm.instance.checkpoint(&again).await.unwrap_err();
    assert!(
        matches!(&refused, InstanceError::Refused { message, .. } if message.contains("below it")),
        "{refused}"
    );
    assert!(!vm.instance.is_paused().await.unwrap());

    // A disk alone.
    let plan = CheckpointPlan { memory: false, ..vm.checkpoint_plan(AfterCheckpoint::Continue) };
    let taken = vm.instance.checkpoint(&plan).await.unwrap();
    assert!(taken.memory.is_none() && !plan.dir.join("device.state").exists());
    vm.plan.disk.layers.insert(0, plan.next_layer);

    // Layers that are none, or over something else.
    let foreign = vm.plan.state_dir.join("foreign.qcow2");
    disk::create_layer(&vm.plan.disk.layers[1], size(), &foreign, Durability::Volatile).unwrap();
    for next_layer in [foreign, vm.plan.state_dir.join("none.qcow2"), vm.plan.root.clone()] {
        let plan = CheckpointPlan { next_layer, ..again.clone() };
        let refused = vm.instance.checkpoint(&plan).await.unwrap_err();
        assert!(matches!(refused, InstanceError::Refused { .. }), "{refused}");
    }
    assert_eq!(run(&client, "cat /dev/shm/x; echo on > /root/disk; sync; cat /root/disk").await, "1\non\n");
    finish(&real, vm.instance.record()).await;
}

#[tokio::test]
async fn real_vm_runs_on_when_the_disk_is_full_at_a_checkpoint() {
    let real = Real::new();
    let mut vm = Vm::boot(&real).await;
    let client = connect(vm.instance.as_ref()).await;
    for then in [AfterCheckpoint::Continue, AfterCheckpoint::Hold] {
        let plan = vm.checkpoint_plan(then);
        std::os::unix::fs::symlink("/dev/full", plan.dir.join("device.state")).unwrap();
        let error = vm.instance.checkpoint(&plan).await.unwrap_err();
        assert!(matches!(error, InstanceError::Refused { .. } | InstanceError::Io { .. }), "{error}");
        assert!(!vm.instance.is_paused().await.unwrap(), "it runs on");
        assert_eq!(run(&client, "echo on > /root/x; sync; cat /root/x").await, "on\n");
        // The layer was not put to use: it can be.
        let once_more = SnapshotId::new().simple();
        let dir = vm.plan.state_dir.join(once_more);
        std::fs::create_dir(&dir).unwrap();
        let again = CheckpointPlan { dir, then: AfterCheckpoint::Continue, ..plan.clone() };
        assert!(vm.instance.checkpoint(&again).await.unwrap().memory.is_some());
        vm.plan.disk.layers.insert(0, plan.next_layer);
    }
    let (snapshot, _) = vm.snapshot(AfterCheckpoint::Continue).await;
    let fork = restore(&real, &snapshot, snapshot.memory.clone()).await;
    let theirs = connect(fork.instance.as_ref()).await;
    assert_eq!(run(&theirs, "cat /root/x").await, "on\n");
    finish(&real, fork.instance.record()).await;
    finish(&real, vm.instance.record()).await;
}

#[tokio::test]
async fn real_vm_killed_in_a_checkpoint_is_told_and_leaves_nothing() {
    let real = Real::new();
    for delay in [0, 2, 10] {
        let vm = Vm::boot(&real).await;
        let record = vm.instance.record().clone();
        let plan = vm.checkpoint_plan(AfterCheckpoint::Continue);
        let vmm = support::vmm(&record);
        let kill = async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            tokio::task::spawn_blocking(move || support::kill(&vmm)).await.unwrap();
        };
        let (taken, ()) = tokio::join!(vm.instance.checkpoint(&plan), kill);
        match taken {
            // It was faster.
            Ok(_) => {}
            Err(InstanceError::Ended { exit: Exit::Signal(9) }) => {}
            Err(other) => panic!("{other:?}"),
        }
        assert_eq!(exit(vm.instance.as_ref(), Duration::from_secs(5)).await, Exit::Signal(9));
        finish(&real, &record).await;
    }
}

#[tokio::test]
async fn real_vm_does_not_stand_still_for_a_daemon_that_is_gone() {
    let real = Real::new();
    let vm = Vm::boot(&real).await;
    let record = vm.instance.record().clone();
    let plan = vm.checkpoint_plan(AfterCheckpoint::Hold);
    let given_up = tokio::time::timeout(Duration::from_millis(3), vm.instance.checkpoint(&plan)).await;
    assert!(given_up.is_err(), "a checkpoint within 3 ms: give up sooner");
    drop(vm);
    let Adoption::Running(instance) = real.provider().adopt(&record).await.unwrap() else {
        panic!("it does not run any more");
    };
    let until = Instant::now() + Duration::from_secs(10);
    // What was begun is finished first, and only then taken back.
    let log = || std::fs::read_to_string(record.state_dir.join("keeper.log")).unwrap();
    while !log().contains("the CPUs go on") {
        assert!(Instant::now() < until, "{}", log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while instance.is_paused().await.unwrap() {
        assert!(Instant::now() < until, "{}", log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let client = connect(instance.as_ref()).await;
    assert_eq!(run(&client, "echo on").await, "on\n");
    finish(&real, &record).await;
}

#[tokio::test]
async fn real_vm_refuses_a_wrong_base_and_a_damaged_device_state() {
    let real = Real::new();
    let mut vm = Vm::boot(&real).await;
    connect(vm.instance.as_ref()).await;
    let (snapshot, _) = vm.snapshot(AfterCheckpoint::Continue).await;

    let other = Snapshot { id: SnapshotId::new(), ..snapshot.clone() };
    let wrong = Memory { base: Some(other.complete()), delta: snapshot.memory.delta.clone() };
    let error = try_restore(&real, &restore_plan(&real, &snapshot, wrong)).await.err().expect("refused");
    assert_eq!(error.step, BootStep::Probe, "{error:#?}");
    let mut larger = restore_plan(&real, &snapshot, snapshot.memory.clone());
    larger.boot.memory = offshoot_types::MemMib::from_mib(512).unwrap();
    assert_eq!(try_restore(&real, &larger).await.err().expect("refused").step, BootStep::Probe);

    let good = std::fs::read(snapshot.dir.join("device.state")).unwrap();
    let damaged = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = snapshot.dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let cases = [
        (damaged("cut", &good[..good.len() / 2]), "load"),
        (damaged("garbage", &[0x5a; 4096]), "load"),
        (damaged("empty", &[]), "load"),
        (PathBuf::from("/no/such/state"), "/no/such/state"),
    ];
    for (device_state, said) in cases {
        let plan = RestorePlan { device_state, ..restore_plan(&real, &snapshot, snapshot.memory.clone()) };
        let error = try_restore(&real, &plan).await.err().expect("refused");
        assert!(error.message.contains(said), "{error:#?}");
        assert!(error.undo.failed.is_empty(), "{error:#?}");
        assert_eq!(real.leftovers(&real.record(&plan.boot)).await, Vec::<String>::new(), "{error:#?}");
    }
    finish(&real, vm.instance.record()).await;
}

#[tokio::test]
async fn real_vm_frozen_layers_are_nobodys_to_write_to() {
    let real = Real::new();
    let mut vm = Vm::boot(&real).await;
    let (snapshot, _) = vm.snapshot(AfterCheckpoint::Continue).await;
    let mut thief = real.plan();
    thief.disk = snapshot.disk.clone();
    let error = real.provider().boot(&thief).await.expect_err("refused");
    assert!(error.message.contains("in use by process"), "{error:#?}");
    let mut second = real.plan();
    second.disk = vm.plan.disk.clone();
    assert!(real.provider().boot(&second).await.is_err(), "the new layer is locked as the old one was");
    finish(&real, vm.instance.record()).await;
}

/// A delta grows by what was written and little else. Prints what that costs here.
#[tokio::test]
#[expect(clippy::disallowed_macros, reason = "this one is run for its figures")]
async fn real_vm_state_costs() {
    let real = Real::new();
    let mut vm = Vm::boot(&real).await;
    let client = connect(vm.instance.as_ref()).await;
    run(&client, "python3 -c 'import json, re, random'; sync; echo 3 > /proc/sys/vm/drop_caches").await;
    let report = |what: &str, vm: &Vm, taken: &Checkpoint, pages: u64| {
        let log = std::fs::read_to_string(vm.plan.state_dir.join("keeper.log")).unwrap();
        let steps =
            log.lines().rev().find_map(|line| line.split_once(" took ")).map_or("", |(_, steps)| steps);
        println!("{what}: paused {:?} for {} MiB: {steps}", taken.paused, pages / 256);
    };
    let (first, taken) = vm.snapshot(AfterCheckpoint::Continue).await;
    report("first snapshot", &vm, &taken, first.memory.delta.as_ref().unwrap().pages());
    let memory = Memory { base: Some(first.complete()), delta: None };
    let mut forks = Vec::new();
    for _ in 0..5 {
        let plan = restore_plan(&real, &first, memory.clone());
        let begun = Instant::now();
        let mut fork = try_restore(&real, &plan).await.unwrap();
        let runs = begun.elapsed();
        let client = connect(fork.instance.as_ref()).await;
        let connected = begun.elapsed();
        assert_eq!(run(&client, "echo first").await, "first\n");
        let result = begun.elapsed();
        println!("fork: runs after {runs:?}, connected after {connected:?}, first result after {result:?}");
        let mut before = None;
        for mib in [1, 10] {
            run(&client, &format!("head -c {}000000 /dev/urandom > /dev/shm/fill", mib)).await;
            let (snapshot, taken) = fork.snapshot(AfterCheckpoint::Continue).await;
            let pages = snapshot.memory.delta.as_ref().unwrap().pages();
            report("  snapshot", &fork, &taken, pages);
            if let Some(before) = before.replace(pages) {
                let grown = (pages - before) * 4096;
                // The file replaces the smaller one, whose pages may or may not be used again.
                assert!((8_000_000..40_000_000).contains(&grown), "grew by {grown} bytes for 10 MB");
            }
            if mib == 10 {
                let plan = restore_plan(&real, &snapshot, snapshot.memory.clone());
                let begun = Instant::now();
                let back = try_restore(&real, &plan).await.unwrap();
                let client = connect(back.instance.as_ref()).await;
                assert_eq!(run(&client, "echo first").await, "first\n");
                println!("  back to it by injection, to the first result: {:?}", begun.elapsed());
                finish(&real, back.instance.record()).await;
            }
        }
        forks.push(fork);
    }
    let idle = restore(&real, &first, memory.clone()).await;
    connect(idle.instance.as_ref()).await;
    println!("idle fork: {} in memory with its keeper", idle.instance.usage().await.unwrap().pss);
    forks.push(idle);
    for fork in forks {
        finish(&real, fork.instance.record()).await;
    }
    finish(&real, vm.instance.record()).await;
}
