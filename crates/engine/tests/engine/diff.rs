//! Two states compared: exactly what differs is told, whatever the states are, and nothing of it is left.

use crate::{fake::*, stage::*};
use offshoot_engine::{
    DiffOptions, DiffReport, Differences, Engine, FileChange, Limits, LookedAt, PackageManager,
};
use offshoot_provider::fake::GuestFault;
use offshoot_types::{Bytes, Command, ErrorCode, Failure, FileAccess, ForkSource, SnapshotKind, SnapshotRef};

const ALL: DiffOptions = DiffOptions { files: true, packages: true, processes: true, limit: 1000 };
const STATUS: &str = "/var/lib/dpkg/status";

fn state(text: &str) -> ForkSource {
    match text.contains('@') {
        true => ForkSource::Snapshot(text.parse().unwrap()),
        false => ForkSource::Vm(text.parse().unwrap()),
    }
}

async fn diff_of(engine: &Engine, from: &str, to: &str, options: DiffOptions) -> Result<DiffReport, Failure> {
    let command = Command::Diff { from: state(from), to: state(to) };
    engine.diff(permit(engine, command), options).await
}

async fn diff(engine: &Engine, from: &str, to: &str) -> DiffReport {
    diff_of(engine, from, to, ALL).await.unwrap()
}

/// Each as a letter and its path.
fn paths(found: &Option<Differences<FileChange>>) -> Vec<String> {
    let line = |change: &FileChange| {
        let letter = match (&change.from, &change.to) {
            (None, Some(_)) => 'A',
            (Some(_), None) => 'D',
            (Some(_), Some(_)) => 'M',
            (None, None) => panic!("{change:?}"),
        };
        format!("{letter} {}", String::from_utf8_lossy(&change.path))
    };
    found.as_ref().expect("files were asked for").changes.iter().map(line).collect()
}

fn commands(report: &DiffReport) -> Vec<(String, u64, u64)> {
    let processes = report.processes.as_ref().expect("processes were asked for");
    let told = |one: &offshoot_engine::ProcessChange| {
        (String::from_utf8(one.command.clone()).unwrap(), one.from, one.to)
    };
    processes.changes.iter().map(told).collect()
}

fn names(engine: &Engine) -> Vec<String> {
    let vms = engine.vms(permit(engine, Command::Inspect { vm: None })).unwrap();
    vms.iter().map(|vm| vm.name.to_string()).collect()
}

/// Writes a file of several lines, which the shell of the fake guest cannot.
async fn write(engine: &Engine, path: &str, text: &str) {
    let command = Command::Files { vm: named("a"), access: FileAccess::Write, path: path.into() };
    let guest = engine.guest(permit(engine, command)).await.unwrap();
    let mut file = guest.client().files("root").write(path, None, true, false).await.unwrap();
    file.send(text.as_bytes()).await.unwrap();
    file.finish().await.unwrap();
    guest.complete(Ok(())).await;
}

