//! Many callers at once, and every order of faults: the answers are those of some order, and there is always a
//! way out.

use crate::{host::Faults, sagas::state, stage::*};
use offshoot_engine::{Engine, OnShutdown};
use offshoot_provider::Exit;
use offshoot_types::{
    Command, ErrorCode, EventId, EventKind, Generation, OperationKind, VmRef, VmState, VmStateName,
};
use proptest::prelude::*;
use std::{collections::HashMap, time::Duration};

fn nth_command(n: usize) -> Option<Command> {
    let vm = named("a");
    Some(match n % 7 {
        0 => Command::Start { vm },
        1 => Command::Stop { vm, grace: GRACE },
        2 => Command::Pause { vm },
        3 => Command::Resume { vm },
        4 => Command::Restart { vm, grace: GRACE },
        5 => return None,
        _ => Command::Start { vm },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_same_id_operations() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create(&engine, "a").await;
    let calls: Vec<_> = (0..50)
        .map(|n| {
            let engine = engine.clone();
            tokio::spawn(async move {
                match nth_command(n) {
                    Some(command) => run(&engine, command).await.map(|operation| Some(operation.id)),
                    None => match exec(&engine, "a", &["true"]).await {
                        Ok(session) => {
                            output(session).await;
                            Ok(None)
                        }
                        Err(failure) => Err(failure),
                    },
                }
            })
        })
        .collect();
    let mut refused = 0;
    for call in calls {
        if let Err(failure) = call.await.unwrap() {
            refused += 1;
            // A refusal names the state that refused it.
            assert_eq!(failure.code, ErrorCode::WrongState, "{failure:?}");
            assert!(failure.message.contains("VM `a` is "), "{failure:?}");
        }
    }
    assert!(refused < 50, "some succeeded");
    assert_eq!(stage.host.most_of_one_vm(), 1, "one VM, whatever was asked");

    // Linearisable: the events replay to the present state, each move legal, the generations without a gap.
    let last = view(&engine, "a").await;
    let from = Some(EventId(0));
    let mut events =
        engine.events(permit(&engine, Command::Inspect { vm: Some(VmRef::Id(id)) }), from).await.unwrap();
    let (mut now, mut generation) = (None::<VmState>, Generation(0));
    let mut open: HashMap<_, OperationKind> = HashMap::new();
    while generation < last.generation || !open.is_empty() {
        let event = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap().unwrap();
        match event.kind {
            EventKind::StateChanged { from, to, generation: next, .. } => {
                assert_eq!(from, now, "no update was lost");
                assert_eq!(next, generation.next());
                if let Some(from) = &from {
                    from.check_move(&to).unwrap();
                }
                (now, generation) = (Some(to), next);
            }
            EventKind::OperationStarted { kind } => drop(open.insert(event.operation, kind)),
            EventKind::OperationEnded { .. } => drop(open.remove(&event.operation)),
            _ => {}
        }
    }
    assert_eq!(now, Some(last.state));
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_vms_at_once_interfere_with_nobody() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let made = (0..50).map(|n| {
        let engine = engine.clone();
        async move {
            let name = format!("vm-{n}");
            create_running(&engine, &name).await;
            let (text, _) = output(exec(&engine, &name, &["echo", &name]).await.unwrap()).await;
            assert_eq!(text, name.as_bytes());
            run(&engine, Command::Destroy { vm: named(&name) }).await.unwrap();
        }
    });
    futures::future::join_all(made).await;
    leave(engine).await;
    stage.assert_nothing_left().await;
}

/// What may happen to a VM, asked for or not.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Start,
    Stop,
    Restart,
    Pause,
    Resume,
    Exec,
    KillVmm,
    PowerOff,
    BreakBoot,
    MuteGuest,
    BreakReclaim,
    Mend,
    Crash,
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    proptest::sample::select(vec![
        Start,
        Start,
        Start,
        Stop,
        Restart,
        Pause,
        Resume,
        Exec,
        KillVmm,
        PowerOff,
        BreakBoot,
        MuteGuest,
        BreakReclaim,
        Mend,
        Crash,
    ])
}

async fn happen(stage: &Stage, engine: Engine, happening: Happening) -> Engine {
    let vm = named("a");
    let asked = match happening {
        Happening::Start => Some(Command::Start { vm }),
        Happening::Stop => Some(Command::Stop { vm, grace: Duration::from_millis(50) }),
        Happening::Restart => Some(Command::Restart { vm, grace: Duration::from_millis(50) }),
        Happening::Pause => Some(Command::Pause { vm }),
        Happening::Resume => Some(Command::Resume { vm }),
        _ => None,
    };
    match (happening, asked) {
        // Refusals and failures are answers too; what counts is the state they leave.
        (_, Some(command)) => drop(run(&engine, command).await),
        (Happening::Exec, None) => {
            if let Ok(session) = exec(&engine, "a", &["true"]).await {
                output(session).await;
            }
        }
        (Happening::KillVmm, None) => stage.host.processes().iter().for_each(|p| p.end(Exit::Signal(9))),
        (Happening::PowerOff, None) => stage.host.processes().iter().for_each(|p| p.guest.power_off()),
        (Happening::BreakBoot, None) => {
            stage.host.set_faults(Faults { boot_fails: true, ..Faults::default() })
        }
        (Happening::MuteGuest, None) => {
            stage.host.set_faults(Faults { guest_mute: true, ..Faults::default() })
        }
        (Happening::BreakReclaim, None) => {
            stage.host.set_faults(Faults { reclaim_fails: true, ..Faults::default() });
        }
        (Happening::Mend, None) => stage.host.set_faults(Faults::default()),
        (Happening::Crash, None) => {
            engine.crash().await;
            return stage.engine().await;
        }
        (_, None) => unreachable!("{happening:?} is asked for"),
    }
    engine
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 50, ..ProptestConfig::default() })]

    /// From every reachable state, with every fault, destroy succeeds within its deadline once the fault is gone.
    #[test]
    fn no_state_without_exit(happenings in proptest::collection::vec(happening(), 0..12)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut stage = Stage::new();
            stage.deadlines.boot = Duration::from_millis(100);
            let mut engine = stage.engine().await;
            create(&engine, "a").await;
            for happening in happenings {
                engine = happen(&stage, engine, happening).await;
                assert!(stage.host.most_of_one_vm() <= 1, "two processes on one disk");
            }
            stage.host.set_faults(Faults::default());
            engine.settled().await;
            if state(&engine).is_some() {
                let destroyed = run(&engine, Command::Destroy { vm: named("a") }).await;
                assert!(destroyed.is_ok(), "{:?}: {destroyed:?}", state(&engine));
            }
            assert!(!matches!(state(&engine).map(|s| s.name()), Some(VmStateName::Destroyed)));
            engine.shutdown(OnShutdown::LeaveVms).await;
            drop(engine);
            stage.assert_nothing_left().await;
        });
    }
}

/// A destroy cancels a start wherever it is, also while a row is being committed: then nobody can tell whether
/// it was. The sweep strikes at some hundred moments of the start's first milliseconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_start_cut_off_at_any_moment_can_be_destroyed_at_once() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    for moment in 0..150_u64 {
        let name = format!("vm{moment}");
        create(&engine, &name).await;
        let start = tokio::spawn({
            let (engine, vm) = (engine.clone(), named(&name));
            async move { run(&engine, Command::Start { vm }).await }
        });
        let strike = std::time::Instant::now() + Duration::from_micros(moment * 40);
        while std::time::Instant::now() < strike {
            tokio::task::yield_now().await;
        }
        let destroyed = run(&engine, Command::Destroy { vm: named(&name) }).await;
        assert!(destroyed.is_ok(), "after {} us: {destroyed:?}", moment * 40);
        let _started_or_cancelled = start.await.unwrap();
    }
    leave(engine).await;
    stage.assert_nothing_left().await;
}
