//! What was acknowledged survives SIGKILL at any moment. A child writes and prints each id once the store has
//! answered; it is killed in the middle; whatever it printed must be there.

use crate::{
    AuditVerdict, Limits, Options, Store,
    fixture::{new_vm, operation},
};
use offshoot_types::{OperationId, OperationKind, OperationOutcome};
use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

const PATH: &str = "OFFSHOOT_STORE_TEST_PATH";
const MARK: &str = "acknowledged ";

#[test]
#[ignore = "the child of the test below, never run by itself"]
fn child_that_writes_until_it_is_killed() {
    let path = env::var_os(PATH).expect("run by the test below");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(Options::new(path, Limits::UNBOUNDED)).unwrap();
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..8 {
            writers.spawn(write_and_print(store.clone()));
        }
        writers.join_all().await;
    });
}

async fn write_and_print(store: Store) {
    // Far more than any round waits for, and yet an end if nobody kills us.
    for _ in 0..10_000 {
        let vm = new_vm(&OperationId::new().simple());
        let new = operation(OperationKind::Create, Some(vm.id));
        let id = new.id;
        store.create_vm(new, vm).await.unwrap();
        // One write call per line: the pipe never holds half of one unless we are killed within it.
        let line = format!("{MARK}{id} begun\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
        store.end_operation(id, OperationOutcome::Done).await.unwrap();
        let line = format!("{MARK}{id} ended\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}

#[tokio::test]
async fn whatever_was_acknowledged_before_a_kill_is_there_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("offshoot.db");
    let mut acknowledged = Vec::new();
    for round in 0..6_usize {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "durability_test::child_that_writes_until_it_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(PATH, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Killed after another number of answers each time, with eight transactions on their way.
        let enough = 1 + round * 17;
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut seen = 0;
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).unwrap() == 0 {
                break;
            }
            // libtest may have written the test's name in front of our first line; half a line is not an answer.
            if let Some((_, answer)) = line.split_once(MARK)
                && let Some(answer) = answer.strip_suffix('\n')
            {
                let (id, what) = answer.split_once(' ').unwrap();
                acknowledged.push((id.parse::<OperationId>().unwrap(), what == "ended"));
                seen += 1;
                if seen == enough {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(seen >= enough, "round {round}: the child ended by itself after {seen}");

        let store = Store::open(Options::new(&path, Limits::UNBOUNDED)).unwrap();
        for (id, ended) in &acknowledged {
            let found =
                store.operation(*id).await.unwrap().unwrap_or_else(|| panic!("round {round}: {id} is lost"));
            if *ended {
                let done = offshoot_types::OperationState::Ended { outcome: OperationOutcome::Done };
                assert_eq!(found.state, done, "round {round}: the end of {id} is lost");
            }
            let vm = found.vm.expect("a create names its VM");
            assert!(store.vm(vm).await.unwrap().is_some(), "round {round}: an operation without its VM");
        }
        let verdict = store.audit_verify(None).await.unwrap();
        assert!(matches!(verdict, AuditVerdict::Intact(_)), "round {round}: {verdict:?}");
        store.close().await;
    }
}
