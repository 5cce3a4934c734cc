use super::*;
use proptest::prelude::*;

const VM: &str = "a";

fn vm() -> VmName {
    VM.parse().unwrap()
}

#[test]
fn a_wrong_state_names_the_vm_the_state_and_the_remedy() {
    let text = |request, state| match judge(state, request) {
        Admission::Denied(reason) => reason.failure(&vm()).message,
        other => panic!("{request:?} in {state}: {other:?}"),
    };
    assert_eq!(
        text(RequestKind::UseGuest, VmStateName::Stopped),
        "VM `a` is stopped; start it with `offshoot start a`"
    );
    assert_eq!(
        text(RequestKind::UseGuest, VmStateName::Paused),
        "VM `a` is paused; resume it with `offshoot resume a`"
    );
    assert_eq!(text(RequestKind::Pause, VmStateName::Creating), "VM `a` is still being created");
}

#[test]
fn every_denial_tells_what_to_do_next_except_for_a_destroyed_vm() {
    for state in VmStateName::ALL {
        for request in RequestKind::ALL {
            if let Admission::Denied(reason) = judge(state, request) {
                let failure = reason.failure(&vm());
                let helpful = failure.hint.is_some() || failure.message.contains("offshoot ");
                assert!(helpful || state == VmStateName::Destroyed, "{request:?} in {state}: {failure:?}");
            }
        }
    }
}

#[test]
fn a_permitted_request_starts_with_a_legal_move() {
    use VmStateName::*;
    for state in VmStateName::ALL {
        for request in RequestKind::ALL {
            if judge(state, request) != Admission::Run {
                continue;
            }
            let first_moves: &[VmStateName] = match request {
                RequestKind::Start => &[Starting],
                RequestKind::Stop => &[Stopping, Stopped],
                RequestKind::Restart => &[Stopping, Starting, Stopped],
                RequestKind::Pause => &[Paused],
                RequestKind::Resume => &[Running],
                RequestKind::Destroy => &[Destroyed],
                RequestKind::Suspend => &[Suspending],
                // The process stays, or another takes its place; without one, what is kept on the disk decides.
                RequestKind::Snapshot
                | RequestKind::Rollback
                | RequestKind::Refresh
                | RequestKind::UseGuest => {
                    continue;
                }
            };
            let legal = first_moves.iter().any(|to| state.may_become(*to));
            assert!(legal, "{request:?} is admitted in {state}, from where none of {first_moves:?} is legal");
        }
    }
}

#[test]
fn no_state_without_an_exit_but_in_the_hands_of_another_node() {
    for state in VmStateName::ALL {
        let denied = matches!(judge(state, RequestKind::Destroy), Admission::Denied(_));
        assert_eq!(denied, state == VmStateName::Migrating, "{state}");
    }
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Offer(RequestKind),
    Next,
    DestroyFailed,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => proptest::sample::select(RequestKind::ALL.to_vec()).prop_map(Act::Offer),
        3 => Just(Act::Next),
        1 => Just(Act::DestroyFailed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A model that keeps everything in one list predicts each answer; no request is ever lost or doubled.
    #[test]
    fn the_queue_answers_as_its_model_predicts(acts in proptest::collection::vec(act(), 0..300)) {
        let mut queue = RequestQueue::default();
        let (mut model, mut destroying): (Vec<usize>, bool) = (Vec::new(), false);
        for (id, act) in acts.into_iter().enumerate() {
            match act {
                Act::Offer(kind) => {
                    let expected = if kind == RequestKind::Destroy && !destroying {
                        destroying = true;
                        Offer::Preempts { request: id, others: std::mem::take(&mut model) }
                    } else if model.len() == QUEUE_DEPTH {
                        Offer::Refused { request: id, reason: DeniedReason::QueueFull }
                    } else if destroying && kind != RequestKind::Destroy {
                        Offer::Refused { request: id, reason: DeniedReason::BeingDestroyed }
                    } else {
                        model.push(id);
                        Offer::Queued
                    };
                    prop_assert_eq!(queue.offer(kind, id), expected);
                }
                Act::Next => {
                    let expected = if model.is_empty() { None } else { Some(model.remove(0)) };
                    prop_assert_eq!(queue.next(), expected);
                }
                Act::DestroyFailed => {
                    destroying = false;
                    queue.destroy_failed();
                }
            }
            prop_assert_eq!(queue.is_empty(), model.is_empty());
        }
        prop_assert_eq!(queue.drain(), model);
    }
}
