//! Races: the VM continues as the winner, or stays as it was, and no racer is left however it ends.

use crate::{fake::*, stage::*};
use offshoot_engine::{Engine, ExecEvent, Limits, RaceEnd, RaceEvent, RaceSession};
use offshoot_types::{
    Bytes, Command, ErrorCode, ExecArgv, ExecStatus, Failure, OperationKind, OperationOutcome, OperationState,
};

async fn race(
    engine: &Engine,
    count: u32,
    script: &str,
    score: Option<&str>,
) -> Result<RaceSession, Failure> {
    let score = score.map(|script| ExecArgv::Shell(script.into()));
    let command = Command::Race { vm: named("a"), count, spec: shell(script), score };
    engine.race(permit(engine, command)).await
}

async fn all(mut session: RaceSession) -> Vec<RaceEvent> {
    let mut events = Vec::new();
    while let Some(event) = tokio::time::timeout(SOON, session.next()).await.expect("an event in time") {
        events.push(event);
    }
    events
}

fn ended(events: &[RaceEvent]) -> &RaceEnd {
    match events.last() {
        Some(RaceEvent::Ended(end)) => end,
        other => panic!("{other:?}"),
    }
}

async fn only_a_is_left(fake: &Fake, engine: &Engine) {
    let vms = || engine.vms(permit(engine, Command::Inspect { vm: None })).unwrap().len();
    eventually("the racers are gone", || vms() == 1 && fake.host.running_vms().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vm_continues_as_the_first_success_and_undo_goes_back() {
    let fake = Fake::new();
    let (engine, id) = fake.running().await;
    sh(&engine, "echo before > /f").await;
    value(&engine, "main", "x = 41; x").await;
    let events = all(race(&engine, 3, "echo won > /f", None).await.unwrap()).await;
    let end = ended(&events);
    assert!(end.winner.is_some() && end.undo.is_some() && end.scores.is_empty(), "{end:?}");
    let started = events.iter().filter(|event| matches!(event, RaceEvent::Started { .. })).count();
    assert!(started >= 1, "{events:?}");
    assert_eq!(view(&engine, "a").await.id, id, "it is the same VM");
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("won"));
    assert_eq!(value(&engine, "main", "x += 1; x").await, "42", "with its memory");
    assert_eq!(sh(&engine, "hostname").await.0.trim(), "a", "and its own name");
    only_a_is_left(&fake, &engine).await;
    engine.rollback(permit(&engine, Command::Undo { vm: named("a") })).await.unwrap();
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("before"));
    leave(engine).await;
}

