//! Contexts of a sandbox: made, listed, ended and begun anew.

use super::{
    MAX_BODY, default_context, default_of,
    execute::{code, language},
    failure::Refused,
};
use crate::{
    e2b::sandbox::{DEFAULT_USER, Sandbox},
    http::read_body,
};
use axum::{Json, body::Body, extract::Path, http::StatusCode};
use offshoot_engine::CodeEvent;
use offshoot_types::{Command, ContextName, ErrorCode, Failure, Language, RequestId, VmRef};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

/// Where the default user is at home in our images.
const HOME: &str = "/home/user";

#[derive(Debug, Deserialize)]
struct NewContext {
    language: Option<String>,
    cwd: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Context {
    id: ContextName,
    language: Language,
    cwd: String,
}

pub async fn list(sandbox: Sandbox) -> Result<Json<Vec<Context>>, Refused> {
    let Sandbox { call, vm, .. } = sandbox;
    let permit = call.permit(Command::Inspect { vm: Some(VmRef::Id(vm)) }).await?;
    let mut there = call.engine.contexts(permit).await?;
    // Those of whoever names none first, then in the order they were made: clients look for the one they made at the end.
    there.sort_by_key(|view| {
        (default_of(&view.context).is_none(), Reverse(view.age), view.context.as_str().to_owned())
    });
    let listed = there.into_iter().filter_map(|view| {
        let home = view.home.filter(|home| home.user == DEFAULT_USER)?;
        Some(Context { id: view.context, language: view.language, cwd: home.cwd })
    });
    let mut listed: Vec<Context> = listed.collect();
    let promised =
        [Language::Python, Language::Javascript].map(|language| (default_context(language), language));
    let missing: Vec<Context> = promised
        .into_iter()
        .filter(|(id, _)| listed.iter().all(|context| context.id != *id))
        .map(|(id, language)| Context { id, language, cwd: HOME.to_owned() })
        .collect();
    listed.splice(0..0, missing);
    Ok(Json(listed))
}

/// Makes a context by running nothing in it, which starts its interpreter.
pub async fn create(sandbox: Sandbox, body: Body) -> Result<Json<Context>, Refused> {
    let body = read_body(body, MAX_BODY).await?;
    let wanted: NewContext = match body.is_empty() {
        true => NewContext { language: None, cwd: None },
        false => serde_json::from_slice(&body).map_err(|error| Refused::invalid(error.to_string()))?,
    };
    let language = language(wanted.language.as_deref())?;
    if let Some(cwd) = wanted.cwd.as_deref().filter(|cwd| !cwd.starts_with('/')) {
        return Err(Refused::invalid(format!("cwd `{cwd}`: not an absolute path")));
    }
    let id: ContextName = RequestId::new()
        .to_string()
        .parse()
        .map_err(|error| Failure::new(ErrorCode::Internal, "name a context").caused_by(&error))?;
    let mut nothing = code(id.clone(), String::new());
    (nothing.language, nothing.cwd) = (Some(language), wanted.cwd.clone());
    let Sandbox { call, vm, .. } = sandbox;
    let permit = call.permit(Command::RunCode { vm: VmRef::Id(vm), code: Box::new(nothing) }).await?;
    let mut session = call.until_cut(call.engine.run_code(permit)).await?;
    let made = async {
        while let Some(event) = session.next().await {
            match event {
                CodeEvent::Ended { .. } => return Ok(()),
                CodeEvent::Failed(failure) => return Err(failure),
                _ => {}
            }
        }
        Err(Failure::new(ErrorCode::Internal, "the context ended before it began"))
    };
    call.until_cut(made).await?;
    Ok(Json(Context { id, language, cwd: wanted.cwd.unwrap_or_else(|| HOME.to_owned()) }))
}

pub async fn remove(sandbox: Sandbox, Path(id): Path<String>) -> Result<StatusCode, Refused> {
    let Sandbox { call, vm, .. } = sandbox;
    let context = named(&id)?;
    let permit = call.permit(Command::RemoveContext { vm: VmRef::Id(vm), context: context.clone() }).await?;
    settled(call.until_cut(call.engine.remove_context(permit)).await, &context)
}

pub async fn restart(sandbox: Sandbox, Path(id): Path<String>) -> Result<StatusCode, Refused> {
    let Sandbox { call, vm, .. } = sandbox;
    let context = named(&id)?;
    let permit = call.permit(Command::RestartContext { vm: VmRef::Id(vm), context: context.clone() }).await?;
    settled(call.until_cut(call.engine.restart_context(permit)).await, &context)
}

/// A default context that nobody has used is as if just begun.
fn settled(outcome: Result<(), Failure>, context: &ContextName) -> Result<StatusCode, Refused> {
    match outcome {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(failure) if failure.code == ErrorCode::NotFound => match default_of(context) {
            Some(_) => Ok(StatusCode::NO_CONTENT),
            None => Err(Refused::no_context(context.as_str())),
        },
        Err(failure) => Err(failure.into()),
    }
}

/// What is no name is nobody's.
pub(super) fn named(id: &str) -> Result<ContextName, Refused> {
    id.parse().map_err(|_invalid: offshoot_types::InvalidName| Refused::no_context(id))
}
