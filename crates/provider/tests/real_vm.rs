//! What only real processes can show: who dies with whom, who is never killed, and what a hostile guest costs.

mod support;

use offshoot_provider::{
    Adoption, BootPlan, BootStep, Exit, InstanceRecord, Provider,
    conformance::Harness,
    process::{ProcessId, boot_id},
    qemu::{Options, QemuProvider},
};
use offshoot_types::IsolationClass;
use rustix::{
    fs::FlockOperation,
    net::{AddressFamily, SocketFlags, SocketType},
};
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use support::{
    Real,
    session::{boot, connect, exit, finish, run},
};

/// A keeper as a daemon starts it, without a daemon.
fn keeper_command(record: &InstanceRecord, lock: File) -> (Command, rustix::fd::OwnedFd) {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    let mut command = Command::new(support::keeper_exe());
    command.arg("keeper").arg("--spec").arg(record.state_dir.join("keeper-real-vm.json"));
    command.stdin(Stdio::from(theirs)).stdout(Stdio::from(lock)).stderr(Stdio::piped());
    (command, ours)
}

#[tokio::test]
async fn real_vm_keeper_with_a_revoked_lease_starts_no_vmm() {
    let real = Real::new();
    let plan = real.plan();
    let record = real.record(&plan);
    // A boot leaves the specification behind; its lease is used up.
    let instance = boot(&real, &plan).await;
    instance.stop(Duration::ZERO).await.unwrap();
    drop(instance);
    finish(&real, &record).await;
    real.permit_start(&plan);
    assert!(matches!(real.provider().adopt(&record).await.unwrap(), Adoption::NeverStarted));

    let lock = File::options().write(true).open(record.state_dir.join("keeper.lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let (mut command, _daemon) = keeper_command(&record, lock);
    let output = command.output().unwrap();
    drop(command);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let log = std::fs::read_to_string(record.state_dir.join("keeper.log")).unwrap();
    assert!(log.trim_end().ends_with("the lease was revoked: ending without a start"), "{log}");
    finish(&real, &record).await;
}

#[tokio::test]
async fn real_vm_keeper_started_by_hand_refuses() {
    let real = Real::new();
    let plan = real.plan();
    let record = real.record(&plan);
    let instance = boot(&real, &plan).await;
    let other = File::create(real.directory.path().join("other")).unwrap();
    let (mut command, _daemon) = keeper_command(&record, other);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("keeper.lock"));
    assert!(instance.exit().borrow().is_none(), "the real one goes on");
    finish(&real, &record).await;
}

#[tokio::test]
async fn real_vm_vmm_dies_with_its_keeper() {
    let real = Real::new();
    let plan = real.plan();
    let record = real.record(&plan);
    let instance = boot(&real, &plan).await;
    let (keeper, vmm) = (support::keeper(&record), support::vmm(&record));
    let process = vmm.find().unwrap().expect("the VMM lives");
    support::kill(&keeper);
    assert!(process.wait(Duration::from_secs(1)), "the VMM outlived its keeper");
    assert_eq!(exit(instance.as_ref(), Duration::from_secs(2)).await, Exit::KeeperLost);
    match real.provider().adopt(&record).await.unwrap() {
        Adoption::Ended(Some(Exit::KeeperLost)) => {}
        other => panic!("adopted as {other:?}"),
    }
    finish(&real, &record).await;
}

/// Set in a child of the test below: it is a daemon that is killed.
const DAEMON: &str = "OFFSHOOT_TEST_DAEMON";

#[tokio::test]
async fn real_vm_survives_the_death_of_its_daemon() {
    let real = Real::new();
    if std::env::var_os(DAEMON).is_some() {
        return be_a_daemon(&real).await;
    }
    let me = std::env::current_exe().unwrap();
    let mut daemon = Command::new(me)
        .args(["--exact", "real_vm_survives_the_death_of_its_daemon", "--nocapture"])
        .env(DAEMON, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let record: InstanceRecord = BufReader::new(daemon.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find_map(|line| serde_json::from_str(line.strip_prefix("record: ")?).ok())
        .expect("the daemon boots a VM");
    let _guard = support::KillOnDrop(record.clone());
    // It is in the middle of writing a large file into the guest.
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    // Nobody listens to the guest now: that must cost nothing.
    let ids = [support::keeper(&record), support::vmm(&record)];
    let used = || ids.iter().map(|id| cpu_time(id.pid)).sum::<Duration>();
    settle(used).await;
    let (before, begun) = (used(), Instant::now());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let share = (used() - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    assert!(share < 0.01, "a VM without a daemon uses {:.1} % of a processor", share * 100.0);

    let Adoption::Running(instance) = real.provider().adopt(&record).await.unwrap() else {
        panic!("it does not run any more");
    };
    let client = connect(instance.as_ref()).await;
    assert_eq!(run(&client, "cat /tmp/kept; ls /tmp/half 2>&1 | wc -c").await.lines().next(), Some("kept"));
    finish(&real, &record).await;
    // The daemon could not remove its directory.
    std::fs::remove_dir_all(record.state_dir.parent().unwrap()).unwrap();
}

async fn be_a_daemon(real: &Real) {
    let plan = real.plan();
    let instance = boot(real, &plan).await;
    let client = connect(instance.as_ref()).await;
    run(&client, "echo kept > /tmp/kept").await;
    let mut writer = client.files("root").write("/tmp/half", None, false, false).await.unwrap();
    let part = vec![0; 64 * 1024];
    writer.send(&part).await.unwrap();
    let mut stdout = std::io::stdout();
    writeln!(stdout, "\nrecord: {}", serde_json::to_string(instance.record()).unwrap()).unwrap();
    stdout.flush().unwrap();
    loop {
        writer.send(&part).await.unwrap();
    }
}

fn cpu_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// Waits until what was under way has come to rest (the guest's page cache is written back, for example).
async fn settle(used: impl Fn() -> Duration) {
    let until = Instant::now() + Duration::from_secs(40);
    let mut last = used();
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = used();
        if now - last <= Duration::from_millis(10) || Instant::now() > until {
            return;
        }
        last = now;
    }
}

#[tokio::test]
async fn pid_reuse_does_not_kill_stranger() {
    let real = Real::new();
    let plan = real.plan();
    let record = real.record(&plan);
    let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    let theirs = ProcessId::of(stranger.id() as i32).unwrap();
    let earlier = ProcessId { start_time: theirs.start_time - 1, ..theirs.clone() };
    let before_reboot = ProcessId { boot_id: boot_id().unwrap().replace('-', "x"), ..theirs.clone() };
    for ours in [earlier, before_reboot] {
        // A keeper and a VMM that are gone; their pids are the stranger's now.
        std::fs::write(record.state_dir.join("lease.claimed"), "").unwrap();
        let json = serde_json::json!({ "keeper": ours, "vmm": ours });
        std::fs::write(record.state_dir.join("keeper.json"), json.to_string()).unwrap();
        match real.provider().adopt(&record).await.unwrap() {
            Adoption::Ended(Some(Exit::KeeperLost)) => {}
            other => panic!("adopted as {other:?}"),
        }
        let report = real.provider().reclaim(&record).await;
        assert_eq!(report.failed, Vec::<String>::new());
        assert!(stranger.try_wait().unwrap().is_none(), "the stranger was killed");
    }
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_lock_without_a_known_keeper_is_reported_and_nobody_is_killed() {
    let real = Real::new();
    let plan = real.plan();
    let record = real.record(&plan);
    let lock = File::create(record.state_dir.join("keeper.lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    tokio::time::pause();
    let report = real.provider().reclaim(&record).await;
    assert!(report.failed[0].contains("a keeper still lives"), "{:?}", report.failed);
}

#[tokio::test]
async fn real_vm_second_start_on_same_disk_refused() {
    let real = Real::new();
    let plan = real.plan();
    let _first = boot(&real, &plan).await;
    let mut other = real.plan();
    other.disk.clone_from(&plan.disk);
    let error = real.provider().boot(&other).await.expect_err("refused");
    assert_eq!(error.step, BootStep::Keeper);
    assert!(error.message.contains("keeper-real-vm.json"), "names the holder: {}", error.message);
    assert!(error.message.contains(&plan.vm.simple()), "names the holder: {}", error.message);
    assert!(error.undo.failed.is_empty(), "{:?}", error.undo);
    assert_eq!(real.leftovers(&real.record(&other)).await, Vec::<String>::new());
    finish(&real, &real.record(&plan)).await;
}

#[tokio::test]
async fn real_vm_failed_boots_say_why_and_leave_nothing() {
    let real = Real::new();
    let garbage = real.directory.path().join("garbage");
    std::fs::write(&garbage, vec![0x5a; 4096]).unwrap();
    type Damage = fn(&mut BootPlan, &Path);
    let cases: [(Damage, BootStep, &str); 4] = [
        (|plan, garbage| plan.kernel = garbage.into(), BootStep::Vmm, "kernel"),
        (|plan, _| plan.root = "/no/such/root".into(), BootStep::Vmm, "/no/such/root"),
        (|plan, garbage| plan.disk.layers = vec![garbage.into()], BootStep::Keeper, "data disk"),
        (|plan, _| plan.runtime_dir = "/no/such/directory".into(), BootStep::Keeper, "keeper"),
    ];
    for (damage, step, said) in cases {
        let mut plan = real.plan();
        damage(&mut plan, &garbage);
        let error = real.provider().boot(&plan).await.expect_err("it cannot boot");
        assert_eq!(error.step, step, "{error:#?}");
        assert!(error.message.contains(said), "{error:#?}");
        assert!(error.undo.failed.is_empty(), "{error:#?}");
        assert_eq!(real.leftovers(&real.record(&plan)).await, Vec::<String>::new(), "{error:#?}");
    }
}

#[tokio::test]
async fn real_vm_missing_or_wrong_qemu_is_told() {
    let real = Real::new();
    let plan = real.plan();
    let provider = QemuProvider::new(Options { qemu: Some("/no/such/qemu".into()), ..real.options() });
    assert!(provider.capabilities().await.isolation.unwrap_err().contains("/no/such/qemu"));
    let error = provider.boot(&plan).await.expect_err("no QEMU");
    assert_eq!(error.step, BootStep::Probe);
    assert!(error.message.contains("/no/such/qemu"), "{error:#?}");
}

#[tokio::test]
async fn real_vm_guest_panic_is_told_with_its_line() {
    let real = Real::new();
    let mut plan = real.plan();
    // No initramfs worth the name: the kernel finds nothing to run.
    plan.initramfs = real.directory.path().join("empty");
    std::fs::write(&plan.initramfs, vec![0; 512]).unwrap();
    let record = real.record(&plan);
    let instance = boot(&real, &plan).await;
    match exit(instance.as_ref(), Duration::from_secs(60)).await {
        Exit::GuestPanic { line } => assert!(line.contains("Kernel panic"), "{line}"),
        other => panic!("{other:?}: {:#?}", instance.diagnostics().await),
    }
    let tail = instance.diagnostics().await.console_tail;
    assert!(tail.iter().any(|line| line.contains("Kernel panic")), "{tail:#?}");
    finish(&real, &record).await;
}

#[tokio::test]
async fn real_vm_console_flood_costs_neither_memory_nor_disk() {
    let real = Real::new();
    let plan = real.plan();
    let record = real.record(&plan);
    let instance = boot(&real, &plan).await;
    let client = connect(instance.as_ref()).await;
    let keeper = support::keeper(&record);
    let before = resident(keeper.pid);
    run(&client, "timeout 10 sh -c 'yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa > /dev/console'").await;
    let grown = resident(keeper.pid).saturating_sub(before);
    assert!(grown < 1024, "the keeper grew by {grown} KiB");
    let size = |name| std::fs::metadata(record.state_dir.join(name)).map_or(0, |file| file.len());
    assert!(size("console.log") > 0, "the flood is logged");
    assert!(size("console.log") <= 1 << 20 && size("console.log.1") <= 1 << 20);
    assert_eq!(run(&client, "echo still here").await, "still here\n");
    finish(&real, &record).await;
}

fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn real_vm_limits_are_in_force_where_they_are_said_to_be() {
    let real = Real::new();
    let plan = real.plan();
    let record = real.record(&plan);
    let instance = boot(&real, &plan).await;
    let limits = instance.diagnostics().await.limits;
    assert_eq!(limits.len(), 3, "one sentence per controller: {limits:?}");
    let vmm = support::vmm(&record);
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", vmm.pid)).unwrap();
    let own = format!("offshoot-{}-g1", plan.vm.simple());
    if limits.iter().any(|limit| limit.starts_with("memory at most")) {
        assert!(groups.contains(&own), "said {limits:?}, is in\n{groups}");
        let keeper =
            std::fs::read_to_string(format!("/proc/{}/cgroup", support::keeper(&record).pid)).unwrap();
        assert!(!keeper.contains(&own), "what the keeper copies would count as the VM's\n{keeper}");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.pid)).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "the sandbox is on: {status}");
    let environment = std::fs::read(format!("/proc/{}/environ", vmm.pid)).unwrap();
    assert!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));
    let usage = instance.usage().await.unwrap();
    assert!(usage.rss.0 > 16 << 20 && usage.pss <= usage.rss, "{usage:?}");
    finish(&real, &record).await;
}

/// A KVM that works, as seen by the provider: emulation in its place.
#[tokio::test]
async fn real_vm_probe_believes_a_kernel_that_reaches_user_space() {
    let real = Real::new();
    let qemu = real.directory.path().join("qemu-with-kvm");
    // Emulated, the kernel must be told the clock's frequency, or one boot in eight hangs.
    let script = r#"#!/bin/bash
PATH=/usr/bin:/bin:/usr/local/bin
khz=$(awk '/^bogomips/ { printf "%d", $3 * 500; exit }' /proc/cpuinfo)
args=("$@")
for i in "${!args[@]}"; do
    case ${args[i]} in
        kvm) args[i]=tcg ;;
        host) args[i]=max ;;
        console=*) args[i]+=" tsc_early_khz=$khz tsc=reliable no_timer_check" ;;
    esac
