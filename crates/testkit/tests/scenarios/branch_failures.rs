//! How comparable systems lost, mixed up or leaked the states of their VMs, tried on real ones. Each name is that of a
//! known failure; `docs/failures.md` lists all of them with their tests.

use crate::vm;
use offshoot_testkit::{TestEnv, wait_for};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    time::Duration,
};

#[track_caller]
fn start(env: &TestEnv, name: &str) {
    env.run(&["create", name, "--start"]).success();
}

#[track_caller]
fn shell(env: &TestEnv, vm: &str, line: &str) -> String {
    env.run(&["exec", vm, "--", "sh", "-c", line]).success().stdout.trim_end().to_owned()
}

/// Runs Python in the live context `main` of a VM; what it printed.
#[track_caller]
fn python(env: &TestEnv, vm: &str, code: &str) -> String {
    env.run(&["exec", vm, "--context", "main", "-c", code]).success().stdout.trim_end().to_owned()
}

/// Eight MiB of random bytes that only the interpreter's memory holds.
const FILL: &str = "import os, hashlib; data = os.urandom(8 << 20); print(hashlib.sha256(data).hexdigest())";
const DIGEST: &str = "print(hashlib.sha256(data).hexdigest())";

#[test]
fn resume_chain_n_deep() {
    let env = TestEnv::new();
    start(&env, "a");
    for round in 1..=5 {
        shell(&env, "a", &format!("echo {round} >/root/round-{round}"));
        python(&env, "a", &format!("round_{round} = {round}"));
        env.run(&["suspend", "a"]).success();
        env.run(&["resume", "a"]).success();
        for earlier in 1..=round {
            assert_eq!(shell(&env, "a", &format!("cat /root/round-{earlier}")), earlier.to_string());
            assert_eq!(python(&env, "a", &format!("print(round_{earlier})")), earlier.to_string());
        }
    }
    env.finish();
}

#[test]
fn snapshot_after_unsynced_write() {
    let env = TestEnv::new();
    start(&env, "a");
    // Of the running VM, disk only: what no program synced is in the guest's page cache.
    shell(&env, "a", "head -c 3000000 /dev/urandom >/root/data; sha256sum </root/data >/root/sum");
    let taken = env.run(&["snapshot", "a", "disk", "--disk-only", "--json"]).success().json();
    assert_eq!(taken["kind"], "disk-only");
    env.run(&["fork", "a@disk", "--name", "b"]).success();
    assert_eq!(shell(&env, "b", "sha256sum </root/data | cmp - /root/sum && echo same"), "same");
    env.finish();
}

#[test]
fn freeze_order() {
    let env = TestEnv::new();
    start(&env, "a");
    // A record is its number and the digest of the one before, renamed into place: a torn or lost one is seen.
    let writer = "import os, hashlib\n\
                  os.makedirs('/root/log', exist_ok=True)\n\
                  last, n = 'start', 0\n\
                  while True:\n    \
                      n += 1\n    \
                      text = f'{n} {last} ' + 'x' * 5000\n    \
                      with open('/root/log/new', 'w') as f: f.write(text)\n    \
                      os.rename('/root/log/new', f'/root/log/{n % 64}')\n    \
                      last = hashlib.sha256(text.encode()).hexdigest()\n";
    fs::write(env.work_dir().join("writer.py"), writer).expect("write the program");
    env.run(&["cp", "writer.py", "a:/root/writer.py"]).success();
    env.run(&["exec", "a", "--detach", "--", "python3", "/root/writer.py"]).success();
    wait_for("the writer to write", Duration::from_secs(60), || {
        shell(&env, "a", "test -e /root/log/63 && echo yes || echo no") == "yes"
    });
    let check = "import hashlib, os\n\
                 found = {}\n\
                 for name in os.listdir('/root/log'):\n    \
                     if name == 'new': continue\n    \
                     text = open('/root/log/' + name).read()\n    \
                     n, last, rest = text.split(' ')\n    \
                     assert rest == 'x' * 5000, (name, len(rest))\n    \
                     found[int(n)] = (last, hashlib.sha256(text.encode()).hexdigest())\n\
                 newest = max(found)\n\
                 run = [n for n in range(newest, 0, -1) if n in found]\n\
                 links = sum(found[n][0] == found[n - 1][1] for n in found if n - 1 in found)\n\
                 assert newest < 64 or links >= 60, (newest, links)\n\
                 print('whole', newest)";
    fs::write(env.work_dir().join("check.py"), check).expect("write the program");
    env.run(&["cp", "check.py", "a:/root/check.py"]).success();
    for round in 0..8 {
        env.run(&["snapshot", "a", &format!("s{round}")]).success();
    }
    for round in [0, 7] {
        let name = format!("f{round}");
        env.run(&["fork", &format!("a@s{round}"), "--name", &name]).success();
        // The writer of the copy goes on, so the check reads a log that stands still.
        shell(&env, &name, "pkill -STOP -x python3");
        assert!(shell(&env, &name, "python3 /root/check.py").starts_with("whole "));
        let complaints = shell(&env, &name, "dmesg | grep -ci 'ext4-fs error' || true");
        assert_eq!(complaints, "0", "the filesystem of `{name}` is in order");
    }
    env.finish();
}

