//! What the pool does by itself, one thing at a time: never more than one boot or restore beside those somebody asked
//! for, and none begun while one of those is under way.

use super::{
    Key, Member, Next, Pool, What, Working,
    shelf::{Shelf, Template},
};
use crate::{core::Core, sync::lock};
use offshoot_store::StoreError;
use offshoot_types::{Actor, Failure, OperationKind, SnapshotId, VmId, VmSpec};
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Runs until the engine ends, and ends everything of the pool then.
pub(crate) async fn run(core: Arc<Core>) {
    let pool = &core.pool;
    let Some(mut discarded) = lock(&pool.discarded).take() else { return };
    let mut census = core.census.subscribe();
    while !pool.closing.is_cancelled() {
        match pool.next(core.has_changes()) {
            Next::Wait(until) => tokio::select! {
                biased;
                () = pool.closing.cancelled() => {}
                Some(id) = discarded.recv() => {
                    let _work = pool.begin(None, What::Ending);
                    core.end_member(id).await;
                }
                () = pool.wake.notified() => {}
                _ = census.changed() => {}
                () = at(until) => {}
            },
            Next::End(members) => {
                let _work = pool.begin(None, What::Ending);
                core.end_all(members).await;
            }
            Next::Forget(id) => drop(core.remove_template(id).await),
            Next::Build(key, spec) => core.keep_template(key, &spec).await,
            Next::Make(key, template) => core.keep_member(key, template).await,
        }
    }
    let left = pool.all();
    core.end_all(left).await;
    while let Ok(id) = discarded.try_recv() {
        core.end_member(id).await;
    }
    pool.over.send_replace(true);
}

async fn at(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl Pool {
    fn next(&self, busy: bool) -> Next {
        lock(&self.state).next(&self.options, busy, Instant::now())
    }

    fn all(&self) -> Vec<Member> {
        lock(&self.state).shelves.iter_mut().flat_map(|shelf| shelf.surplus(0)).collect()
    }

    /// What is under way from here until the guard is dropped; cancelled with the engine.
    fn begin(&self, key: Option<&Key>, what: What) -> Underway<'_> {
        let (cancel, ended) = (self.closing.child_token(), CancellationToken::new());
        let working = Working { key: key.cloned(), what, cancel: cancel.clone(), ended: ended.clone() };
        lock(&self.state).working = Some(working);
        Underway { pool: self, cancel, ended }
    }

    /// Ends the pool and everything of it. Waits for the task.
    pub async fn close(&self) {
        self.closing.cancel();
        let mut over = self.over.subscribe();
        // The sender is ours.
        let _ = over.wait_for(|over| *over).await;
    }
}

struct Underway<'a> {
    pool: &'a Pool,
    cancel: CancellationToken,
    ended: CancellationToken,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        lock(&self.pool.state).working = None;
        self.ended.cancel();
    }
}

impl Core {
    /// Whether a change of somebody's is under way that an instance in the making would slow down.
    fn has_changes(&self) -> bool {
        self.operations.any(|operation| {
            operation.actor != Actor::Daemon
                && !matches!(
                    operation.kind,
                    OperationKind::Exec
                        | OperationKind::WriteFiles
                        | OperationKind::Context
                        | OperationKind::Transaction
                        | OperationKind::Reconcile
                )
        })
    }

    pub(super) async fn end_all(self: &Arc<Self>, members: Vec<Member>) {
        let ids: Vec<VmId> = members.iter().map(Member::id).collect();
        drop(members);
        futures::future::join_all(ids.into_iter().map(|id| self.end_member(id))).await;
    }

    /// Takes over the templates of earlier daemons. Of several of one key the older ones go, and those that
    /// this daemon would not make.
    pub async fn load_templates(&self) -> Result<(), StoreError> {
        if !self.pool.is_on() {
            return Ok(());
        }
        let (mut current, mut others) = (Vec::new(), Vec::new());
        for (key, spec, snapshot) in self.templates().await? {
            match self.is_current(&spec).await {
                true => current.push((key, spec, snapshot)),
                false => others.push(snapshot.id),
            }
        }
        let mut state = lock(&self.pool.state);
        state.superfluous.append(&mut others);
        for (key, spec, snapshot) in current {
            if state.find(&key).is_none() {
                state.shelves.push(Shelf::new(key.clone(), spec));
            }
            match state.find(&key).map(|shelf| &mut shelf.template) {
                Some(template @ Template::Absent) => {
                    *template = Template::Ready { id: snapshot.id, source: None };
                }
                _ => state.superfluous.push(snapshot.id),
            }
        }
        Ok(())
    }

    async fn keep_template(self: &Arc<Self>, key: Key, spec: &VmSpec) {
        let work = self.pool.begin(Some(&key), What::Building);
        let built = self.build_template(&key, spec, &work.cancel).await;
        if let Some(shelf) = lock(&self.pool.state).find(&key) {
            match built {
                Ok(id) => {
                    shelf.template = Template::Ready { id, source: None };
                    shelf.trouble = Default::default();
                }
                Err(failure) if work.cancel.is_cancelled() => drop(failure),
                Err(failure) => self.trouble(shelf, "no template could be made of its image", &failure),
            }
        }
    }

    async fn keep_member(self: &Arc<Self>, key: Key, template: SnapshotId) {
        let work = self.pool.begin(Some(&key), What::Making);
        let made = async {
            let kept = lock(&self.pool.state).find(&key).and_then(|shelf| shelf.usable_template());
            let source = match kept {
                Some((id, Some(source))) if id == template => source,
                _ => Arc::new(self.source(template, 2).await?),
            };
            self.pool.keep_source(&key, &source);
            self.make_member(source, &work.cancel).await
        };
        let made = made.await;
        let unwanted = {
            let mut state = lock(&self.pool.state);
            // Under the lock: whoever gives the pool up finds it on the shelf, or has it ended here.
            match (made, state.find(&key)) {
                (Ok(member), Some(shelf)) if !work.cancel.is_cancelled() => {
                    shelf.put(member);
                    None
                }
                (Ok(member), _) => Some(member),
                (Err(failure), Some(shelf)) if !work.cancel.is_cancelled() => {
                    self.trouble(shelf, "no instance could be made of its template", &failure);
                    None
                }
                (Err(_given_up), _) => None,
            }
        };
        self.end_all(unwanted.into_iter().collect()).await;
    }

    fn trouble(&self, shelf: &mut Shelf, what: &str, failure: &Failure) {
        let why = format!("{what}: {}", failure.message);
        crate::trace::TraceEvent::PoolTrouble { error: &why }.emit(&Default::default());
        shelf.trouble.add(&why, self.options.pool.retry, Instant::now());
    }
}