done
exec qemu-system-x86_64 "${args[@]}"
"#;
    std::fs::write(&qemu, script).unwrap();
    std::fs::set_permissions(&qemu, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let cache = real.directory.path().join("probe");
    // Emulated, it takes as long as any boot does here.
    let probe_deadline = Duration::from_secs(60);
    let options = Options { qemu: Some(qemu), probe_cache: cache, probe_deadline, ..real.options() };
    let capabilities = QemuProvider::new(options).capabilities().await;
    if !Path::new("/dev/kvm").exists() {
        // Nothing is tried without the device.
        assert!(capabilities.notes[0].contains("/dev/kvm"), "{capabilities:?}");
        return;
    }
    assert_eq!(capabilities.isolation, Ok(IsolationClass::HardwareVm), "{capabilities:?}");
}

#[tokio::test]
async fn real_vm_capabilities_are_proven_and_remembered() {
    let real = Real::new();
    let cache = real.directory.path().join("probe");
    let provider = || QemuProvider::new(Options { probe_cache: cache.clone(), ..real.options() });
    let first = provider().capabilities().await;
    assert!(first.vmm.as_deref().is_some_and(|vmm| vmm.starts_with("QEMU ")), "{first:?}");
    assert_eq!(first.notes.len(), 1, "{first:?}");
    let begun = Instant::now();
    let second = provider().capabilities().await;
    assert_eq!(first, second);
    assert!(begun.elapsed() < Duration::from_secs(1), "probed again");
}
