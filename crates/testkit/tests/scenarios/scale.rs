//! Many VMs, many calls, a long time.

use crate::{await_state, vm};
use offshoot_api::{
    Client, ClientError,
    client::ExecEvent,
    v1::{ExecRequest, ExitStatus},
};
use offshoot_testkit::{TestEnv, wait_for};
use offshoot_types::VmRef;
use std::{
    fs,
    time::{Duration, Instant},
};

#[test]
fn scenario_47_ten_vms_started_at_once_all_run() {
    let env = TestEnv::new();
    let names: Vec<String> = (0..10).map(|i| format!("vm{i}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| env.run(&["create", name, "--start", "--timeout", "120s"]).success());
        }
    });
    for name in &names {
        await_state(&env, name, "running", Duration::from_secs(1));
        env.run(&["exec", name, "--", "hostname"]).success().prints(&format!("{name}\n"));
    }
    // A restart of the daemon finds them all, undisturbed.
    env.kill_daemon();
    for name in &names {
        assert_eq!(vm(&env, name)["state"], "running");
    }
    env.finish();
}

#[test]
fn admission_counts_memory_of_vms_still_being_created() {
    let env = TestEnv::new();
    let total: u64 = fs::read_to_string("/proc/meminfo")
        .expect("read /proc/meminfo")
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .expect("MemTotal is there");
    let half = format!("{}M", total / 1024 * 6 / 10);
    let codes: Vec<i32> = std::thread::scope(|scope| {
        let tasks: Vec<_> = ["a", "b", "c"]
            .map(|name| {
                scope.spawn({
                    let (env, half) = (&env, &half);
                    move || env.run(&["create", name, "--memory", half])
                })
            })
            .into_iter()
            .collect();
        tasks.into_iter().map(|t| t.join().expect("no panic").code.expect("no signal")).collect()
    });
    assert_eq!(codes.iter().filter(|c| **c == 0).count(), 1, "one of three fits: {codes:?}");
    assert_eq!(codes.iter().filter(|c| **c == 7).count(), 2, "the others are refused by name: {codes:?}");
    env.finish();
}

#[test]
fn heavy_scenario_20_a_hundred_create_destroy_cycles_leave_nothing() {
    let env = TestEnv::new();
    env.run(&["create", "warm"]).success();
    env.run(&["destroy", "warm", "--yes"]).success();
    let pid = env.daemon_pid().expect("a daemon");
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).map(|d| d.count()).unwrap_or(0);
    let before = descriptors();
    for round in 0..100 {
        let name = format!("v{round}");
        env.run(&["create", &name]).success();
        if round % 25 == 0 {
            env.run(&["start", &name]).success();
        }
        env.run(&["destroy", &name, "--yes"]).success();
    }
    wait_for("descriptors to return to where they were", Duration::from_secs(5), || {
        descriptors() <= before + 2
    });
    env.finish();
}

#[test]
fn heavy_scenario_46_thirty_boots_in_a_row_without_a_hang() {
    let env = TestEnv::new();
    env.run(&["create", "a"]).success();
    let mut slowest = Duration::ZERO;
    for _ in 0..30 {
        let began = Instant::now();
        env.run(&["start", "a", "--timeout", "60s"]).success();
        env.run(&["exec", "a", "--", "true"]).success();
        slowest = slowest.max(began.elapsed());
        env.run(&["stop", "a"]).success();
    }
    eprintln!("slowest of 30: {slowest:?}");
    env.finish();
}

#[test]
fn heavy_scenario_49_the_daemons_memory_stays_flat() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let pid = env.daemon_pid().expect("a daemon");
    let rss = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
    };
    let calls = |count: usize| {
        for _ in 0..count {
            env.run(&["exec", "a", "--", "true"]).success();
        }
    };
    calls(150);
    let before = rss();
    calls(600);
    let after = rss();
    eprintln!("daemon RSS after 150 execs {before} kB, after 750 {after} kB");
    assert!(after < before + before / 10 + 1024, "{before} kB grew to {after} kB");
    env.finish();
}

/// What a process holds: descriptors, and kilobytes that are resident.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: u64,
    resident: u64,
}

