//! What is needed to run something again elsewhere, as it was run. The values of its environment were never written down.

use crate::{Engine, RequestVm, branch::ForkSettings, error, exec::Journaled};
use offshoot_policy::Authorized;
use offshoot_store::HistoryRecord;
use offshoot_types::{
    Command, ContextCode, ContextName, ErrorCode, ExecSpec, Failure, Language, Lifetime, OperationKind, VmRef,
};
use serde::Deserialize;
use std::{collections::BTreeSet, time::Duration};

/// Something that can be run again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rerun {
    pub what: RerunKind,
    /// Variables that it had in its environment, those of its VM included.
    pub env: BTreeSet<String>,
    /// It was given input, which was not written down.
    pub had_input: bool,
}

/// Its environment is empty: whoever runs it fills that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RerunKind {
    Exec(Box<ExecSpec>),
    Code(Box<ContextCode>),
}

/// What the journal says of code.
#[derive(Debug, Deserialize)]
struct JournaledCode {
    timeout_ms: Option<u64>,
    #[serde(default)]
    context_env: BTreeSet<String>,
    #[serde(default)]
    env: BTreeSet<String>,
}

impl Engine {
    /// What was run, to be run again ([`Command::InspectOperation`]).
    pub async fn rerun(&self, permit: Authorized<Command>) -> Result<(HistoryRecord, Rerun), Failure> {
        let core = self.core();
        let record = core.found_history(&permit, "rerun").await?;
        let steps = core.store.steps(record.operation).await?;
        let detail = steps.into_iter().next().map(|step| step.detail).unwrap_or_default();
        let unreadable = |error: serde_json::Error| {
            Failure::new(
                ErrorCode::Internal,
                "what was run is not written down in a form that is understood here",
            )
            .caused_by(&error)
        };
        let rerun = match record.kind {
            OperationKind::Context => {
                let JournaledCode { timeout_ms, context_env, env } =
                    serde_json::from_value(detail).map_err(unreadable)?;
                let code = code(&record, timeout_ms)?;
                Rerun {
                    what: RerunKind::Code(Box::new(code)),
                    env: env.into_iter().chain(context_env).collect(),
                    had_input: false,
                }
            }
            _ => {
                let Journaled { mut spec, .. } = serde_json::from_value(detail).map_err(unreadable)?;
                let env = std::mem::take(&mut spec.env).into_keys().collect();
                let had_input = std::mem::take(&mut spec.stdin);
                spec.tag = None;
                Rerun { what: RerunKind::Exec(Box::new(spec)), env, had_input }
            }
        };
        Ok((record, rerun))
    }

    /// The names of the variables that all processes of a VM find ([`Command::Inspect`]).
    pub fn variables(&self, permit: &Authorized<Command>) -> Result<BTreeSet<String>, Failure> {
        let mut env = Default::default();
        self.inspected(permit, "variables")?.complete(&mut env);
        Ok(env.into_keys().collect())
    }

    /// One fork ([`Command::Fork`]) that lives as long as the returned guard.
    pub async fn fork_for_request(&self, permit: Authorized<Command>) -> Result<RequestVm, Failure> {
        let owner = permit.grant().actor().owner();
        let engine = self.clone();
        // Detached with the guard inside: a caller that goes away in the middle leaves no VM behind.
        self.fork_with(permit, Lifetime::Request, ForkSettings::default(), move |core, report| {
            let fork = report.forks.first().ok_or_else(error::shutting_down)?;
            let handle = core.manager.find(&VmRef::Id(fork.vm), &owner)?;
            Ok(RequestVm::new(engine, handle.id, handle.name))
        })
        .await
    }
}

fn code(record: &HistoryRecord, timeout_ms: Option<u64>) -> Result<ContextCode, Failure> {
    if record.what.len() as u64 != record.what_bytes {
        let message = format!(
            "of this code the history has {} of {} bytes, so it cannot be run again",
            record.what.len(),
            record.what_bytes
        );
        return Err(Failure::new(ErrorCode::WrongState, message));
    }
    let context: Option<ContextName> = record.context.clone();
    let context = context.ok_or_else(|| Failure::new(ErrorCode::Internal, "code without a context"))?;
    let language = record.language.as_deref().map(str::parse::<Language>).transpose();
    let language = language.map_err(|error| {
        Failure::new(ErrorCode::Internal, "the history has code in an unknown language").caused_by(&error)
    })?;
    Ok(ContextCode {
        context,
        language,
        code: record.what.clone(),
        timeout: timeout_ms.map(Duration::from_millis),
        user: record.user.clone(),
        cwd: record.cwd.clone(),
        context_env: Default::default(),
        env: Default::default(),
        existing: false,
    })
}
