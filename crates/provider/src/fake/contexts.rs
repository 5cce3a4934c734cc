//! Live contexts of the fake guest: a toy interpreter behind the real protocol.
//!
//! ```text
//! code      = statement { (";" | newline) statement }
//! statement = NAME "=" value | NAME "+=" value | "print(" value ")" | "show" value | "env" NAME | "sleep" SECONDS
//!           | "fail" | "crash" | value
//! value     = term { "+" term }        term = number | 'text' | NAME | "random()"
//! ```
//! `show` displays a value, `env` one of the environment. `fail` is an error of the code; `crash` is the interpreter's death, with its variables. Code that runs while the state
//! is stored is not part of it: whoever waits for it is not in the copy.

use super::{
    stillness::moving,
    world::{Random, World},
};
use offshoot_guest_proto::{
    message::{
        CodeEvent, ContextInfo, GuestError, GuestErrorKind, INTERPRETER_DIED, InterpreterThawed, Language,
        OutputStream, Reseeded, RunCode, TEXT_PLAIN, is_context_name,
    },
    server::{CodePeer, Detached},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Value {
    Number(i64),
    Text(String),
}
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StoredContext {
    language: Language,
    user: String,
    cwd: String,
    env: BTreeMap<String, String>,
    count: u32,
    pid: Option<u32>,
    created_ms: u64,
    variables: BTreeMap<String, Value>,
    random: Random,
}

#[derive(Debug)]
struct Context {
    state: Mutex<StoredContext>,
    /// One piece of code at a time.
    turn: Semaphore,
}

impl Context {
    fn new(state: StoredContext) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(state), turn: Semaphore::new(1) })
    }

    fn state(&self) -> MutexGuard<'_, StoredContext> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct Contexts {
    world: Arc<World>,
    table: Mutex<BTreeMap<String, Arc<Context>>>,
}

/// What a statement does.
enum Step {
    Nothing,
    Print(String),
    Value(Value),
    Show(Value),
    Sleep(Duration),
    Error { name: &'static str, message: String },
    Died,
}

impl Contexts {
    pub fn new(world: Arc<World>) -> Self {
        Self { world, table: Mutex::default() }
    }

    pub fn restore(world: Arc<World>, stored: BTreeMap<String, StoredContext>) -> Self {
        let table = stored.into_iter().map(|(name, state)| (name, Context::new(state))).collect();
        Self { world, table: Mutex::new(table) }
    }