#[test]
fn snapshot_of_restored_vm() {
    let env = TestEnv::new();
    start(&env, "a");
    let digest = python(&env, "a", FILL);
    env.run(&["snapshot", "a", "s"]).success();
    env.run(&["fork", "a@s", "--name", "b"]).success();
    // Nothing of the copy was touched: its memory is its source's, and must be in its snapshot all the same.
    env.run(&["snapshot", "b", "s"]).success();
    env.run(&["fork", "b@s", "--name", "c"]).success();
    assert_eq!(python(&env, "c", DIGEST), digest);
    env.run(&["snapshot", "verify", "b@s"]).success();
    env.finish();
}

#[test]
fn parent_immutable_while_children_live_and_parent_refcounted() {
    let env = TestEnv::new();
    start(&env, "a");
    let digest = python(&env, "a", FILL);
    env.run(&["snapshot", "a", "s"]).success();
    env.run(&["fork", "a@s", "--name", "b"]).success();
    let refused = env.run(&["snapshot", "rm", "a@s"]).exits(4);
    assert!(refused.stderr.contains('b'), "who needs it is named: {refused}");
    // Its VM goes; what its children need stays.
    env.run(&["destroy", "a", "--snapshots"]).success();
    assert_eq!(python(&env, "b", DIGEST), digest);
    env.run(&["suspend", "b"]).success();
    env.run(&["resume", "b"]).success();
    assert_eq!(python(&env, "b", DIGEST), digest);
    let image = env.run(&["image", "rm", "base"]);
    assert_ne!(image.code, Some(0), "an image with VMs is not removed: {image}");
    env.finish();
}

#[test]
fn clean_stop_leaves_clean_journal() {
    let env = TestEnv::new();
    start(&env, "a");
    shell(&env, "a", "head -c 2000000 /dev/urandom >/root/data");
    env.run(&["stop", "a"]).success();
    env.run(&["start", "a"]).success();
    let said = shell(&env, "a", "dmesg | grep -ciE 'recovery|orphan|ext4-fs error' || true");
    assert_eq!(said, "0", "nothing was to be recovered");
    env.finish();
}

#[test]
fn snapshot_kind_is_explicit() {
    let env = TestEnv::new();
    start(&env, "a");
    for (name, flag, kind) in [("f", None, "full"), ("d", Some("--disk-only"), "disk-only")] {
        let mut arguments = vec!["snapshot", "a", name, "--json"];
        arguments.extend(flag);
        assert_eq!(env.run(&arguments).success().json()["kind"], kind, "in the reply");
        let shown = env.run(&["snapshot", "show", &format!("a@{name}"), "--json"]).success().json();
        assert_eq!(shown["kind"], kind, "in the record");
    }
    env.finish();
}

/// Reads one machine: all that must be its own.
fn identity(env: &TestEnv, name: &str) -> Vec<(&'static str, String)> {
    let code = "import random, ssl, uuid, os\n\
                print(random.getrandbits(128), ssl.RAND_bytes(16).hex(), uuid.uuid4(), os.urandom(16).hex())\n\
                for f in ('/etc/machine-id', '/etc/hostname', '/etc/ssh/ssh_host_ed25519_key.pub',\n          \
                          '/proc/sys/kernel/hostname', '/proc/sys/kernel/random/uuid'):\n    \
                    print(open(f).read().strip())";
    let read = python(env, name, code);
    let script = "console.log(require('crypto').randomBytes(16).toString('hex'), \
                  require('crypto').randomUUID(), Math.random())";
    let node = env.run(&["exec", name, "--context", "js", "--lang", "javascript", "-c", script]).success();
    let mut lines = read.lines();
    let mut random = lines.next().expect("random numbers").split(' ').map(str::to_owned);
    let mut own = vec![];
    for what in ["random", "ssl", "uuid4", "urandom"] {
        own.push((what, random.next().expect("a number")));
    }
    for what in ["machine-id", "hostname file", "ssh host key", "hostname", "kernel uuid"] {
        own.push((what, lines.next().expect("a line").to_owned()));
    }
    let mut numbers = node.stdout.trim().split(' ').map(str::to_owned);
    for what in ["randomBytes", "randomUUID", "Math.random"] {
        own.push((what, numbers.next().expect("a number")));
    }
    own
}

