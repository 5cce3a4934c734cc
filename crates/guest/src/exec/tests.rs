//! Real processes on the host. The reaper reaps every child of the test's process, so these run one at a time
//! when a runner puts several tests in one process.

use super::*;
use crate::reaper::CHILDREN;
use offshoot_guest_proto::message::{ExecCommand, ExecEnd, ExitKind, OutputStream, PtySize, ResourceLimits};
use std::{collections::BTreeMap, path::Path};

fn execs() -> Execs {
    crate::sys::become_subreaper();
    let users = Arc::new(Users::new(Path::new("/etc")));
    Execs::new(Reaper::start().unwrap(), HostPresence::start(), Arc::new(ProcessGroups), users)
}

fn shell(id: u8, script: &str) -> ExecStart {
    ExecStart {
        exec: [id; 16],
        command: ExecCommand::Shell(script.to_owned()),
        env: BTreeMap::new(),
        cwd: Some("/".to_owned()),
        user: rustix::process::geteuid().as_raw().to_string(),
        pty: None,
        stdin: false,
        timeout_ms: None,
        max_output: None,
        limits: ResourceLimits::default(),
    }
}

#[derive(Debug, Default)]
struct Seen {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    lost: u64,
    end: Option<ExecEnd>,
}

async fn see(mut attachment: Attachment) -> Seen {
    let mut seen = Seen::default();
    while let Some(output) = attachment.next().await {
        match output {
            Output::Data { stream: OutputStream::Stdout, data, .. } => seen.stdout.extend(data),
            Output::Data { data, .. } => seen.stderr.extend(data),
            Output::Lost { next_offset, .. } => seen.lost = next_offset,
            Output::Ended(end) => seen.end = Some(end),
        }
    }
    seen
}

async fn run(execs: &Execs, start: &ExecStart) -> Seen {
    see(execs.start(start).unwrap()).await
}

