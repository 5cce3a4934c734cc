//! `/api/llm/execute` and `/api/llm/parse-execute`.
//!
//! A request is carried out to its end whether its caller stays or not: what was begun is kept or undone, never left.

use super::{
    Asker, agents,
    asked::{self, Execute, ParseExecute, either, timeout},
    config::Config,
    run::{Listener, Piece},
    settings::MAX_BODY,
    step::{Step, Steps, Waiting},
    told,
    workflow::Workflow,
};
use crate::http::{ApiError, parse_json, read_body};
use axum::{
    body::Body,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use offshoot_code::{Language, risk};
use offshoot_types::{ErrorCode, Failure};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// A body of this wire; an empty one is `{}`.
pub async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    let bytes = read_body(body, MAX_BODY).await?;
    parse_json(if bytes.is_empty() { b"{}" } else { &bytes })
}

pub async fn execute(asker: Asker, body: Body) -> Result<Response, ApiError> {
    let asked: Execute = read(body).await?;
    let call = asker.call.clone();
    let run = async move {
        let (listener, never) = (Listener::default(), CancellationToken::new());
        Box::pin(one(&asker, asked, &listener, &never, None)).await
    };
    let told = call.detached::<_, Failure, _>(run).await?;
    let status = match told.get("approval_id") {
        Some(_) => StatusCode::ACCEPTED,
        None => StatusCode::OK,
    };
    Ok((status, axum::Json(told)).into_response())
}

pub async fn parse_execute(asker: Asker, body: Body) -> Result<axum::Json<Value>, ApiError> {
    let asked: ParseExecute = read(body).await?;
    let call = asker.call.clone();
    let workflow = Workflow { asker, asked, listener: Listener::default(), cancel: CancellationToken::new() };
    Ok(axum::Json(call.detached::<_, Failure, _>(async move { Box::pin(workflow.run(None)).await }).await?))
}

/// Runs one piece of code that somebody hands over as such.
pub async fn one(
    asker: &Asker,
    asked: Execute,
    listener: &Listener,
    cancel: &CancellationToken,
    waiting: Option<&Waiting>,
) -> Result<Value, Failure> {
    let fresh = asked.is_fresh()?;
    let agent = asked::name("agent_id", &asked.agent_id)?;
    let asker = &asker.on_behalf_of(agent);
    let language: Language =
        asked.language.parse().map_err(|error: offshoot_code::UnsupportedLanguage| {
            Failure::new(ErrorCode::Unsupported, format!("UnsupportedLanguage: {error}"))
        })?;
    let limit = timeout(asked.timeout_seconds, asked.timeout_ms)?;
    // Whoever sends code rather than a text means it: its length is bounded by what a VM takes.
    let bounded = asked.vm_config.is_some();
    let mut config = Config::of(asked.vm_config)?;
    config.max_code = config.max_code.filter(|_| bounded);
    let vm_id = either("vm_id", asked.vm_id, config.vm.take())?;
    let vm = agents::site(asker, agent, &config, vm_id.as_deref(), &[language]).await?;
    let piece = Piece {
        agent: agent.into(),
        language,
        code: asked.code,
        working_dir: either("working_dir", asked.working_dir, config.working_dir.clone())?,
        timeout: limit.or(config.timeout),
        fresh: fresh || config.fresh,
    };
    let approvals: Vec<String> = asked.approval_id.into_iter().collect();
    let steps = Steps {
        asker,
        vm: &vm,
        config: &config,
        approvals: &approvals,
        requirements: asked.requirements.as_deref().unwrap_or_default(),
        waiting,
        cancel,
    };
    let hazard = risk::of_code(Some(language), &piece.code);
    Ok(match steps.run(&piece, hazard, listener).await? {
        Step::Ran(ran, kept) => {
            let mut told = told::execution(&vm, &piece, &ran, &kept, asked.metadata.as_ref());
            told["risk"] = told::risk(hazard);
            told["warnings"] = json!(config.warnings);
            told
        }
        Step::Held { approval, reason } => json!({
            "approval_id": approval,
            "status": "approval_required",
            "vm_id": vm.id,
            "error": reason,
            "risk": told::risk(hazard),
        }),
    })
}
