//! `/ws`: code and workflows whose progress is told as it comes, and which can be asked about in the middle.
//!
//! ```text
//! {command_type, session_id, workflow_id, data}  execute_code | parse_execute | approve | deny | cancel
//! {response_type, session_id, workflow_id, data} execution_output | block_started | approval_required | ... | error
//! ```
//! Each command that runs something is a workflow; several may be under way, each by its `workflow_id`. What it says last is
//! `execution_complete`, `workflow_complete` or `error`. A socket that closes cancels what runs: code is interrupted, and
//! undone where that is wanted.

use super::{
    Asker,
    asked::{Execute, ParseExecute},
    code,
    run::{Listener, Said},
    settings::MAX_MESSAGE,
    step::Waiting,
    workflow::Workflow,
};
use crate::{
    http::{
        ApiError, Upgrade,
        channel::{Channel, Heard, Left, pings},
        parse_json,
    },
    tasks::TaskKind,
};
use axum::response::Response;
use offshoot_api::v1::ErrorBody;
use offshoot_types::{ErrorCode, Failure};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::{collections::HashMap, sync::Arc};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

/// Workflows of one socket that are under way at once.
const MOST: usize = 8;
/// What is said ahead of a caller that reads slowly; then what says it waits.
const AHEAD: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    command_type: String,
    session_id: Option<String>,
    workflow_id: Option<String>,
    #[serde(default)]
    data: Map<String, Value>,
}

/// Which order something is said about.
#[derive(Debug, Clone)]
struct Subject {
    session: Option<String>,
    workflow: String,
}

impl Subject {
    fn tell(&self, Said { kind, data }: Said) -> Value {
        json!({
            "response_type": kind,
            "session_id": self.session,
            "workflow_id": self.workflow,
            "data": data,
        })
    }
}

#[derive(Debug)]
struct UnderWay {
    waiting: Arc<Waiting>,
    _cancelled_with_us: DropGuard,
}

pub async fn open(asker: Asker, upgrade: Upgrade) -> Result<Response, ApiError> {
    let present = asker.call.app.activity.enter_session()?;
    Ok(upgrade.saying_up_to(MAX_MESSAGE).serve(move |socket| async move {
        let _present = present;
        let mut channel = Channel::new(socket);
        let call = asker.call.clone();
        // Whatever ended it was told in the words of this wire.
        let _over = talk(asker, &mut channel).await;
        channel.close(&call, Ok(())).await;
    }))
}

async fn talk(asker: Asker, channel: &mut Channel) -> Result<(), Left> {
    let (sender, mut said) = mpsc::channel::<(Subject, Option<Said>)>(AHEAD);
    let mut under_way: HashMap<String, UnderWay> = HashMap::new();
    let mut pings = pings();
    let shutdown = asker.call.app.shutdown.clone();
    loop {
        tokio::select! {
            biased;
            () = shutdown.expired() => return Ok(()),
            heard = channel.source.next() => {
                let (subject, done) = match heard? {
                    Heard::Text(text) => order(&asker, &text, &mut under_way, &sender),
                    Heard::Binary(_) => (nothing(), Err(invalid("orders are text"))),
                };
                if let Err(failure) = done {
                    let said = Said { kind: "error", data: error(&asker, failure) };
                    channel.sink.say(&subject.tell(said)).await?;
                }
            }
            Some((subject, said)) = said.recv() => match said {
                Some(said) => channel.sink.say(&subject.tell(said)).await?,
                None => drop(under_way.remove(&subject.workflow)),
            },
            _ = pings.tick() => channel.sink.ping().await?,
        }
    }
}

fn nothing() -> Subject {
    Subject { session: None, workflow: String::new() }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::InvalidArgument, message)
}

fn error(asker: &Asker, failure: Failure) -> Value {
    let message = failure.message.clone();
    let mut body = json!(ErrorBody::new(failure, asker.call.id));
    body["error"] = json!(message);
    body
}

