//! Giving the pool's memory up for somebody who asks for it.

use super::{Member, Pool};
use crate::{core::Core, sync::lock};
use offshoot_types::{Actor, ErrorCode, Failure, ImageDigest, Owner};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Nothing is made for so long after somebody found no room.
const HOLD: Duration = Duration::from_secs(30);
/// For what is being made to be taken back.
const TAKE_BACK: Duration = Duration::from_secs(15);

impl Core {
    /// Whether a refusal for want of room may be asked again, because the pool has made room: whoever asks for a VM goes
    /// before instances that nobody has asked for.
    pub async fn made_room(self: &Arc<Self>, refused: &Failure, owner: &Owner) -> bool {
        if refused.code != ErrorCode::NoResource || *owner == Owner::daemon() {
            return false;
        }
        let (members, working) = self.pool.give_up();
        let some = !members.is_empty() || working.is_some();
        self.end_all(members).await;
        if let Some(ended) = working {
            // One that takes longer is gone a little later: the caller is told that there is no room now.
            let _ = tokio::time::timeout(TAKE_BACK, ended.cancelled()).await;
        }
        some
    }

    /// Whether the key of this actor has all the VMs it may have: no room of the pool's would change that.
    pub async fn is_used_up(&self, actor: &Actor) -> bool {
        let Actor::ApiKey { .. } = actor else { return false };
        let actor = actor.clone();
        self.store.read(move |view| view.admit_key(&actor)).await.is_err()
    }

    /// Ends what is kept of an image, and forgets its templates.
    pub async fn release_image(self: &Arc<Self>, image: &ImageDigest) {
        let shelves = {
            let mut state = lock(&self.pool.state);
            if let Some(working) = &state.working {
                let of_it = working.key.as_ref().is_some_and(|key| key.image == *image);
                if of_it {
                    working.cancel.cancel();
                }
            }
            state.shelves.extract_if(.., |shelf| shelf.key.image == *image).collect::<Vec<_>>()
        };
        for mut shelf in shelves {
            self.end_all(shelf.surplus(0)).await;
            let template = shelf.forget_template();
            drop(shelf);
            if let Some(id) = template {
                self.remove_template(id).await;
            }
        }
    }
}

impl Pool {
    /// Every instance, and the end of what is under way, in one instant: what is being made is in one or the other.
    fn give_up(&self) -> (Vec<Member>, Option<CancellationToken>) {
        let mut state = lock(&self.state);
        state.hold = Some(Instant::now() + HOLD);
        let working = state.working.as_ref().map(|working| {
            working.cancel.cancel();
            working.ended.clone()
        });
        (state.shelves.iter_mut().flat_map(|shelf| shelf.surplus(0)).collect(), working)
    }
}
