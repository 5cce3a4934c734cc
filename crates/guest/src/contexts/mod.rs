//! Live contexts: an interpreter each, kept with its variables from one piece of code to the next.
//!
//! ```text
//! run_code --> Context (made on first use) --> its turn, first come first served --> Run --> events to the host
//!                 `-- Interpreter: started on first use, and anew after it has ended
//! reseed   --> a signal to each while it stands still --> it runs ahead of the rest --> its answer, or why none
//! ```
//! Code waits while the VM is frozen: nothing is started then, and an interrupt waits as well, so that the first
//! thing an interpreter does after a restore is to reseed itself.

mod answer;
mod interpreter;
mod run;
mod spares;

pub use interpreter::{Starter, place_addon};

use crate::{
    clock,
    fault::{fault, invalid},
    freeze::Freezer,
    users::Users,
};
use interpreter::{Interpreter, Live};
use offshoot_guest_proto::{
    message::{
        CodeEvent, ContextInfo, GuestError, GuestErrorKind, InterpreterThawed, Language, MAX_CONTEXTS,
        MAX_ENVIRONMENT, Reseeded, RunCode, is_context_name,
    },
    server::CodePeer,
};
use run::Run;
use spares::Spares;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedMutexGuard, mpsc},
    time::{Instant, timeout, timeout_at},
};

/// Pieces of code that wait behind the one that runs.
const MAX_WAITING: u32 = 16;
/// For a killed interpreter, and all it has started, to be gone.
const DEATH: Duration = Duration::from_secs(5);
/// For an interpreter that waits for code to reseed itself: it only needs the CPU.
const IDLE_RESEED: Duration = Duration::from_secs(2);
/// For one that is in the middle of code: it may never look up.
const BUSY_RESEED: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Contexts {
    starter: Starter,
    users: Arc<Users>,
    freezer: Arc<Freezer>,
    registry: Mutex<BTreeMap<String, Arc<Context>>>,
    spares: Spares,
    /// Makes names of trees unique: one whose processes linger keeps its name.
    trees: AtomicU64,
}

#[derive(Debug)]
struct Context {
    name: String,
    language: Language,
    user: String,
    /// `None`: the user's home.
    cwd: Option<String>,
    home: String,
    env: BTreeMap<String, String>,
    created_ms: u64,
    /// The right to run code; waiters are served in order.
    turn: Arc<tokio::sync::Mutex<Option<Interpreter>>>,
    waiting: AtomicU32,
    /// What can be done with the interpreter without having the turn.
    live: Mutex<Option<Arc<Live>>>,
    /// Its interpreter was kept ready, and no code was told that the context was made for it.
    untold: AtomicBool,
}

impl Context {
    fn live(&self) -> MutexGuard<'_, Option<Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The interpreter, unless it has ended.
    fn alive(&self) -> Option<Arc<Live>> {
        self.live().clone().filter(|live| live.exit().is_none())
    }

    fn is_busy(&self) -> bool {
        self.turn.try_lock().is_err()
    }
}

impl Contexts {
    pub fn new(starter: Starter, users: Arc<Users>, freezer: Arc<Freezer>) -> Self {
        Self {
            starter,
            users,
            freezer,
            registry: Mutex::default(),
            spares: Spares::default(),
            trees: AtomicU64::new(0),
        }
    }