#[tokio::test]
async fn streams_stay_apart_and_the_exit_status_is_the_programs() {
    let _one = CHILDREN.lock().await;
    let seen = run(&execs(), &shell(1, "echo out; echo err >&2; exit 7")).await;
    assert_eq!((seen.stdout.as_slice(), seen.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let end = seen.end.unwrap();
    assert_eq!((end.status, end.truncated), (ExitKind::Code(7), false));
    assert!(end.wall_us > 0);
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_an_error_and_not_a_status() {
    let _one = CHILDREN.lock().await;
    let execs = execs();
    let absent = ExecStart { command: ExecCommand::Argv(vec!["no-such-program".into()]), ..shell(1, "") };
    let error = execs.start(&absent).unwrap_err();
    assert_eq!(error.kind, GuestErrorKind::ExecFailed);
    assert_eq!(error.message, "run no-such-program: command not found in the VM's PATH");
    let nowhere = ExecStart { cwd: Some("/no/such/directory".into()), ..shell(1, "true") };
    assert_eq!(execs.start(&nowhere).unwrap_err().kind, GuestErrorKind::NotFound);
    assert!(execs.list().is_empty(), "what never ran is not kept");
    // Its id was not used up.
    assert_eq!(run(&execs, &shell(1, "true")).await.end.unwrap().status, ExitKind::Code(0));
}

#[tokio::test]
async fn signals_are_at_their_defaults_and_no_descriptor_leaks_into_a_program() {
    let _one = CHILDREN.lock().await;
    // The runner of this test may leave descriptors open and real-time signals ignored: the standard library's
    // children show which descriptors. Before our reaper, which would take their exit status.
    let count = "ls /proc/self/fd | wc -l";
    let usual = std::process::Command::new("/bin/bash").args(["-c", count]).output().unwrap();
    let execs = execs();
    assert_eq!(run(&execs, &shell(1, count)).await.stdout, usual.stdout);
    let masks = run(&execs, &shell(2, "sed -nE 's/Sig(Blk|Ign):\\s*//p' /proc/self/status")).await.stdout;
    for mask in String::from_utf8(masks).unwrap().lines() {
        let standard = u64::from_str_radix(mask, 16).unwrap() & 0x7fff_ffff;
        assert_eq!(standard, 0, "{mask}");
    }
}

#[tokio::test]
async fn a_timeout_kills_the_whole_tree() {
    let _one = CHILDREN.lock().await;
    let begun = Instant::now();
    let start = ExecStart { timeout_ms: Some(200), ..shell(1, "(trap '' TERM; sleep 60) & sleep 60") };
    let attachment = execs().start(&start).unwrap();
    let group = rustix::process::Pid::from_raw(attachment.process().pid).unwrap();
    assert_eq!(see(attachment).await.end.unwrap().status, ExitKind::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(
        rustix::process::test_kill_process_group(group).is_err(),
        "the end came before the tree was gone"
    );
}

#[tokio::test]
async fn a_timeout_too_long_to_add_to_a_clock_is_none() {
    let _one = CHILDREN.lock().await;
    let start = ExecStart { timeout_ms: Some(u64::MAX), ..shell(1, "exit 3") };
    assert_eq!(run(&execs(), &start).await.end.unwrap().status, ExitKind::Code(3));
}

#[tokio::test]
async fn a_daemon_that_holds_the_pipes_does_not_delay_the_end() {
    let _one = CHILDREN.lock().await;
    let begun = Instant::now();
    let execs = execs();
    let attachment = execs.start(&shell(1, "sleep 60 & echo $!")).unwrap();
    let seen = see(attachment).await;
    assert_eq!(seen.end.unwrap().status, ExitKind::Code(0));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let daemon: i32 = String::from_utf8(seen.stdout).unwrap().trim().parse().unwrap();
    let daemon = rustix::process::Pid::from_raw(daemon).unwrap();
    rustix::process::test_kill_process(daemon).expect("the daemon lives on");
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn output_beyond_the_limit_is_dropped_and_marked() {
    let _one = CHILDREN.lock().await;
    let start = ExecStart { max_output: Some(10), ..shell(1, "head -c 300000 /dev/zero; exit 4") };
    let seen = run(&execs(), &start).await;
    assert_eq!(seen.stdout.len(), 10);
    let end = seen.end.unwrap();
    assert_eq!((end.status, end.truncated), (ExitKind::Code(4), true));
}

#[tokio::test]
async fn input_reaches_the_program_to_its_end() {
    let _one = CHILDREN.lock().await;
    let attachment = execs().start(&ExecStart { stdin: true, ..shell(1, "wc -c") }).unwrap();
    let process = Arc::clone(attachment.process());
    process.stdin.write(&vec![b'x'; 300_000]).await;
    process.stdin.end().await;
    assert_eq!(see(attachment).await.stdout, b"300000\n");
}

#[tokio::test]
async fn a_writer_is_released_when_the_program_ends_without_reading() {
    let _one = CHILDREN.lock().await;
    let attachment = execs().start(&ExecStart { stdin: true, ..shell(1, "read x; exit 5") }).unwrap();
    let process = Arc::clone(attachment.process());
    process.stdin.write(&b"line\n".repeat(200_000)).await;
    assert_eq!(see(attachment).await.end.unwrap().status, ExitKind::Code(5));
}

#[tokio::test]
async fn a_terminal_has_a_size_and_its_interrupt_key_works() {
    let _one = CHILDREN.lock().await;
    let size = PtySize { rows: 33, cols: 77 };
    let start = ExecStart {
        stdin: true,
        pty: Some(size),
        ..shell(1, "trap 'exit 42' INT; stty size; while :; do sleep 0.1; done")
    };
    let mut attachment = execs().start(&start).unwrap();
    let Some(Output::Data { data, .. }) = attachment.next().await else { panic!("no output") };
    assert_eq!(data, b"33 77\r\n");
    attachment.process().stdin.write(&[3]).await;
    assert_eq!(see(attachment).await.end.unwrap().status, ExitKind::Code(42));
}

#[tokio::test]
async fn an_ended_process_is_attached_to_again_and_says_what_was_lost() {
    let _one = CHILDREN.lock().await;
    let execs = execs();
    let total = ring::CAPACITY + 1000;
    // Nobody reads while it writes.
    drop(execs.start(&shell(9, &format!("head -c {total} /dev/zero; echo e >&2"))).unwrap());
    let first = see(execs.attach([9; 16], [0, 0]).unwrap()).await;
    assert!(first.end.is_some());
    let again = see(execs.attach([9; 16], [0, 0]).unwrap()).await;
    assert_eq!(
        (again.lost, again.stdout.len(), again.stderr.as_slice()),
        (1000, ring::CAPACITY, &b"e\n"[..])
    );
    let tail = see(execs.attach([9; 16], [total as u64 - 7, 2]).unwrap()).await;
    assert_eq!((tail.lost, tail.stdout.len(), tail.stderr.len()), (0, 7, 0));
    assert_eq!(tail.end, again.end);
}

#[tokio::test]
async fn a_process_runs_no_faster_than_its_output_is_taken() {
    let _one = CHILDREN.lock().await;
    let execs = execs();
    let attachment = execs.start(&shell(1, "head -c 5000000 /dev/zero")).unwrap();
    // Another process that comes and goes proves that the first one had the time.
    run(&execs, &shell(2, "true")).await;
    assert!(attachment.process().held_output() <= ring::CAPACITY);
    let seen = see(attachment).await;
    assert_eq!((seen.stdout.len(), seen.lost), (5_000_000, 0), "nothing was overwritten");
}

#[tokio::test]
async fn small_writes_travel_together() {
    let _one = CHILDREN.lock().await;
    let mut attachment = execs().start(&shell(1, "dd if=/dev/zero bs=512 count=4000 2>&1")).unwrap();
    let (mut pieces, mut bytes) = (0, 0);
    while let Some(output) = attachment.next().await {
        if let Output::Data { data, .. } = output {
            pieces += 1;
            bytes += data.len();
        }
    }
    assert!(bytes > 4000 * 512, "{bytes}");
    assert!(pieces < 1000, "{pieces} events for 4000 writes");
}

#[tokio::test]
async fn an_id_is_used_once_and_an_unknown_one_is_not_found() {
    let _one = CHILDREN.lock().await;
    let execs = execs();
    run(&execs, &shell(1, "true")).await;
    assert_eq!(execs.start(&shell(1, "true")).unwrap_err().kind, GuestErrorKind::AlreadyExists);
    assert_eq!(execs.attach([2; 16], [0, 0]).unwrap_err().kind, GuestErrorKind::NotFound);
    assert_eq!(execs.list().len(), 1);
}

#[tokio::test]
async fn limits_apply_to_the_program() {
    let _one = CHILDREN.lock().await;
    let limits = ResourceLimits { open_files: Some(17), ..ResourceLimits::default() };
    let seen = run(&execs(), &ExecStart { limits, ..shell(1, "ulimit -n") }).await;
    assert_eq!(seen.stdout, b"17\n");
}