#[test]
fn fork_identity_distinct_and_fork_entropy_distinct() {
    let env = TestEnv::new();
    start(&env, "a");
    // Any host key makes a machine with host keys.
    shell(&env, "a", "mkdir -p /etc/ssh && echo old >/etc/ssh/ssh_host_rsa_key");
    python(&env, "a", "import random, ssl, uuid, os; random.random(); ssl.RAND_bytes(1); uuid.uuid4()");
    let warm = "require('crypto').randomBytes(1); require('crypto').randomUUID(); Math.random()";
    env.run(&["exec", "a", "--context", "js", "--lang", "javascript", "-c", warm]).success();
    let forks = env.run(&["fork", "a", "--count", "20"]).success().stdout;
    let all: Vec<_> = forks.lines().map(|fork| identity(&env, fork)).collect();
    assert_eq!(all.len(), 20);
    for which in 0..all[0].len() {
        let distinct: BTreeSet<&str> = all.iter().map(|own| own[which].1.as_str()).collect();
        assert_eq!(distinct.len(), 20, "{}: {distinct:?}", all[0][which].0);
    }
    env.finish();
}

#[test]
fn fork_depth_and_width() {
    let env = TestEnv::new();
    start(&env, "v0");
    python(&env, "v0", "x = 0");
    let mut pauses = Vec::new();
    for generation in 1..=10_u32 {
        let from = format!("v{}", generation - 1);
        let report = env
            .run(&["fork", &from, "--count", "3", "--name", &format!("v{generation}"), "--json"])
            .success();
        let report = report.json();
        pauses.push(report["paused_us"].as_u64().expect("the source stood still for a time"));
        let children: Vec<&str> = report["forks"]
            .as_array()
            .expect("`forks`")
            .iter()
            .map(|fork| fork["name"].as_str().expect("a name"))
            .collect();
        assert_eq!(children.len(), 3);
        for child in &children {
            let grown = python(&env, child, "x += 1; print(x)");
            assert_eq!(grown, generation.to_string(), "{child} after {from}");
        }
        // The first goes on as the next generation's source.
        for other in [children[1], children[2], from.as_str()] {
            env.run(&["destroy", other]).success();
        }
        env.run(&["fork", children[0], "--name", &format!("v{generation}")]).success();
        env.run(&["destroy", children[0]]).success();
    }
    let typical = |pauses: &[u64]| {
        let mut sorted = pauses.to_vec();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    };
    let (early, late) = (typical(&pauses[1..5]), typical(&pauses[6..]));
    assert!(late <= 2 * early + 20_000, "pauses in microseconds do not grow with depth: {pauses:?}");
    env.finish();
}

#[test]
fn fork_equivalence() {
    let env = TestEnv::new();
    start(&env, "a");
    shell(&env, "a", "mkdir -p /workspace/d && echo one >/workspace/d/f && ln -s d/f /workspace/l");
    env.run(&["exec", "a", "--detach", "--env", "COLOUR=green", "--", "sleep", "1000"]).success();
    python(&env, "a", "x = {'a': [1, 2]}; import os; os.chdir('/workspace')");
    let look = "cd /workspace && find . | sort | xargs stat -c '%n %f %u %s %Y' && cat d/f && id && mount | sort \
                && ps -eo pid,ppid,args | grep -v -e '\\[' -e ps -e grep -e sort -e stat -e xargs -e find -e 'sh -c' | sort \
                && tr '\\0' '\\n' </proc/$(pgrep -x sleep)/environ | sort";
    // A fork first, so that both have the same past when they are looked at.
    env.run(&["fork", "a", "--name", "b"]).success();
    let seen = |name: &str| {
        let machine = shell(&env, name, look);
        (machine, python(&env, name, "print(x, os.getcwd(), os.getpid())"))
    };
    assert_eq!(seen("a"), seen("b"), "but for its identity a fork is what its source is");
    assert_ne!(shell(&env, "a", "hostname"), shell(&env, "b", "hostname"));
    env.finish();
}

#[test]
fn listed_means_resumable() {
    let env = TestEnv::new();
    for name in ["running", "paused", "suspended", "stopped"] {
        start(&env, name);
    }
    env.run(&["pause", "paused"]).success();
    env.run(&["suspend", "suspended"]).success();
    env.run(&["stop", "stopped"]).success();
    env.kill_daemon();
    let listed = env.run(&["list", "--json"]).success().json();
    let listed = listed["vms"].as_array().expect("`vms`").clone();
    assert_eq!(listed.len(), 4);
    for entry in listed {
        let name = entry["name"].as_str().expect("a name");
        assert_eq!(entry["state"], name);
        let verb = if name == "paused" { "resume" } else { "start" };
        env.run(&[verb, name]).success();
        assert_eq!(shell(&env, name, "echo here"), "here");
    }
    env.finish();
}

