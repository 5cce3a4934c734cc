//! What only the fake has: faults on request, a toy interpreter, random numbers that can be seen to repeat.

use offshoot_guest_proto::{
    client::{Client, ConnectOptions},
    message::{
        CodeEvent, Entropy, ExecCommand, ExecEvent, ExecStart, HostTime, NewIdentity, ResourceLimits,
        RunCode, Thaw,
    },
};
use offshoot_provider::{
    AfterCheckpoint, BootPlan, Checkpoint, CheckpointPlan, DiskStack, Durability, Exit, Instance,
    InstanceError, Provider, RestorePlan,
    fake::{BootFault, CheckpointFault, FakeHost, FakeProvider, GuestFault},
    memory::Memory,
};
use offshoot_types::{CpuCount, Generation, LayerId, MemMib, VmId};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

struct Fixture {
    host: FakeHost,
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { host: FakeHost::new(), directory: tempfile::tempdir().unwrap() }
    }

    fn provider(&self) -> FakeProvider {
        FakeProvider::new(self.host.clone())
    }

    fn layer(&self) -> PathBuf {
        self.directory.path().join(LayerId::new().simple())
    }

    fn plan(&self) -> BootPlan {
        let path = self.directory.path().to_owned();
        BootPlan {
            vm: VmId::new(),
            name: "fake".parse().unwrap(),
            generation: Generation(1),
            image: "0a".repeat(32).parse().unwrap(),
            kernel: path.join("kernel"),
            initramfs: path.join("initramfs"),
            root: path.join("root"),
            disk: DiskStack { layers: vec![self.layer()], template: path.join("template") },
            durability: Durability::Volatile,
            memory: MemMib::MIN,
            cpus: CpuCount::ONE,
            state_dir: path.join("state"),
            runtime_dir: path,
            boot_deadline: Duration::from_secs(10),
            min_isolation: None,
        }
    }

    fn checkpoint(&self) -> CheckpointPlan {
        let dir = self.layer();
        std::fs::create_dir(&dir).unwrap();
        CheckpointPlan { dir, memory: true, next_layer: self.layer(), then: AfterCheckpoint::Continue }
    }

    fn restore(&self, disk: &DiskStack, plan: &CheckpointPlan, taken: Checkpoint) -> RestorePlan {
        let mut boot = self.plan();
        boot.disk = disk.clone();
        boot.disk.layers.insert(0, self.layer());
        let memory = Memory { base: None, delta: taken.memory.map(Arc::new) };
        RestorePlan { boot, device_state: plan.dir.join("device.state"), memory }
    }
}

async fn connect(instance: &dyn Instance) -> Client {
    let options = ConnectOptions { deadline: Duration::from_secs(10), ..ConnectOptions::new("fake", 1) };
    Client::connect(instance.channel().await.unwrap(), options).await.unwrap().0
}

/// Standard output and what came of the last expression or of the error.
async fn code(client: &Client, code: &str) -> (String, Option<String>) {
    let run = RunCode {
        context: "main".into(),
        language: None,
        code: code.into(),
        timeout_ms: Some(50),
        user: "user".into(),
        cwd: None,
        context_env: Default::default(),
        env: Default::default(),
        existing: false,
    };
    let mut handle = client.run_code(run).await.unwrap();
    let (mut output, mut end) = (String::new(), None);
    loop {
        match handle.next().await.unwrap() {
            Some(CodeEvent::Started { .. }) => {}
            Some(CodeEvent::Output { data, .. }) => output.push_str(&String::from_utf8(data).unwrap()),
            Some(CodeEvent::Value { mime }) => end = Some(mime["text/plain"].clone()),
            Some(CodeEvent::Error { name, .. }) => end = Some(name),
            Some(CodeEvent::Ended { .. }) => return (output, end),
            other => panic!("{other:?}"),
        }
    }
}

