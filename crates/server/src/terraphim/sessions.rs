//! `/sessions`: VMs that clients call by a name of their own, with a shell that keeps its directory and variables.

use super::{
    Asker,
    agents::{image, name_of, of_caller},
    asked::{self, NewVm, SessionCommand, SessionRollback, TakeSnapshot, either, timeout},
    code::read,
    config::Config,
    run::{Listener, Piece},
    step::{Step, Steps},
    told::{self, SESSION},
    vms,
};
use crate::http::ApiError;
use axum::{Json, body::Body, extract::Path, http::StatusCode};
use offshoot_api::{
    ClientError,
    v1::{CreateVm, DestroyQuery, InvalidField, Vm},
};
use offshoot_code::{Language, risk};
use offshoot_types::{ErrorCode, Failure, VmRef};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub async fn open(asker: Asker, body: Body) -> Result<(StatusCode, Json<Value>), ApiError> {
    let asked: NewVm = read(body).await?;
    let name = either("name", asked.name, asked.vm_name)?.unwrap_or_default();
    let name = asked::name("name", &name)?;
    let mut create = CreateVm {
        name: name_of(&asker, "session", name)?.to_string(),
        image: asked.vm_type.as_deref().map(image),
        memory_mib: asked.memory_mb,
        cpus: asked.vcpus,
        ..of_caller(&asker)
    };
    create.labels.insert(SESSION.into(), name.into());
    let vm = vms::made(&asker, create).await.map_err(|failure| match failure.code {
        ErrorCode::AlreadyExists => {
            Failure::new(ErrorCode::AlreadyExists, format!("there is a session `{name:.80}` already"))
                .hint("use it, or end it with `DELETE /sessions/NAME`")
        }
        _ => failure,
    })?;
    Ok((StatusCode::CREATED, Json(told::vm(&vm))))
}

/// The VM of a session. A name is no secret: it is found by whoever may see that VM.
async fn vm_of(asker: &Asker, session: &str) -> Result<Vm, Failure> {
    let session = asked::name("session", session)?;
    let none = || Failure::new(ErrorCode::NotFound, format!("there is no session `{session:.80}`"));
    let vm = VmRef::Name(name_of(asker, "session", session)?);
    let vm = asker.client.vm(&vm).await.map_err(|error| match error.code() {
        ErrorCode::NotFound => none(),
        _ => error.into_failure(),
    })?;
    match vm.labels.get(SESSION) {
        Some(of) if of == session => Ok(vm),
        _ => Err(none()),
    }
}

pub async fn execute(asker: Asker, Path(session): Path<String>, body: Body) -> Result<Json<Value>, ApiError> {
    let asked: SessionCommand = read(body).await?;
    let limit = timeout(asked.timeout_seconds, asked.timeout_ms)?;
    if asked.command.is_empty() {
        return Err(InvalidField::new("command", "there is nothing to run").into());
    }
    let vm = vm_of(&asker, &session).await?;
    let piece = Piece {
        agent: format!("session {session}"),
        language: Language::Bash,
        code: asked.command,
        working_dir: None,
        timeout: limit,
        fresh: false,
    };
    let call = asker.call.clone();
    let run = async move {
        let mut config = Config::of(None)?;
        // Whoever sends a command means it, and takes snapshots as it likes; a hazard has one before it all the same.
        (config.max_code, config.snapshot_on_execution, config.snapshot_on_failure) = (None, false, false);
        let steps = Steps {
            asker: &asker,
            vm: &vm,
            config: &config,
            approvals: &[],
            requirements: &[],
            waiting: None,
            cancel: &CancellationToken::new(),
        };
        let hazard = risk::of_code(Some(piece.language), &piece.code);
        match steps.run(&piece, hazard, &Listener::default()).await? {
            Step::Ran(ran, kept) => {
                let mut told = told::execution(&vm, &piece, &ran, &kept, None);
                let [stdout, stderr] =
                    [&ran.outputs.stdout, &ran.outputs.stderr].map(|kept| kept.text(&ran.execution));
                told["output"] = json!(stdout + &stderr);
                Ok(told)
            }
            Step::Held { reason, .. } => Err(Failure::new(ErrorCode::Denied, reason)),
        }
    };
    Ok(Json(call.detached::<_, Failure, _>(run).await?))
}

pub async fn snapshot(
    asker: Asker,
    Path(session): Path<String>,
    body: Body,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let asked: TakeSnapshot = read(body).await?;
    let vm = vm_of(&asker, &session).await?;
    Ok((StatusCode::CREATED, Json(vms::take(&asker, VmRef::Id(vm.id), asked).await?)))
}

pub async fn rollback(
    asker: Asker,
    Path(session): Path<String>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let SessionRollback { snapshot_id } = read(body).await?;
    let vm = vm_of(&asker, &session).await?;
    Ok(Json(vms::go_back(&asker, VmRef::Id(vm.id), &snapshot_id).await?))
}

pub async fn info(asker: Asker, Path(session): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(told::vm(&vm_of(&asker, &session).await?)))
}

/// Ends the session with its VM. A VM that could not be destroyed is a failure, and the session goes on.
pub async fn close(asker: Asker, Path(session): Path<String>) -> Result<Json<Value>, ApiError> {
    let vm = vm_of(&asker, &session).await?;
    let options = DestroyQuery { wait: Some(true), ..DestroyQuery::default() };
    asker.client.destroy(&VmRef::Id(vm.id), &options).await.map_err(ClientError::into_failure)?;
    Ok(Json(json!({ "message": format!("session `{session}` is over"), "vm_id": vm.id })))
}