/// Carries an order out, or begins to.
fn order(
    asker: &Asker,
    text: &str,
    under_way: &mut HashMap<String, UnderWay>,
    sender: &mpsc::Sender<(Subject, Option<Said>)>,
) -> (Subject, Result<(), Failure>) {
    let order: Order = match parse_json(text.as_bytes()) {
        Ok(order) => order,
        Err(failure) => return (nothing(), Err(failure)),
    };
    let Order { command_type, session_id, workflow_id, data } = order;
    let workflow = workflow_id.unwrap_or_else(|| Uuid::new_v4().to_string());
    let subject = Subject { session: session_id, workflow };
    let begin = |task: Task| {
        if under_way.contains_key(&subject.workflow) {
            return Err(invalid("a workflow by this `workflow_id` is under way"));
        }
        if under_way.len() >= MOST {
            return Err(Failure::new(
                ErrorCode::NoResource,
                format!("{MOST} workflows are under way on this socket"),
            )
            .hint("wait until one has ended, or open another socket"));
        }
        Ok(task.begin(asker.clone(), subject.clone(), sender.clone()))
    };
    let done = match command_type.as_str() {
        "execute_code" => {
            let session = subject.session.clone();
            execution(data, session).and_then(|asked| begin(Task::Execute(Box::new(asked))))
        }
        "parse_execute" => parse::<ParseExecute>(data).and_then(|asked| begin(Task::Parse(Box::new(asked)))),
        "approve" | "deny" => {
            let answered = answer(&data, command_type == "approve", under_way);
            return (subject, answered);
        }
        "cancel" => {
            let known = under_way.remove(&subject.workflow);
            let unknown =
                || Failure::new(ErrorCode::NotFound, "no workflow by this `workflow_id` is under way");
            return (subject, known.map(drop).ok_or_else(unknown));
        }
        other => Err(invalid(format!(
            "`{other:.40}` is no command: use execute_code, parse_execute, approve, deny or cancel"
        ))),
    };
    let done = done.map(|begun| drop(under_way.insert(subject.workflow.clone(), begun)));
    (subject, done)
}

fn parse<T: DeserializeOwned>(data: Map<String, Value>) -> Result<T, Failure> {
    parse_json(Value::Object(data).to_string().as_bytes())
}

/// Clients that say no agent mean the one of their session.
fn execution(mut data: Map<String, Value>, session: Option<String>) -> Result<Execute, Failure> {
    if let (false, Some(session)) = (data.contains_key("agent_id"), session) {
        data.insert("agent_id".into(), json!(session));
    }
    parse(data)
}

fn answer(
    data: &Map<String, Value>,
    approved: bool,
    under_way: &HashMap<String, UnderWay>,
) -> Result<(), Failure> {
    let id = data.get("approval_id").and_then(Value::as_str).and_then(|id| id.parse::<Uuid>().ok());
    let id = id.ok_or_else(|| invalid("`data.approval_id` names no question"))?;
    match under_way.values().any(|one| one.waiting.answer(id, approved)) {
        true => Ok(()),
        false => Err(Failure::new(ErrorCode::NotFound, "no workflow of this socket waits for that answer")),
    }
}

/// What the blocks wrote was told with each of them.
fn told_before(mut workflow: Value) -> Value {
    for result in workflow["execution_results"].as_array_mut().into_iter().flatten() {
        for stream in ["stdout", "stderr"] {
            result[stream] = Value::Null;
        }
    }
    workflow
}

enum Task {
    Execute(Box<Execute>),
    Parse(Box<ParseExecute>),
}

impl Task {
    fn begin(
        self,
        asker: Asker,
        subject: Subject,
        sender: mpsc::Sender<(Subject, Option<Said>)>,
    ) -> UnderWay {
        let cancel = CancellationToken::new();
        let waiting = Arc::new(Waiting::default());
        let begun = UnderWay { waiting: waiting.clone(), _cancelled_with_us: cancel.clone().drop_guard() };
        let (tell, mut told) = mpsc::channel(1);
        let listener = Listener { sender: Some(tell), block: None };
        let tasks = asker.call.app.tasks.clone();
        // Carried out to its end whoever listens, so that what is begun is kept or undone.
        tasks.spawn(TaskKind::Request, async move {
            let present = asker.call.app.activity.enter();
            let failed = |failure| Said { kind: "error", data: error(&asker, failure) };
            let run = async {
                match self {
                    Self::Execute(asked) => {
                        let told =
                            Box::pin(code::one(&asker, *asked, &listener, &cancel, Some(&waiting))).await;
                        told.map(|data| Said { kind: "execution_complete", data })
                    }
                    Self::Parse(asked) => {
                        let (asker, listener, cancel) = (asker.clone(), listener.clone(), cancel.clone());
                        let workflow = Workflow { asker, asked: *asked, listener, cancel };
                        Box::pin(workflow.run(Some(&waiting)))
                            .await
                            .map(|data| Said { kind: "workflow_complete", data: told_before(data) })
                    }
                }
            };
            let mut run = std::pin::pin!(run);
            let last = loop {
                tokio::select! {
                    biased;
                    Some(said) = told.recv() => {
                        // Nobody may listen any more; then it is told to nobody.
                        let _gone = sender.send((subject.clone(), Some(said))).await;
                    }
                    last = &mut run => break last,
                }
            };
            while let Ok(said) = told.try_recv() {
                let _gone = sender.send((subject.clone(), Some(said))).await;
            }
            let last = last.unwrap_or_else(failed);
            let _gone = sender.send((subject.clone(), Some(last))).await;
            let _gone = sender.send((subject, None)).await;
            drop(present);
        });
        begun
    }
}