#[test]
fn acknowledged_means_durable() {
    let env = TestEnv::new();
    start(&env, "a");
    for round in 0..4 {
        python(&env, "a", &format!("x = {round}"));
        env.run(&["snapshot", "a", &format!("s{round}")]).success();
        env.kill_daemon();
    }
    for round in 0..4 {
        let name = format!("a@s{round}");
        env.run(&["snapshot", "verify", &name]).success();
        let shown = env.run(&["snapshot", "show", &name, "--json"]).success().json();
        assert_eq!(shown["state"], "durable", "{name}");
        let fork = format!("f{round}");
        env.run(&["fork", &name, "--name", &fork]).success();
        assert_eq!(python(&env, &fork, "print(x)"), round.to_string());
    }
    env.finish();
}

#[test]
fn status_is_observed() {
    let env = TestEnv::new();
    start(&env, "a");
    let vmm = env
        .processes()
        .into_iter()
        .find(|process| process.command_line.contains("qemu-system"))
        .expect("the VMM of `a`");
    assert!(vmm.kill());
    wait_for("its end to be seen", Duration::from_secs(5), || vm(&env, "a")["state"] == "failed");
    let status = vm(&env, "a");
    assert!(status["failure"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{status}");
    env.finish();
}

/// Descriptors the daemon holds.
fn descriptors(env: &TestEnv) -> usize {
    let pid = env.daemon_pid().expect("a daemon");
    fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count()
}

#[test]
fn heavy_fd_flat_over_1000_cycles() {
    let env = TestEnv::new();
    start(&env, "a");
    python(&env, "a", "x = 1");
    let cycle = |number: u32| {
        if number.is_multiple_of(50) {
            env.run(&["snapshot", "a", "s"]).success();
            env.run(&["fork", "a@s", "--name", "b"]).success();
            env.run(&["destroy", "b"]).success();
            env.run(&["snapshot", "rm", "a@s"]).success();
        } else {
            python(&env, "a", "x += 1");
        }
    };
    (0..51).for_each(cycle);
    let before = descriptors(&env);
    (0..1000).for_each(cycle);
    let settled = || descriptors(&env) <= before + 4;
    wait_for("descriptors to be let go", Duration::from_secs(10), settled);
    env.finish();
}

#[test]
fn heavy_rpc_survives_1000_pause_resume() {
    let env = TestEnv::new();
    start(&env, "a");
    // Goes on over all of them, and its output arrives whole.
    let counting = "import time\nfor i in range(200000): print(i, flush=i % 100 == 0)";
    let mut counter = env.spawn(&["exec", "a", "--", "python3", "-c", counting]);
    let mut stdout = BufReader::new(counter.child.stdout.take().expect("standard output is a pipe"));
    let mut printed = String::new();
    stdout.read_line(&mut printed).expect("the program runs before the first pause");
    let reader =
        std::thread::spawn(move || stdout.read_to_string(&mut printed).map(|_| printed).expect("text"));
    for round in 0..1000 {
        env.run(&["pause", "a"]).success();
        env.run(&["resume", "a"]).success();
        if round % 100 == 0 {
            assert_eq!(shell(&env, "a", "echo answered"), "answered");
        }
    }
    assert!(counter.child.wait().expect("the caller ends").success());
    let printed = reader.join().expect("the reader");
    let expected: String = (0..200_000).map(|i| format!("{i}\n")).collect();
    assert!(printed == expected, "{} of {} bytes", printed.len(), expected.len());
    env.finish();
}

#[test]
fn connections_across_restore_are_reset_not_hung() {
    let env = TestEnv::new();
    start(&env, "a");
    // A command that waits for input is cut by the rollback of its VM, with the reason, and at once.
    env.run(&["snapshot", "a", "s"]).success();
    let mut waiting = env.spawn(&["exec", "a", "-i", "--", "cat"]);
    wait_for("the command to run", Duration::from_secs(10), || {
        shell(&env, "a", "pgrep -x cat >/dev/null && echo yes || echo no") == "yes"
    });
    env.run(&["rollback", "a", "a@s"]).success();
    let ended = waiting.child.wait().expect("the caller ends");
    assert!(!ended.success(), "its process is not there any more");
    // The next request needs no time to find the new machine.
    assert_eq!(shell(&env, "a", "echo next"), "next");
    let listed: Value = env.run(&["list", "--json"]).success().json();
    assert_eq!(listed["vms"].as_array().map(Vec::len), Some(1));
    env.finish();
}