    /// Runs code and tells the host, until the code has ended. The host's leaving interrupts it.
    pub async fn run(&self, run: RunCode, peer: CodePeer) {
        let (mut inputs, mut outputs) = peer.split();
        let waited = tokio::select! {
            waited = self.turn(&run) => waited,
            // An interrupt, or the host has left: it never runs.
            input = inputs.next() => match input {
                Ok(_interrupt) => Err(fault(GuestErrorKind::Other, "run code: interrupted before its turn came")),
                Err(_left) => return,
            },
        };
        let begun = waited.and_then(|(context, mut turn)| {
            let created = self.ensure(&context, &mut turn)?;
            Ok((turn, created))
        });
        let (turn, created) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                // A host that left has no use for the error.
                let _left = outputs.send(CodeEvent::Failed(error)).await;
                return;
            }
        };
        // The run is a task of its own, so that it can bring the interpreter back to rest when the host leaves.
        let (events, mut receiver) = mpsc::channel(2);
        let (interrupt, interrupts) = mpsc::channel(1);
        let timeout = run.timeout_ms.map(Duration::from_millis);
        let run = Run { turn, created, code: run.code, env: run.env, timeout };
        crate::task::forever("code", run.drive(events, interrupts, Arc::clone(&self.freezer)));
        let relay = async {
            while let Some(event) = receiver.recv().await {
                if outputs.send(event).await.is_err() {
                    return;
                }
            }
        };
        let listen = async {
            while inputs.next().await.is_ok() {
                // Full: one is on its way already.
                let _under_way = interrupt.try_send(());
            }
        };
        // Either way the receiver goes, which interrupts code that still runs.
        tokio::select! {
            biased;
            () = relay => {}
            () = listen => {}
        }
    }

    pub fn list(&self) -> Vec<ContextInfo> {
        let info = |context: &Arc<Context>| ContextInfo {
            context: context.name.clone(),
            language: context.language,
            pid: context.alive().map(|live| live.pid.cast_unsigned()),
            busy: context.is_busy(),
            user: context.user.clone(),
            cwd: context.cwd.as_ref().unwrap_or(&context.home).clone(),
            created_ms: context.created_ms,
        };
        self.lock().values().map(info).collect()
    }

    /// Ends the interpreter with all it has started. Code that waits its turn never runs.
    pub async fn remove(&self, name: &str) -> Result<(), GuestError> {
        let context = self.find(name)?;
        self.lock().remove(name);
        end(&context).await.map(drop)
    }

    /// Ends the interpreter and starts another.
    pub async fn restart(&self, name: &str) -> Result<(), GuestError> {
        let context = self.find(name)?;
        let mut turn = end(&context).await?;
        self.freezer.running().await;
        self.ensure(&context, &mut turn).map(drop)
    }

    /// Signals each interpreter. To be called while they stand still.
    pub fn ask_to_reseed(&self) -> Vec<Asked> {
        let alive = |context: &Arc<Context>| {
            let live = context.alive()?;
            let patience = if context.is_busy() { BUSY_RESEED } else { IDLE_RESEED };
            let asked = live.ask_to_reseed().map_err(|error| format!("cannot be signalled: {error}"));
            Some(Asked { context: context.name.clone(), live, patience, asked })
        };
        self.lock().values().filter_map(alive).collect()
    }

    /// What became of the signals, once the interpreters run.
    pub async fn reseeded(asked: Vec<Asked>) -> Vec<InterpreterThawed> {
        let begun = Instant::now();
        let waits = asked.into_iter().map(|asked| async move {
            let random = match asked.asked {
                Err(reason) => Reseeded::No { reason },
                Ok(()) => asked.live.wait_for_ack(begun + asked.patience).await,
            };
            InterpreterThawed { context: asked.context, language: asked.live.language, random }
        });
        futures::future::join_all(waits).await
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Context>>> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Result<Arc<Context>, GuestError> {
        self.lock().get(name).cloned().ok_or_else(|| missing(name))
    }

    /// Waits until it is this code's turn, and the VM runs.
    async fn turn(
        &self,
        run: &RunCode,
    ) -> Result<(Arc<Context>, OwnedMutexGuard<Option<Interpreter>>), GuestError> {
        self.freezer.running().await;
        let context = self.context(run)?;
        let queue = Waiting::new(&context)?;
        let turn = Arc::clone(&context.turn).lock_owned().await;
        drop(queue);
        self.freezer.running().await;
        let turn = spares::renewed(turn).await;
        self.freezer.running().await;
        if !self.lock().get(&run.context).is_some_and(|known| Arc::ptr_eq(known, &context)) {
            let message = format!("context {}: removed before its turn came", run.context);
            return Err(fault(GuestErrorKind::NotFound, message));
        }
        Ok((context, turn))
    }

    /// The context of that name, made if there is none.
    fn context(&self, run: &RunCode) -> Result<Arc<Context>, GuestError> {
        if !is_context_name(&run.context) {
            return Err(invalid(format!("context {:?}: not a context's name", run.context)));
        }
        check_environment(&run.context_env)?;
        check_environment(&run.env)?;
        let mut registry = self.lock();
        if let Some(context) = registry.get(&run.context) {
            if let Some(language) = run.language.filter(|&language| language != context.language) {
                let message = format!("context {}: is {:?}, not {language:?}", run.context, context.language);
                return Err(invalid(message));
            }
            if run.user != context.user {
                return Err(invalid(format!("context {}: runs as another user", run.context)));
            }
            return Ok(Arc::clone(context));
        }
        if run.existing {
            return Err(missing(&run.context));
        }
        let user = self.users.find(&run.user)?;
        if registry.len() >= MAX_CONTEXTS {
            let message = format!("context {}: {MAX_CONTEXTS} contexts exist, the most of a VM", run.context);
            return Err(fault(GuestErrorKind::Exhausted, message));
        }
        let language = run.language.unwrap_or(Language::Python);
        let mut spare = match spares::can_be_settled(&run.context_env) {
            true => self.spares.take(language, &run.user),
            false => None,
        };
        if let Some(spare) = &mut spare
            && (run.cwd.is_some() || !run.context_env.is_empty())
        {
            let cwd = run.cwd.as_ref().unwrap_or(&user.home);
            spare.unsettled = Some(format!("{cwd}\0{}", interpreter::words(&run.context_env)));
        }
        let live = spare.as_ref().map(|spare| Arc::clone(&spare.live));
        let context = Arc::new(Context {
            name: run.context.clone(),
            language,
            user: run.user.clone(),
            cwd: run.cwd.clone(),
            home: user.home,
            env: run.context_env.clone(),
            created_ms: clock::wall_clock().0 / 1_000_000,
            untold: AtomicBool::new(spare.is_some()),
            turn: Arc::new(tokio::sync::Mutex::new(spare)),
            waiting: AtomicU32::new(0),
            live: Mutex::new(live),
        });
        registry.insert(run.context.clone(), Arc::clone(&context));
        Ok(context)
    }

    /// Starts an interpreter unless one is alive; answers whether this code is its first. A context whose first interpreter cannot be
    /// started is none. Without a wait: see [`crate::freeze`].
    fn ensure(&self, context: &Context, turn: &mut Option<Interpreter>) -> Result<bool, GuestError> {
        if turn.as_ref().is_some_and(|interpreter| interpreter.live.exit().is_none()) {
            return Ok(context.untold.swap(false, Ordering::Relaxed));
        }
        // One that was kept ready for it, and could not be its, was none.
        let first = turn.is_none() && (context.live().is_none() || context.untold.load(Ordering::Relaxed));
        *turn = None;
        let Context { name, language, user, cwd, env, .. } = context;
        match self.start(name, *language, user, cwd.as_deref(), env) {
            Ok(interpreter) => {
                context.untold.store(false, Ordering::Relaxed);
                *context.live() = Some(Arc::clone(&interpreter.live));
                *turn = Some(interpreter);
                Ok(true)
            }
            Err(error) => {
                if first {
                    self.lock().remove(&context.name);
                }
                Err(error)
            }
        }
    }

    fn start(
        &self,
        name: &str,
        language: Language,
        user: &str,
        cwd: Option<&str>,
        env: &BTreeMap<String, String>,
    ) -> Result<Interpreter, GuestError> {
        let number = self.trees.fetch_add(1, Ordering::Relaxed);
        let user = self.users.find(user)?;
        self.starter.start(&format!("{name}.{number}"), language, &user, cwd, env)
    }
}