/// What the winner left behind is all the VM has: nothing of it goes with the racer.
#[tokio::test(flavor = "multi_thread")]
async fn the_winner_outlives_its_racer_the_daemon_and_a_suspend() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    value(&engine, "main", "x = 41; x").await;
    all(race(&engine, 2, "echo won > /f", None).await.unwrap()).await;
    only_a_is_left(&fake, &engine).await;
    engine.crash().await;
    let engine = fake.stage.engine().await;
    assert_eq!(value(&engine, "main", "x += 1; x").await, "42");
    run(&engine, Command::Suspend { vm: named("a") }).await.unwrap();
    leave(engine).await;
    let engine = fake.stage.engine().await;
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("won"));
    assert_eq!(value(&engine, "main", "x").await, "42");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_highest_score_wins_and_streams_are_labelled() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let events =
        all(race(&engine, 4, "shuf -i 1-99 -n 1 > /score; cat /score", Some("cat /score")).await.unwrap())
            .await;
    let end = ended(&events);
    assert_eq!(end.scores.len(), 4, "{end:?}");
    let (winner, best) =
        end.scores.iter().copied().reduce(|best, other| if other.1 > best.1 { other } else { best }).unwrap();
    assert_eq!(end.winner, Some(winner), "of equals the lowest racer: {end:?}");
    assert_eq!(file(&engine, "/score").await.unwrap().parse::<f64>().unwrap(), best);
    for (racer, score) in &end.scores {
        let said: Vec<u8> = events
            .iter()
            .filter_map(|event| match event {
                RaceEvent::Exec { racer: of, event: ExecEvent::Output { data, .. } } if of == racer => {
                    Some(&data[..])
                }
                _ => None,
            })
            .collect::<Vec<_>>()
            .concat();
        assert_eq!(String::from_utf8(said).unwrap().trim().parse::<f64>().unwrap(), *score, "racer {racer}");
    }
    only_a_is_left(&fake, &engine).await;
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_nobody_succeeds_the_vm_is_as_it_was_and_each_status_is_told() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo before > /f").await;
    let generation = view(&engine, "a").await.generation;
    let events = all(race(&engine, 2, "echo after > /f; exit 3", None).await.unwrap()).await;
    let end = ended(&events);
    assert_eq!((end.winner, end.undo, end.generation), (None, None, generation));
    let statuses = events.iter().filter_map(|event| match event {
        RaceEvent::Exec { racer, event: ExecEvent::Ended(end) } => Some((*racer, end.status)),
        _ => None,
    });
    let mut statuses: Vec<_> = statuses.collect();
    statuses.sort_by_key(|(racer, _)| *racer);
    assert_eq!(statuses, [(1, ExecStatus::Exited(3)), (2, ExecStatus::Exited(3))]);
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("before"));
    let operations = engine
        .operations(permit(&engine, Command::Inspect { vm: Some(named("a")) }), Default::default())
        .await
        .unwrap();
    let race = operations.iter().find(|operation| operation.kind == OperationKind::Race).unwrap();
    let OperationState::Ended { outcome: OperationOutcome::Failed { failure } } = &race.state else {
        panic!("{race:?}")
    };
    assert!(failure.message.contains("racer 1 exited with 3, racer 2 exited with 3"), "{failure:?}");
    only_a_is_left(&fake, &engine).await;
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_score_that_is_no_number_loses() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let events = all(race(&engine, 2, "true", Some("echo many")).await.unwrap()).await;
    assert_eq!(ended(&events).winner, None);
    let told = events.iter().filter(|event| {
        matches!(event, RaceEvent::Exec { event: ExecEvent::Failed(failure), .. } if failure.message.contains("no number"))
    });
    assert_eq!(told.count(), 2, "{events:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_race_owns_its_vm_and_a_caller_that_leaves_ends_it() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo before > /f").await;
    let mut session = race(&engine, 2, "sleep 600", None).await.unwrap();
    while !matches!(session.next().await, Some(RaceEvent::Exec { event: ExecEvent::Started { .. }, .. })) {}
    let refused = sh_in(&engine, "a", "true").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InTransaction);
    assert!(refused.message.contains("race"), "{refused:?}");
    drop(session);
    only_a_is_left(&fake, &engine).await;
    let free = async { while sh_in(&engine, "a", "true").await.is_err() {} };
    tokio::time::timeout(SOON, free).await.expect("the VM is given back");
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("before"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_death_leaves_the_vm_and_no_racer() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo before > /f").await;
    let mut session = race(&engine, 2, "sleep 600", None).await.unwrap();
    while !matches!(session.next().await, Some(RaceEvent::Exec { event: ExecEvent::Started { .. }, .. })) {}
    engine.crash().await;
    drop(session);
    let engine = fake.stage.engine().await;
    only_a_is_left(&fake, &engine).await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("before"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_run_at_once_as_the_ledger_has_room_for() {
    // For the VM and one racer at a time.
    let fake = Fake::with(|stage| stage.limits = Limits { memory: Bytes(300 << 20), ..Limits::UNBOUNDED });
    let (engine, _) = fake.running().await;
    let events = all(race(&engine, 3, "exit 1", None).await.unwrap()).await;
    let (mut running, mut most) = (0_i32, 0);
    for event in &events {
        match event {
            RaceEvent::Started { .. } => running += 1,
            RaceEvent::Exec { event: ExecEvent::Ended(_), .. } => running -= 1,
            _ => {}
        }
        most = most.max(running);
    }
    assert_eq!(most, 1, "{events:?}");
    let all_ran = events.iter().filter(|event| matches!(event, RaceEvent::Started { .. })).count();
    assert_eq!(all_ran, 3, "those that had to wait ran too");
    let wrong = race(&engine, 0, "true", None).await.unwrap_err();
    assert_eq!(wrong.code, ErrorCode::InvalidArgument);
    leave(engine).await;
}