fn package(name: &str, version: &str) -> String {
    format!("Package: {name}\nStatus: install ok installed\nVersion: {version}\n\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_and_its_snapshot_differ_in_what_was_done_since_and_nothing_else() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "mkdir -p /srv/data; echo one > /srv/data/same; echo 12 > /srv/size; echo aa > /srv/content")
        .await;
    write(&engine, STATUS, &[package("bash", "5.1"), package("gone", "1")].concat()).await;
    let _stays = exec(&engine, "a", &["sleep", "900"]).await.unwrap();
    let ends = exec(&engine, "a", &["sleep", "901"]).await.unwrap();
    snapshot(&engine, "a", Some("s")).await.unwrap();
    assert!(!diff(&engine, "a@s", "a").await.differs(), "nothing was done since");

    sh(&engine, "echo 123 > /srv/size; echo bb > /srv/content; rm -r /srv/data; echo x > /etc/new").await;
    // As it was, by another road: the same bytes.
    sh(&engine, "mkdir -p /srv/data; echo one > /srv/data/same; mkdir -p /srv/data/sub").await;
    write(&engine, STATUS, &[package("bash", "5.2"), package("curl", "8")].concat()).await;
    write(&engine, "/usr/local/lib/python3.11/dist-packages/requests-2.0.dist-info/METADATA", "x").await;
    let _new = exec(&engine, "a", &["sleep", "902"]).await.unwrap();
    ends.input().kill().await.unwrap();
    output(ends).await;

    let there = diff_of(&engine, "a@s", "a", ALL).await.unwrap();
    let expected = [
        "A /etc/new",
        "M /srv/content",
        "A /srv/data/sub",
        "M /srv/size",
        "A /usr",
        "A /usr/local",
        "A /usr/local/lib",
        "A /usr/local/lib/python3.11",
        "A /usr/local/lib/python3.11/dist-packages",
        "A /usr/local/lib/python3.11/dist-packages/requests-2.0.dist-info",
        "A /usr/local/lib/python3.11/dist-packages/requests-2.0.dist-info/METADATA",
        "M /var/lib/dpkg/status",
    ];
    assert_eq!(paths(&there.files), expected);
    let packages = there.packages.as_ref().unwrap();
    let told: Vec<_> = packages
        .changes
        .iter()
        .map(|one| (one.manager, one.name.as_str(), one.from.as_deref(), one.to.as_deref()))
        .collect();
    let (dpkg, pip) = (PackageManager::Dpkg, PackageManager::Pip);
    let expected = [
        (dpkg, "bash", Some("5.1"), Some("5.2")),
        (dpkg, "curl", None, Some("8")),
        (dpkg, "gone", Some("1"), None),
        (pip, "requests", None, Some("2.0")),
    ];
    assert_eq!(told, expected);
    assert_eq!(commands(&there), [("sleep 901".into(), 1, 0), ("sleep 902".into(), 0, 1)]);
    assert_eq!((there.from.looked_at, there.to.looked_at), (Some(LookedAt::Memory), Some(LookedAt::Running)));

    let back = diff(&engine, "a", "a@s").await;
    assert_eq!(back.files.as_ref().unwrap().removed, there.files.as_ref().unwrap().added);
    assert_eq!(commands(&back), [("sleep 901".into(), 0, 1), ("sleep 902".into(), 1, 0)]);
    assert_eq!(names(&engine), ["a"], "the copies are gone when it answers");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_states_are_they_can_be_compared() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo 1 > /etc/one").await;
    snapshot(&engine, "a", Some("full")).await.unwrap();
    sh(&engine, "echo 2 > /etc/two").await;
    take(&engine, "a", Some("disk"), SnapshotKind::DiskOnly).await.unwrap();

    let same = diff(&engine, "a@full", "a@full").await;
    assert!(!same.differs() && same.from.looked_at.is_none(), "a state is as it is: {same:?}");
    let disk = diff(&engine, "a@full", "a@disk").await;
    assert_eq!(disk.to.looked_at, Some(LookedAt::Disk));
    let why = disk.processes.as_ref().unwrap().unknown.as_deref().unwrap();
    assert!(why.contains("without memory"), "{why}");
    let packages = disk.packages.as_ref().unwrap();
    assert!(packages.unknown.is_some() && packages.total() == 0, "{packages:?}");

    run(&engine, Command::Suspend { vm: named("a") }).await.unwrap();
    let asleep = diff(&engine, "a@full", "a").await;
    assert_eq!(
        (paths(&asleep.files), asleep.to.looked_at),
        (vec!["A /etc/two".into()], Some(LookedAt::Memory))
    );
    assert!(asleep.to.snapshot.is_some());
    assert_eq!(view(&engine, "a").await.state.name().as_str(), "suspended", "it was not woken");
    run(&engine, Command::Stop { vm: named("a"), grace: GRACE }).await.unwrap();
    let stopped = diff(&engine, "a", "a@full").await;
    assert_eq!(stopped.from.looked_at, Some(LookedAt::Disk));
    assert_eq!(names(&engine), ["a"]);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_beyond_the_limit_is_counted_and_what_is_not_asked_for_is_not_told() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    snapshot(&engine, "a", Some("s")).await.unwrap();
    for number in 0..20 {
        sh(&engine, &format!("echo x > /workspace/f{number:02}")).await;
    }
    let few = DiffOptions { packages: false, processes: false, limit: 3, ..ALL };
    let report = diff_of(&engine, "a@s", "a", few).await.unwrap();
    assert_eq!(paths(&report.files), ["A /workspace/f00", "A /workspace/f01", "A /workspace/f02"]);
    let files = report.files.as_ref().unwrap();
    assert_eq!((files.added, files.more()), (20, 17));
    assert!(report.packages.is_none() && report.processes.is_none());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_files_than_fit_one_question_are_hashed_and_told_in_order() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let mut script = String::new();
    for number in 0..600 {
        script += &format!("echo {number:03} > /workspace/f{number:03}; ");
    }
    sh(&engine, &script).await;
    snapshot(&engine, "a", Some("s")).await.unwrap();
    sh(&engine, "echo abc > /workspace/f000; echo abc > /workspace/f511; echo abc > /workspace/f599").await;
    let report = diff(&engine, "a@s", "a").await;
    assert_eq!(paths(&report.files), ["M /workspace/f000", "M /workspace/f511", "M /workspace/f599"]);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copys_name_for_itself_is_no_difference() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    write(&engine, "/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 a\n").await;
    snapshot(&engine, "a", Some("s")).await.unwrap();
    write(&engine, "/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 another\n").await;
    assert!(!diff(&engine, "a@s", "a").await.differs());
    write(&engine, "/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 a\n10.0.0.1 db\n").await;
    assert_eq!(paths(&diff(&engine, "a@s", "a").await.files), ["M /etc/hosts"]);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn states_over_different_images_have_no_files_in_common_and_can_be_asked_for_the_rest() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let mut other = spec("b");
    other.image_digest = "0b".repeat(32).parse().unwrap();
    run(&engine, Command::Create { spec: other }).await.unwrap();
    run(&engine, Command::Start { vm: named("b") }).await.unwrap();
    let refused = diff_of(&engine, "a", "b", ALL).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unsupported, "{refused:?}");
    assert!(refused.hint.unwrap().contains("--processes"));
    let rest = DiffOptions { files: false, ..ALL };
    assert!(!diff_of(&engine, "a", "b", rest).await.unwrap().differs());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_does_not_keep_others_from_looking() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    snapshot(&engine, "a", Some("s")).await.unwrap();
    let begin = Command::Begin { vm: named("a"), parent: None, deadline: SOON };
    let open = engine.begin_transaction(permit(&engine, begin)).await.unwrap();
    let within = engine.within(open.id);
    let command = Command::Exec { vm: named("a"), spec: shell("echo x > /etc/new") };
    output(within.exec(permit(&engine, command)).await.unwrap()).await;
    assert_eq!(paths(&diff(&engine, "a@s", "a").await.files), ["A /etc/new"]);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_and_a_daemon_that_dies_leave_no_copy() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    snapshot(&engine, "a", Some("s")).await.unwrap();
    let copied = || names(&engine).len() == 2;
    // It never says whether it stands still: the comparison is waiting when its caller leaves.
    fake.host.inject_guest(GuestFault::SilentFreeze);
    tokio::select! {
        report = diff(&engine, "a@s", "a") => panic!("{report:?}"),
        () = eventually("there is a copy", copied) => {}
    }
    let only_a = |engine: &Engine| names(engine).len() == 1 && fake.host.running_vms().len() == 1;
    eventually("the copy is gone", || only_a(&engine)).await;

    fake.host.inject_guest(GuestFault::SilentFreeze);
    tokio::select! {
        report = diff(&engine, "a@s", "a") => panic!("{report:?}"),
        () = eventually("there is a copy", copied) => {}
    }
    engine.crash().await;
    let engine = fake.stage.engine().await;
    eventually("the next daemon has destroyed it", || only_a(&engine)).await;
    assert_eq!(view(&engine, "a").await.state.name().as_str(), "running");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_into_is_refused_and_nothing_is_left() {
    // Room for the VM and nothing else.
    let fake = Fake::with(|stage| stage.limits = Limits { memory: Bytes(200 << 20), ..Limits::UNBOUNDED });
    let (engine, _) = fake.running().await;
    snapshot(&engine, "a", Some("s")).await.unwrap();
    let refused = diff_of(&engine, "a@s", "a", ALL).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NoResource, "{refused:?}");
    for (from, to) in [("a@ghost", "a"), ("a", "ghost")] {
        let refused = diff_of(&engine, from, to, ALL).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::NotFound, "{refused:?}");
    }
    run(&engine, Command::Pause { vm: named("a") }).await.unwrap();
    let paused = diff_of(&engine, "a", "a@s", ALL).await.unwrap_err();
    assert_eq!(paused.code, ErrorCode::WrongState, "{paused:?}");
    assert!(paused.message.contains("resume"), "{paused:?}");
    let wrong = engine.diff(
        permit(
            &engine,
            Command::InspectSnapshot { snapshot: SnapshotRef::Id(snapshots(&engine).await[0].id) },
        ),
        ALL,
    );
    assert_eq!(wrong.await.unwrap_err().code, ErrorCode::Internal);
    eventually("nothing is left", || names(&engine) == ["a"]).await;
    leave(engine).await;
}