    pub fn store(&self) -> BTreeMap<String, StoredContext> {
        self.table().iter().map(|(name, context)| (name.clone(), context.state().clone())).collect()
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Context>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn list(&self) -> Vec<ContextInfo> {
        let info = |(name, context): (&String, &Arc<Context>)| {
            let state = context.state();
            ContextInfo {
                context: name.clone(),
                language: state.language,
                pid: state.pid,
                busy: context.turn.available_permits() == 0,
                user: state.user.clone(),
                cwd: state.cwd.clone(),
                created_ms: state.created_ms,
            }
        };
        self.table().iter().map(info).collect()
    }

    pub fn remove(&self, name: &str) -> Result<(), GuestError> {
        let removed = self.table().remove(name);
        match removed {
            Some(context) => {
                context.turn.close();
                Ok(())
            }
            None => Err(no_context(name)),
        }
    }

    /// Its variables are gone; it is made anew by the next code.
    pub fn restart(&self, name: &str) -> Result<(), GuestError> {
        let found = self.table().get(name).cloned();
        let context = found.ok_or_else(|| no_context(name))?;
        let mut state = context.state();
        state.variables.clear();
        state.pid = None;
        Ok(())
    }

    /// Renews the random numbers of each.
    pub fn renew(&self, entropy: &[u8]) -> Vec<InterpreterThawed> {
        let renewed = |(name, context): (&String, &Arc<Context>)| {
            let mut state = context.state();
            state.random.renew(entropy);
            InterpreterThawed { context: name.clone(), language: state.language, random: Reseeded::Yes }
        };
        self.table().iter().map(renewed).collect()
    }

    pub async fn run(&self, run: RunCode, peer: CodePeer) {
        match self.open(&run) {
            // A host that left in the middle wants no answer.
            Ok(context) => drop(self.interpret(&context, run, peer).await),
            Err(error) => peer.fail(error).await,
        }
    }

    fn open(&self, run: &RunCode) -> Result<Arc<Context>, GuestError> {
        let refuse = |message: String| GuestError { kind: GuestErrorKind::InvalidArgument, message };
        if !is_context_name(&run.context) {
            return Err(refuse(format!("{:?} is no name of a context", run.context)));
        }
        if let Some(name) = run.env.keys().chain(run.context_env.keys()).find(|name| name.contains('=')) {
            return Err(refuse(format!("environment {name:?} is no variable's")));
        }
        let mut table = self.table();
        if let Some(context) = table.get(&run.context) {
            let state = context.state();
            let language = run.language.unwrap_or(state.language);
            if language != state.language || run.user != state.user {
                let message = format!("context {:?} is another language's or user's", run.context);
                return Err(refuse(message));
            }
            return Ok(context.clone());
        }
        if run.existing {
            return Err(no_context(&run.context));
        }
        let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let context = Context::new(StoredContext {
            language: run.language.unwrap_or(Language::Python),
            user: run.user.clone(),
            cwd: run.cwd.clone().unwrap_or_else(|| "/root".to_owned()),
            env: run.context_env.clone(),
            count: 0,
            pid: None,
            created_ms: since_epoch.as_millis() as u64,
            variables: BTreeMap::new(),
            random: Random::new(&self.world.random().draw()),
        });
        table.insert(run.context.clone(), context.clone());
        Ok(context)
    }

    async fn interpret(&self, context: &Context, run: RunCode, peer: CodePeer) -> Result<(), Detached> {
        let (mut inputs, mut outputs) = peer.split();
        let Ok(_turn) = context.turn.acquire().await else {
            let error = no_context(&run.context);
            return outputs.send(CodeEvent::Failed(error)).await;
        };
        let mut still = self.world.still.subscribe();
        let begun = Instant::now();
        let deadline = run.timeout_ms.and_then(|ms| begun.checked_add(Duration::from_millis(ms)));
        let (language, pid, created, count) = moving(&mut still, || {
            let mut state = context.state();
            let created = state.pid.is_none();
            state.count = if created { 1 } else { state.count + 1 };
            let pid = *state.pid.get_or_insert(1000);
            (state.language, pid, created, state.count)
        })
        .await;
        outputs.send(CodeEvent::Started { language, pid, created, count }).await?;
        let (mut value, mut failure, mut interrupted) = (None, None, false);
        for statement in run.code.split([';', '\n']).map(str::trim).filter(|text| !text.is_empty()) {
            value = None;
            let step = moving(&mut still, || take(statement, &run.env, &mut context.state())).await;
            match step {
                Step::Nothing => {}
                Step::Value(found) => value = Some(found),
                Step::Show(shown) => {
                    let mime = BTreeMap::from([(TEXT_PLAIN.to_owned(), shown.to_string())]);
                    outputs.send(CodeEvent::Display { mime, id: None, update: false }).await?;
                }
                Step::Print(line) => {
                    let data = format!("{line}\n").into_bytes();
                    outputs.send(CodeEvent::Output { stream: OutputStream::Stdout, data }).await?;
                }
                Step::Sleep(time) => {
                    let late = async {
                        match deadline {
                            Some(at) => tokio::time::sleep_until(at).await,
                            None => std::future::pending().await,
                        }
                    };
                    interrupted = tokio::select! {
                        biased;
                        () = tokio::time::sleep(time) => false,
                        () = late => true,
                        // An interrupt, or the host has left.
                        _ = inputs.next() => true,
                    };
                    if interrupted {
                        failure = Some(("KeyboardInterrupt", String::new()));
                    }
                }
                Step::Error { name, message } => failure = Some((name, message)),
                Step::Died => failure = Some((INTERPRETER_DIED, "the interpreter ended".to_owned())),
            }
            if failure.is_some() {
                break;
            }
        }
        if let Some((name, message)) = failure {
            let (name, traceback) = (name.to_owned(), String::new());
            outputs.send(CodeEvent::Error { name, message, traceback }).await?;
        } else if let Some(value) = value {
            let mime = BTreeMap::from([(TEXT_PLAIN.to_owned(), value.to_string())]);
            outputs.send(CodeEvent::Value { mime }).await?;
        }
        let wall_us = begun.elapsed().as_micros() as u64;
        outputs.send(CodeEvent::Ended { interrupted, wall_us }).await
    }
}

fn no_context(name: &str) -> GuestError {
    GuestError { kind: GuestErrorKind::NotFound, message: format!("there is no context {name:?}") }
}

fn take(statement: &str, lent: &BTreeMap<String, String>, state: &mut StoredContext) -> Step {
    let outcome = match statement.split_once(' ').unwrap_or((statement, "")) {
        ("fail", why) => {
            return Step::Error { name: "Failure", message: why.to_owned() };
        }
        ("crash", _) => {
            state.variables.clear();
            state.pid = None;
            return Step::Died;
        }
        ("env", name) => {
            let found = lent.get(name).or_else(|| state.env.get(name)).cloned();
            return Step::Value(Value::Text(found.unwrap_or_default()));
        }
        ("show", value) => evaluate(value, state).map(Step::Show),
        ("sleep", time) => {
            let seconds = time.trim().parse::<f64>().unwrap_or(0.0);
            return Step::Sleep(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
        }
        _ => assign_or_show(statement, state),
    };
    outcome.unwrap_or_else(|(name, message)| Step::Error { name, message })
}

type Evaluated<T> = Result<T, (&'static str, String)>;

fn assign_or_show(statement: &str, state: &mut StoredContext) -> Evaluated<Step> {
    let named = |text: &str| {
        let text = text.trim();
        let name = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        name.then(|| text.to_owned())
    };
    if let Some((name, added)) = statement.split_once("+=")
        && let Some(name) = named(name)
    {
        let sum = add(term(&name, state)?, evaluate(added, state)?)?;
        state.variables.insert(name, sum);
        return Ok(Step::Nothing);
    }
    if let Some((name, value)) = statement.split_once('=')
        && let Some(name) = named(name)
    {
        let value = evaluate(value, state)?;
        state.variables.insert(name, value);
        return Ok(Step::Nothing);
    }
    if let Some(shown) = statement.strip_prefix("print(").and_then(|rest| rest.strip_suffix(')')) {
        return Ok(Step::Print(evaluate(shown, state)?.to_string()));
    }
    evaluate(statement, state).map(Step::Value)
}

fn evaluate(text: &str, state: &mut StoredContext) -> Evaluated<Value> {
    let mut terms = text.split('+');
    let first = term(terms.next().unwrap_or(""), state)?;
    terms.try_fold(first, |sum, next| add(sum, term(next, state)?))
}

fn add(left: Value, right: Value) -> Evaluated<Value> {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => match left.checked_add(right) {
            Some(sum) => Ok(Value::Number(sum)),
            None => Err(("OverflowError", "the sum is too large".to_owned())),
        },
        (left, right) => Ok(Value::Text(format!("{left}{right}"))),
    }
}

fn term(text: &str, state: &mut StoredContext) -> Evaluated<Value> {
    let text = text.trim();
    if text == "random()" {
        return Ok(Value::Text(state.random.draw().iter().map(|byte| format!("{byte:02x}")).collect()));
    }
    if let Ok(number) = text.parse() {
        return Ok(Value::Number(number));
    }
    for quote in ['\'', '"'] {
        if let Some(text) = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return Ok(Value::Text(text.to_owned()));
        }
    }
    let found = state.variables.get(text).cloned();
    found.ok_or_else(|| ("NameError", format!("name '{text}' is not defined")))
}
