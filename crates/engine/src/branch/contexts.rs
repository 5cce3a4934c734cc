//! Live interpreters of a VM: run code in one, list, end, begin anew.
//!
//! ```text
//! run_code --> operation + step on disk --> driver: may the guest be used? --> pump --> CodeSession
//!                 (one commit, as an exec)                                       '--> outcome, context noted: one commit
//! ```
//! A context lives in the guest's memory. What the record says of it is a note for lists, brought together with what the
//! guest says whenever that is asked.

mod pump;

use super::CodeSession;
use crate::{
    Engine,
    core::{Authority, Core},
    error,
    history::Capture,
    link::GuestLink,
    manager::VmHandle,
    tasks::TaskKind,
};
use offshoot_guest_proto::{client::Client, message as wire};
use offshoot_policy::Authorized;
use offshoot_store::NewHistory;
use offshoot_types::{
    Command, ContextCode, ContextName, ErrorCode, Failure, Language, OperationKind, OperationOutcome, VmId,
    VmStateName,
};
use pump::CodePump;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};

/// The one step of the journal of code; its detail says what was to be run.
pub(crate) const STEP: &str = "code";
/// Characters of the code that are kept in the history.
const KEPT_CODE: usize = 4096;
/// Events buffered between the pump and a caller; each holds at most one chunk of the guest protocol.
const EVENT_DEPTH: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextView {
    pub context: ContextName,
    pub language: Language,
    /// Of the interpreter; `None` where it has ended and none was made anew yet, and while the VM does not run.
    pub pid: Option<u32>,
    /// Whether code runs in it now.
    pub busy: bool,
    /// Whose it is and where it started; only the guest knows it.
    pub home: Option<ContextHome>,
    /// By the guest's clock.
    pub age: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextHome {
    pub user: String,
    pub cwd: String,
}

impl Engine {
    /// Runs code in a live interpreter ([`Command::RunCode`]), which is made on first use. Returns when the guest is being
    /// asked; the session's first event tells whether it ran. Code for a context that is busy waits its turn. Dropping the
    /// session interrupts the code; its variables stay.
    pub async fn run_code(&self, permit: Authorized<Command>) -> Result<CodeSession, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::RunCode { vm, code } = &command else {
            return Err(error::wrong_permit("run_code", command.action()));
        };
        let (core, within) = (self.core().clone(), self.transaction());
        let handle = core.manager.find(vm, &grant.actor().owner())?;
        let (authority, mut code) = (Authority::Granted(Box::new(grant)), code.clone());
        // Of a context that is there already this changes nothing.
        handle.complete(&mut code.context_env);
        self.core()
            .detached(TaskKind::Acceptor, async move {
                core.run_code(&handle, authority, command, *code, within).await
            })
            .await
    }

    /// The interpreters of the VM named ([`Command::Inspect`]), by name. Of one that runs the guest is asked; of one that
    /// is paused or suspended the record tells.
    pub async fn contexts(&self, permit: Authorized<Command>) -> Result<Vec<ContextView>, Failure> {
        let handle = self.inspected(&permit, "contexts")?;
        let (command, grant) = permit.into_parts();
        let state = handle.view.borrow().state.name();
        let core = self.core();
        match state {
            VmStateName::Running => {
                let (_link, client) =
                    core.guest_client(&handle, Authority::Granted(Box::new(grant)), command, None).await?;
                core.listed_contexts(&handle, &client).await
            }
            // Their memory is kept, and they with it.
            VmStateName::Paused | VmStateName::Suspended => core.noted_contexts(handle.id).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Ends an interpreter and all it has started ([`Command::RemoveContext`]).
    pub async fn remove_context(&self, permit: Authorized<Command>) -> Result<(), Failure> {
        self.change_context(permit, "remove_context", Change::Remove).await
    }

    /// Ends an interpreter and begins it anew, without its variables ([`Command::RestartContext`]).
    pub async fn restart_context(&self, permit: Authorized<Command>) -> Result<(), Failure> {
        self.change_context(permit, "restart_context", Change::Restart).await
    }

    async fn change_context(
        &self,
        permit: Authorized<Command>,
        method: &'static str,
        change: Change,
    ) -> Result<(), Failure> {
        let (command, grant) = permit.into_parts();
        let (vm, context) = match (&command, change) {
            (Command::RemoveContext { vm, context }, Change::Remove)
            | (Command::RestartContext { vm, context }, Change::Restart) => (vm, context.clone()),
            _ => return Err(error::wrong_permit(method, command.action())),
        };
        let (core, within) = (self.core().clone(), self.transaction());
        let handle = core.manager.find(vm, &grant.actor().owner())?;
        let authority = Authority::Granted(Box::new(grant));
        // Detached: a caller that goes away in the middle leaves no operation without an outcome.
        self.core()
            .detached(TaskKind::Acceptor, async move {
                core.change_context(&handle, authority, command, context, change, within).await
            })
            .await
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Remove,
    Restart,
}

impl Core {
    async fn run_code(
        self: &Arc<Self>,
        handle: &VmHandle,
        authority: Authority,
        command: Command,
        mut code: ContextCode,
        within: Option<offshoot_types::TransactionId>,
    ) -> Result<CodeSession, Failure> {
        self.manager.check_open()?;
        handle.complete(&mut code.context_env);
        self.keep_before_code(handle, &authority, &code, within).await?;
        let opening = handle.shared.openings.enter();
        let vm = Some((handle.id, &handle.name));
        let new = self.new_operation(&authority, OperationKind::Context, vm, &handle.owner, reason(&code));
        let detail = journaled(&code);
        let written = detail.clone();
        let history = NewHistory {
            operation: new.id,
            agent: authority.agent(),
            what: code.code.clone(),
            language: code.language.map(|language| language.to_string()),
            context: Some(code.context.clone()),
            user: code.user.clone(),
            cwd: code.cwd.clone(),
            transaction: within,
        };
        // Journaled before anybody is asked: the operation, its only step and its history in one write. While it goes to the
        // disk the guest begins; nobody hears of that before it is there.
        let begun = self.store.transaction_early(move |tx| {
            let begun = tx.begin_operation(&new)?;
            tx.step_begun(begun.operation().id, 0, STEP, &written)?;
            tx.begin_history(&history)?;
            Ok(begun)
        });
        let (begun, durable) = begun.await?;
        let ticket = self.opened(begun.into_operation());
        let link = match self.borrow_guest(handle, authority, Some(command), within).await {
            Ok(link) => link,
            Err(failure) => {
                self.close(ticket, OperationOutcome::Failed { failure: failure.clone() }).await;
                return Err(failure);
            }
        };
        let (events, receiver) = mpsc::channel(EVENT_DEPTH);
        let (interrupts, interrupted) = mpsc::channel(1);
        let session = CodeSession {
            vm: handle.id,
            operation: ticket.id(),
            context: code.context.clone(),
            interrupts,
            events: receiver,
        };
        let scope = crate::core::scope(ticket.operation());
        let capture = Capture::new(self, ticket.id());
        let pump = CodePump {
            core: self.clone(),
            vm: handle.id,
            name: handle.name.clone(),
            link,
            ticket,
            durable: Some(durable),
            detail,
            capture,
            events,
            interrupts: interrupted,
            opening: Some(opening),
            code,
        };
        self.tasks.spawn(TaskKind::CodePump, scope, pump.run());
        Ok(session)
    }

    /// A client of a guest that may be used, for as long as the link is held.
    async fn guest_client(
        &self,
        handle: &VmHandle,
        authority: Authority,
        command: Command,
        within: Option<offshoot_types::TransactionId>,
    ) -> Result<(GuestLink, Client), Failure> {
        let link = self.borrow_guest(handle, authority, Some(command), within).await?;
        let until = Instant::now() + self.options.deadlines.reconnect;
        let client = link.client(until).await;
        let client = client.map_err(|error| error::guest_silent(&handle.name, &error.to_string()))?;
        Ok((link, client))
    }

    async fn change_context(
        &self,
        handle: &VmHandle,
        authority: Authority,
        command: Command,
        context: ContextName,
        change: Change,
        within: Option<offshoot_types::TransactionId>,
    ) -> Result<(), Failure> {
        self.manager.check_open()?;
        let reason = match change {
            Change::Remove => format!("end context `{context}`"),
            Change::Restart => format!("begin context `{context}` anew"),
        };
        let vm = Some((handle.id, &handle.name));
        let new = self.new_operation(&authority, OperationKind::Context, vm, &handle.owner, reason);
        let ticket = self.opened(self.store.begin_operation(new).await?.into_operation());
        let asked = async {
            let (_link, client) = self.guest_client(handle, authority, command, within).await?;
            let name = context.as_str();
            let done = match change {
                Change::Remove => client.remove_context(name).await,
                Change::Restart => client.restart_context(name).await,
            };
            done.map_err(|error| error::guest_failure(&handle.name, &error))
        };
        match asked.await {
            Ok(()) => {
                let id = handle.id;
                let also = move |tx: &offshoot_store::Tx<'_>| match change {
                    Change::Remove => tx.forget_context(id, &context),
                    Change::Restart => Ok(()),
                };
                self.close_with(ticket, OperationOutcome::Done, also).await;
                Ok(())
            }
            Err(failure) => {
                self.close(ticket, OperationOutcome::Failed { failure: failure.clone() }).await;
                Err(failure)
            }
        }
    }

    /// What the guest says; the record follows it.
    async fn listed_contexts(&self, handle: &VmHandle, client: &Client) -> Result<Vec<ContextView>, Failure> {
        let listed = client.contexts().await.map_err(|error| error::guest_failure(&handle.name, &error))?;
        let now = self.now();
        let mut views = BTreeMap::new();
        for info in listed {
            let view = view(&handle.name, info, now)?;
            views.insert(view.context.clone(), view);
        }
        let noted = self.store.contexts(handle.id).await?;
        let same = noted.len() == views.len()
            && noted.iter().all(|note| views.get(&note.name).is_some_and(|v| v.language == note.language));
        if !same {
            let (id, found): (VmId, Vec<(ContextName, Language)>) =
                (handle.id, views.values().map(|view| (view.context.clone(), view.language)).collect());
            self.store
                .transaction(move |tx| {
                    for note in tx.contexts(id)? {
                        if !found.iter().any(|(name, _)| *name == note.name) {
                            tx.forget_context(id, &note.name)?;
                        }
                    }
                    found.iter().try_for_each(|(name, language)| tx.put_context(id, name, *language))
                })
                .await?;
        }
        Ok(views.into_values().collect())
    }

    async fn noted_contexts(&self, vm: VmId) -> Result<Vec<ContextView>, Failure> {
        let now = self.now();
        let noted = self.store.contexts(vm).await?;
        let views = noted.into_iter().map(|note| ContextView {
            context: note.name,
            language: note.language,
            pid: None,
            busy: false,
            home: None,
            age: now.duration_since(note.created).try_into().unwrap_or_default(),
        });
        Ok(views.collect())
    }
}

/// The guest says it; a name that is none, or a time before 1970, is no context of ours.
fn view(
    vm: &offshoot_types::VmName,
    info: wire::ContextInfo,
    now: jiff::Timestamp,
) -> Result<ContextView, Failure> {
    let context = info.context.parse().map_err(|error: offshoot_types::InvalidName| {
        Failure::new(ErrorCode::Guest, format!("the guest of VM `{vm}` lists a context without a valid name"))
            .caused_by(&error)
    })?;
    let now_ms = u64::try_from(now.as_millisecond()).unwrap_or_default();
    Ok(ContextView {
        context,
        language: info.language.into(),
        pid: info.pid,
        busy: info.busy,
        home: Some(ContextHome { user: info.user, cwd: info.cwd }),
        age: Duration::from_millis(now_ms.saturating_sub(info.created_ms)),
    })
}

/// What is written down of code: enough to tell later what was run.
fn journaled(code: &ContextCode) -> Value {
    let ContextCode { context, language, code, timeout, user, cwd, context_env, env, existing } = code;
    let kept: String = code.chars().take(KEPT_CODE).collect();
    let cut = kept.len() < code.len();
    let timeout_ms = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    json!({
        "context": context, "language": language, "user": user, "cwd": cwd, "timeout_ms": timeout_ms,
        "code": kept, "cut": cut, "bytes": code.len(), "existing": existing,
        // The values may be secrets.
        "context_env": context_env.keys().collect::<Vec<_>>(), "env": env.keys().collect::<Vec<_>>(),
    })
}

/// The first line that says something, cut to what a list can show.
fn reason(code: &ContextCode) -> String {
    const MOST: usize = 120;
    let line = code.code.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let shown: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect();
    let more = if shown.chars().count() < code.code.trim().chars().count() { "..." } else { "" };
    format!("in context `{}`: {shown}{more}", code.context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> ContextCode {
        ContextCode {
            context: "main".parse().unwrap(),
            language: None,
            code: text.into(),
            timeout: Some(Duration::from_secs(2)),
            user: "root".into(),
            cwd: None,
            context_env: BTreeMap::new(),
            env: [("TOKEN".to_owned(), "hunter2".to_owned())].into(),
            existing: false,
        }
    }

    #[test]
    fn the_reason_of_code_is_its_first_line_bounded() {
        assert_eq!(reason(&code("\n  x = 1\ny = 2\n")), "in context `main`: x = 1...");
        assert_eq!(reason(&code("x = 1\n")), "in context `main`: x = 1");
        let long = reason(&code(&"ä\u{7}".repeat(500)));
        assert!(long.ends_with("...") && long.chars().count() < 160 && !long.contains('\u{7}'), "{long}");
    }

    #[test]
    fn the_journal_keeps_the_beginning_of_long_code_and_says_that_it_is_cut() {
        let text = "é".repeat(KEPT_CODE + 1);
        let kept = journaled(&code(&text));
        assert_eq!(kept["code"].as_str().unwrap().chars().count(), KEPT_CODE);
        assert_eq!((&kept["cut"], kept["bytes"].as_u64()), (&json!(true), Some(text.len() as u64)));
        assert_eq!(journaled(&code("x"))["cut"], json!(false));
        assert!(kept["env"][0] == "TOKEN" && !kept.to_string().contains("hunter2"), "{kept}");
    }

    #[test]
    fn a_guest_that_lists_nonsense_is_told_so_and_its_clock_may_be_ahead() {
        let vm = "a".parse().unwrap();
        let info = |name: &str, created_ms| wire::ContextInfo {
            context: name.into(),
            language: wire::Language::Bash,
            pid: Some(7),
            busy: true,
            user: "root".into(),
            cwd: "/".into(),
            created_ms,
        };
        let now = jiff::Timestamp::from_millisecond(10_000).unwrap();
        assert_eq!(view(&vm, info("x", 4_000), now).unwrap().age, Duration::from_secs(6));
        assert_eq!(view(&vm, info("x", u64::MAX), now).unwrap().age, Duration::ZERO);
        assert_eq!(view(&vm, info("../x", 0), now).unwrap_err().code, ErrorCode::Guest);
    }
}
