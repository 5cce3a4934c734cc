//! Requests with an idempotency key: what of them is on disk when the disk is full, or the engine dies.

use crate::stage::*;
use offshoot_engine::{Claim, Ending, Engine, NewRequest, RequestClaim, RequestOutcome, Standing};
use offshoot_store::fault;
use offshoot_types::{ErrorCode, Failure, RequestId};

async fn claim(engine: &Engine, key: &str) -> Result<RequestClaim, Failure> {
    let fingerprint = [7; 32];
    engine
        .claim_request(NewRequest { id: RequestId::new(), caller: actor(), key: key.into(), fingerprint })
        .await
}

async fn new(engine: &Engine, key: &str) -> Claim {
    match claim(engine, key).await.unwrap() {
        RequestClaim::New(claim) => claim,
        RequestClaim::Earlier(earlier) => panic!("{earlier:?}"),
    }
}

async fn standing(engine: &Engine, key: &str) -> Standing {
    match claim(engine, key).await.unwrap() {
        RequestClaim::New(claim) => panic!("{claim:?}"),
        RequestClaim::Earlier(earlier) => earlier.standing,
    }
}

fn answer() -> Ending {
    Ending::Answered { status: 200, media_type: None, body: b"{}".to_vec() }
}

/// Leaves the record no room for another page.
async fn fill(engine: &Engine) {
    let store = engine.store();
    let pages = fault::page_count(store).await.unwrap();
    fault::limit_pages(store, Some(pages)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_recorded_is_not_begun() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    fill(&engine).await;
    let (mut kept, mut number) = (Vec::new(), 0);
    let full = loop {
        match claim(&engine, &format!("{number}")).await {
            Ok(claim) => kept.push(claim),
            Err(failure) => break failure,
        }
        number += 1;
    };
    assert_eq!(full.code, ErrorCode::NoResource, "{full:?}");
    fault::limit_pages(engine.store(), None).await.unwrap();
    drop(new(&engine, &format!("{number}")).await);
    drop(kept);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_answer_cannot_be_written_is_not_carried_out_again() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let claim = new(&engine, "k").await;
    assert!(matches!(standing(&engine, "k").await, Standing::UnderWay));
    fill(&engine).await;
    let body = vec![b' '; offshoot_engine::MAX_ANSWER];
    claim.settle(None, Ending::Answered { status: 200, media_type: None, body }).await;
    fault::limit_pages(engine.store(), None).await.unwrap();
    assert!(matches!(standing(&engine, "k").await, Standing::Unknown(begun) if begun.is_empty()));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_engine_knows_what_was_answered_and_what_was_left() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    new(&engine, "answered").await.settle(Some([1; 32]), answer()).await;
    new(&engine, "unkept").await.settle(None, Ending::NotKept).await;
    let body = vec![0; offshoot_engine::MAX_ANSWER + 1];
    new(&engine, "large").await.settle(None, Ending::Answered { status: 200, media_type: None, body }).await;
    let failure = |code| Ending::Failed(Failure::new(code, "no"));
    new(&engine, "refused").await.settle(None, failure(ErrorCode::WrongState)).await;
    new(&engine, "failed").await.settle(None, failure(ErrorCode::Backend)).await;
    new(&engine, "broken").await.settle(None, Ending::Incomplete).await;
    let left = new(&engine, "left").await;
    engine.crash().await;
    drop(left);

    let engine = stage.engine().await;
    let RequestClaim::Earlier(earlier) = claim(&engine, "answered").await.unwrap() else {
        panic!("it is known")
    };
    assert_eq!((earlier.fingerprint, earlier.content), ([7; 32], Some([1; 32])));
    let Standing::Ended(RequestOutcome::Answered { status: 200, body, .. }) = earlier.standing else {
        panic!("{earlier:?}")
    };
    assert_eq!(body, b"{}");
    assert!(matches!(standing(&engine, "unkept").await, Standing::NotKept(_)));
    assert!(matches!(standing(&engine, "large").await, Standing::NotKept(_)));
    let Standing::Ended(RequestOutcome::Failed(failure)) = standing(&engine, "failed").await else {
        panic!("it failed")
    };
    assert_eq!(failure.code, ErrorCode::Backend);
    assert!(matches!(standing(&engine, "left").await, Standing::Unknown(_)));
    for free in ["refused", "broken"] {
        drop(new(&engine, free).await);
    }
    leave(engine).await;
}