impl Held {
    fn parse(descriptors: &str, status: &str) -> Self {
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
        let resident = line.trim().trim_end_matches(" kB").parse().expect("kilobytes");
        Self { descriptors: descriptors.trim().parse().expect("a number"), resident }
    }
    fn of_host(pid: i32) -> Self {
        let count = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        Self::parse(&count.to_string(), &status)
    }
    fn of_agent(env: &TestEnv) -> Self {
        let ask = |line: &str| env.run(&["exec", "a", "--", "sh", "-c", line]).success().stdout;
        Self::parse(&ask("ls /proc/1/fd | wc -l"), &ask("cat /proc/1/status"))
    }
    fn has_not_grown_since(self, before: Self) -> bool {
        self.descriptors <= before.descriptors + 4
            && self.resident < before.resident + before.resident / 10 + 2048
    }
}

#[test]
fn heavy_ten_thousand_execs_leak_nothing() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let record = env.run(&["daemon", "status", "--json"]).success().json();
    let client = Client::new(record["socket"].as_str().expect("a socket"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let request = ExecRequest { argv: Some(vec!["true".into()]), ..ExecRequest::default() };
    let execs = |count: usize| {
        runtime.block_on(async {
            for _ in 0..count {
                let mut connection =
                    client.exec(&VmRef::Name("a".parse().expect("a name")), &request).await?;
                let mut ended = None;
                while let Some(event) = connection.events.next().await? {
                    if let ExecEvent::Ended(end) = event {
                        ended = Some(end.status);
                    }
                }
                assert_eq!(ended, Some(ExitStatus::Exited { code: 0 }));
            }
            Ok::<_, ClientError>(())
        })
    };
    let keeper = env.processes().into_iter().find(|process| process.command_line.contains(" keeper "));
    let (daemon, keeper) = (env.daemon_pid().expect("a daemon"), keeper.expect("a keeper").pid);
    let held = || [Held::of_host(daemon), Held::of_host(keeper), Held::of_agent(&env)];
    // Zombies too, but none of the kernel's own threads (children of 2): it has as many as it likes.
    let count = "grep -hs ^PPid: /proc/[0-9]*/status | grep -cvw 2";
    let processes = || env.run(&["exec", "a", "--", "sh", "-c", count]).success().stdout;
    execs(500).expect("every exec is answered");
    let (before, ran) = (held(), processes());
    execs(10_000).expect("every exec is answered");
    let after = held();
    eprintln!("daemon, keeper, agent: before {before:?}, after {after:?}");
    for ((what, before), after) in ["daemon", "keeper", "agent"].into_iter().zip(before).zip(after) {
        assert!(after.has_not_grown_since(before), "the {what} grew: {before:?} to {after:?}");
    }
    assert_eq!(processes(), ran, "processes are left in the guest");
    env.finish();
}

#[test]
fn scenario_50_logs_are_bounded_and_follow_ends_cleanly() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let flood = "seq -f 'line %g of a long log' 100000 160000 >/dev/console";
    env.run(&["exec", "--timeout", "100s", "a", "--", "bash", "-c", flood]).success();
    wait_for("the newest lines to be there", Duration::from_secs(10), || {
        let console = env.run(&["logs", "a", "--console"]).success();
        assert!(console.stdout.len() < 3 << 20, "{} bytes", console.stdout.len());
        console.stdout.contains("line 160000 of a long log")
    });
    let mut follower = env.spawn(&["logs", "a", "-f"]);
    env.run(&["destroy", "a", "--yes"]).success();
    wait_for("`logs -f` to end with its VM", Duration::from_secs(10), || {
        follower.child.try_wait().expect("wait").is_some()
    });
    env.finish();
}

#[test]
fn scenario_19_a_terminated_daemon_leaves_running_vms_and_no_half_record() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let pid = env.daemon_pid().expect("a daemon");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal the daemon");
    wait_for("the daemon to end", Duration::from_secs(10), || env.daemon_pid().is_none());
    assert_eq!(vm(&env, "a")["state"], "running", "VMs live on");
    env.run(&["exec", "a", "--", "true"]).success();
    env.run(&["daemon", "stop", "--vms"]).success();
    assert!(!env.processes().iter().any(|p| p.command_line.contains("qemu-system")), "--vms stops them");
    assert_eq!(vm(&env, "a")["state"], "stopped");
    env.finish();
}