async fn shell(client: &Client, script: &str) -> String {
    let start = ExecStart {
        exec: *uuid::Uuid::now_v7().as_bytes(),
        command: ExecCommand::Shell(script.into()),
        env: BTreeMap::new(),
        cwd: None,
        user: "root".into(),
        pty: None,
        stdin: false,
        timeout_ms: None,
        max_output: None,
        limits: ResourceLimits::default(),
    };
    let (_sender, mut events) = client.exec(start).await.unwrap().split();
    let mut output = String::new();
    loop {
        match events.next().await.unwrap() {
            Some(ExecEvent::Output { data, .. }) => output.push_str(&String::from_utf8(data).unwrap()),
            Some(ExecEvent::Ended(_)) => return output,
            Some(_) => {}
            None => panic!("no end"),
        }
    }
}

fn thaw(identity: bool) -> Thaw {
    let mut entropy = [0; 64];
    entropy[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    let identity = identity.then(|| NewIdentity { hostname: "fork".into(), machine_id: [7; 16] });
    Thaw {
        instance: *uuid::Uuid::new_v4().as_bytes(),
        time: HostTime::now(),
        entropy: Entropy(entropy),
        identity,
    }
}

#[tokio::test]
async fn a_context_keeps_its_variables_over_a_restore_and_copies_agree_until_they_are_thawed() {
    const RANDOM: &str = "od -An -N16 -tx1 /dev/urandom";
    let f = Fixture::new();
    let plan = f.plan();
    let source = f.provider().boot(&plan).await.unwrap();
    let client = connect(source.as_ref()).await;
    assert_eq!(code(&client, "x=41; y='a b'").await, (String::new(), None));
    assert_eq!(code(&client, "print(x); y").await, ("41\n".into(), Some("a b".into())));
    assert_eq!(code(&client, "nothing").await.1.as_deref(), Some("NameError"));
    assert_eq!(code(&client, "sleep 100").await.1.as_deref(), Some("KeyboardInterrupt"));

    // Not frozen, so that the copies run before they are thawed.
    let taken_as = f.checkpoint();
    let taken = source.checkpoint(&taken_as).await.unwrap();
    let restore = f.restore(&plan.disk, &taken_as, taken);
    let mut copies = Vec::new();
    for _ in 0..2 {
        let mut boot = BootPlan { vm: VmId::new(), ..restore.boot.clone() };
        boot.disk.layers[0] = f.layer();
        let copy = f.provider().restore(&RestorePlan { boot, ..restore.clone() }).await.unwrap();
        let client = connect(copy.as_ref()).await;
        copies.push((copy, client));
    }
    let (one, two) = (&copies[0].1, &copies[1].1);
    assert_eq!(shell(one, RANDOM).await, shell(two, RANDOM).await);
    assert_eq!(code(one, "random()").await, code(two, "random()").await);
    for copy in [one, two] {
        let answer = copy.thaw(thaw(true)).await.unwrap();
        assert_eq!(answer.interpreters.len(), 1);
        assert_eq!(
            shell(copy, "hostname && cat /etc/machine-id").await,
            format!("fork\n{}\n", "07".repeat(16))
        );
        assert_eq!(code(copy, "x+=1; print(x)").await.0, "42\n");
    }
    assert_ne!(shell(one, RANDOM).await, shell(two, RANDOM).await);
    assert_ne!(code(one, "random()").await, code(two, "random()").await);
    assert_eq!(code(&client, "x").await.1.as_deref(), Some("41"), "the source has its own");
    assert_eq!(code(&client, "crash").await.1.as_deref(), Some("InterpreterDied"));
    assert_eq!(code(&client, "x").await.1.as_deref(), Some("NameError"));
}

#[tokio::test]
async fn a_thaw_repeated_for_one_instance_answers_the_same_and_a_rollback_keeps_its_name() {
    let f = Fixture::new();
    let vm = f.provider().boot(&f.plan()).await.unwrap();
    let client = connect(vm.as_ref()).await;
    client.freeze(Duration::from_secs(1)).await.unwrap();
    let thaw = thaw(false);
    let first = client.thaw(thaw.clone()).await.unwrap();
    assert_eq!(first.hostname, "fake");
    let random = shell(&client, "od /dev/urandom").await;
    assert_eq!(client.thaw(thaw).await.unwrap(), first);
    assert_ne!(shell(&client, "od /dev/urandom").await, random, "the generator was not wound back");
}

#[tokio::test]
async fn injected_faults_happen_once_and_what_they_promise_holds() {
    let f = Fixture::new();
    let plan = f.plan();
    let vm = f.provider().boot(&plan).await.unwrap();
    let client = connect(vm.as_ref()).await;
    let taken_as = f.checkpoint();
    f.host.inject_checkpoint(CheckpointFault::Refuse);
    assert!(matches!(vm.checkpoint(&taken_as).await, Err(InstanceError::Refused { .. })));
    f.host.inject_checkpoint(CheckpointFault::Timeout);
    assert!(matches!(vm.checkpoint(&taken_as).await, Err(InstanceError::Timeout { .. })));
    f.host.lose_replies(1);
    assert!(matches!(vm.checkpoint(&taken_as).await, Err(InstanceError::Io { .. })));
    assert_eq!(shell(&client, "echo on").await, "on\n", "it runs on after each");
    let nowhere = CheckpointPlan { dir: PathBuf::from("/nowhere"), ..f.checkpoint() };
    assert!(matches!(vm.checkpoint(&nowhere).await, Err(InstanceError::Io { .. })));
    assert_eq!(shell(&client, "echo on").await, "on\n");

    f.host.inject_guest(GuestFault::FailFreeze);
    f.host.inject_guest(GuestFault::FailThaw);
    assert!(client.freeze(Duration::from_secs(1)).await.is_err());
    client.freeze(Duration::from_secs(1)).await.unwrap();
    assert!(client.thaw(thaw(true)).await.is_err());
    // The layer that the failed checkpoint left on top is what this one freezes.
    let disk = DiskStack { layers: vec![nowhere.next_layer.clone()], ..plan.disk.clone() };
    let taken_as = f.checkpoint();
    let taken = vm.checkpoint(&taken_as).await.unwrap();
    let restore = f.restore(&disk, &taken_as, taken);
    f.host.inject_restore(BootFault::SilentGuest);
    let silent = f.provider().restore(&restore).await.unwrap();
    let options = ConnectOptions { deadline: Duration::from_millis(50), ..ConnectOptions::new("fake", 1) };
    assert!(Client::connect(silent.channel().await.unwrap(), options).await.is_err());

    f.host.inject_checkpoint(CheckpointFault::CrashAfterSwitch);
    let crashed = vm.checkpoint(&f.checkpoint()).await;
    assert!(matches!(crashed, Err(InstanceError::Ended { exit: Exit::Signal(_) })), "{crashed:?}");
}

#[tokio::test]
async fn a_disk_keeps_its_files_over_a_stop_and_a_panic_ends_the_machine() {
    let f = Fixture::new();
    let plan = f.plan();
    let vm = f.provider().boot(&plan).await.unwrap();
    let client = connect(vm.as_ref()).await;
    shell(&client, "echo kept >/workspace/x; rm -rf /tmp").await;
    vm.stop(Duration::ZERO).await.unwrap();
    let again = BootPlan { generation: Generation(2), ..plan };
    let vm = f.provider().boot(&again).await.unwrap();
    let client = connect(vm.as_ref()).await;
    assert_eq!(shell(&client, "cat /workspace/x; test -e /tmp || echo gone").await, "kept\ngone\n");
    let mut exit = vm.exit();
    let start = shell(&client, "kernel-panic");
    let ended = async { exit.wait_for(Option::is_some).await.unwrap().clone() };
    let ended = tokio::select! {
        biased;
        ended = ended => ended,
        output = start => panic!("the guest still answers: {output}"),
    };
    assert!(matches!(ended, Some(Exit::GuestPanic { .. })), "{ended:?}");
}