fn missing(name: &str) -> GuestError {
    fault(GuestErrorKind::NotFound, format!("context {name:?}: no such context"))
}

fn check_environment(env: &BTreeMap<String, String>) -> Result<(), GuestError> {
    let size: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > MAX_ENVIRONMENT {
        return Err(invalid(format!("environment: {size} bytes exceed {MAX_ENVIRONMENT}")));
    }
    let odd = |(name, value): (&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    match env.iter().find(|&(name, value)| odd((name, value))) {
        Some((name, _)) => Err(invalid(format!("environment {name:?}: not a variable's name and value"))),
        None => Ok(()),
    }
}

/// An interpreter that was asked to reseed itself.
#[derive(Debug)]
pub struct Asked {
    context: String,
    live: Arc<Live>,
    patience: Duration,
    asked: Result<(), String>,
}

impl Live {
    async fn wait_for_ack(&self, deadline: Instant) -> Reseeded {
        let reason = tokio::select! {
            answered = timeout_at(deadline, self.reseeded()) => match answered {
                Ok(Ok(said)) if said == "ok" => return Reseeded::Yes,
                Ok(Ok(said)) => said,
                Ok(Err(error)) => format!("cannot be heard: {error}"),
                Err(_late) => "busy: it did not answer in time".to_owned(),
            },
            _exit = self.exited() => "it has ended".to_owned(),
        };
        Reseeded::No { reason }
    }
}

/// A place in the queue of a context.
struct Waiting<'a>(&'a Context);

impl<'a> Waiting<'a> {
    fn new(context: &'a Context) -> Result<Self, GuestError> {
        if context.waiting.load(Ordering::Relaxed) > MAX_WAITING {
            let message = format!("context {}: {MAX_WAITING} pieces of code wait already", context.name);
            return Err(fault(GuestErrorKind::Exhausted, message));
        }
        context.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(Self(context))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Kills the interpreter and waits until it is gone; answers the turn, without one.
async fn end(context: &Context) -> Result<OwnedMutexGuard<Option<Interpreter>>, GuestError> {
    if let Some(live) = context.live().take() {
        // Empty already: as wanted.
        drop(live.kill());
    }
    let gone = async {
        let mut turn = Arc::clone(&context.turn).lock_owned().await;
        if let Some(interpreter) = turn.take() {
            // What it was started with is killed too where code that had the turn started it a moment ago.
            drop(interpreter.live.kill());
            interpreter.live.exited().await;
        }
        turn
    };
    timeout(DEATH, gone).await.map_err(|_| {
        let message = format!("context {}: its interpreter was killed and is not gone yet", context.name);
        fault(GuestErrorKind::Other, message)
    })
}

#[cfg(test)]
mod tests;
