//! Starting processes in guests, attaching to them, and taking up those that an earlier daemon started.

use crate::{
    AttachFrom, Engine, ExecSession, ExecState, ExecView, OnDrop,
    core::{Authority, Core},
    error,
    execs::{Takeover, ways},
    history::{self, Capture},
    link::GuestLink,
    manager::VmHandle,
    operations::Ticket,
    pump::{Opening, Pump},
    session::{self, Sink},
    tasks::TaskKind,
};
use offshoot_guest_proto::message as wire;
use offshoot_policy::Authorized;
use offshoot_store::{HistoryEnd, NewHistory};
use offshoot_types::{
    Command, ExecArgv, ExecId, ExecSpec, ExecStatus, Failure, Operation, OperationId, OperationKind,
    OperationOutcome, TransactionId, VmId, VmRef,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::mpsc::error::SendError;

/// The one step of an exec's journal; its detail is a [`Journaled`].
pub(crate) const STEP: &str = "exec";

/// What is written down of an exec: enough to list it and to take it up again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Journaled {
    /// Without the values of its environment: they may be secrets.
    pub spec: ExecSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ExecStatus>,
}

/// An exec is the operation that started it: one id for both.
pub(crate) const fn exec_id(operation: OperationId) -> ExecId {
    ExecId::from_uuid(*operation.as_uuid())
}
pub(crate) const fn operation_id(exec: ExecId) -> OperationId {
    OperationId::from_uuid(*exec.as_uuid())
}

impl Engine {
    /// Runs a process ([`Command::Exec`]). Returns when the guest is being asked; the session's first event
    /// tells whether it started. Dropping the session kills the process unless told otherwise.
    pub async fn exec(&self, permit: Authorized<Command>) -> Result<ExecSession, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::Exec { vm, spec } = &command else {
            return Err(error::wrong_permit("exec", command.action()));
        };
        let core = self.core().clone();
        let handle = core.manager.find(vm, &grant.actor().owner())?;
        let (authority, spec) = (Authority::Granted(Box::new(grant)), spec.clone());
        let within = self.transaction();
        self.core()
            .detached(TaskKind::Acceptor, async move {
                core.exec_by_policy(&handle, authority, command, *spec, within).await
            })
            .await
    }

    /// Takes over the streams of a process ([`Command::Attach`]), replaying output from these offsets as far as
    /// the guest's ring still holds it. An earlier session of the process ends with `Detached`.
    pub async fn attach(
        &self,
        permit: Authorized<Command>,
        from: AttachFrom,
    ) -> Result<ExecSession, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::Attach { vm, exec } = command else {
            return Err(error::wrong_permit("attach", command.action()));
        };
        let core = self.core().clone();
        let handle = core.manager.find(&vm, &grant.actor().owner())?;
        let authority = Authority::Granted(Box::new(grant));
        self.core()
            .detached(TaskKind::Acceptor, async move { core.attach(&handle, authority, exec, from).await })
            .await
    }
}

impl Core {
    pub(crate) async fn exec(
        self: &Arc<Self>,
        handle: &VmHandle,
        authority: Authority,
        command: Command,
        spec: ExecSpec,
        within: Option<TransactionId>,
    ) -> Result<ExecSession, Failure> {
        let (input, events, sink) = session::channels(OnDrop::Kill);
        let operation = self.exec_into(handle, authority, command, spec, within, sink).await?;
        Ok(ExecSession::of(handle.id, exec_id(operation), operation, input, events))
    }

    /// Starts a process whose streams go to `sink`.
    pub(crate) async fn exec_into(
        self: &Arc<Self>,
        handle: &VmHandle,
        authority: Authority,
        command: Command,
        mut spec: ExecSpec,
        within: Option<TransactionId>,
        sink: Sink,
    ) -> Result<OperationId, Failure> {
        self.manager.check_open()?;
        handle.complete(&mut spec.env);
        let opening = handle.shared.openings.enter();
        let vm = Some((handle.id, &handle.name));
        let new = self.new_operation(&authority, OperationKind::Exec, vm, &handle.owner, reason(&spec));
        let detail = journaled(&spec);
        let written = detail.clone();
        let history = NewHistory {
            operation: new.id,
            agent: authority.agent(),
            what: history::command_line(&spec.argv),
            language: None,
            context: None,
            user: spec.user.clone(),
            cwd: spec.cwd.clone(),
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
        let operation = begun.into_operation();
        let ticket = self.opened(operation.clone());
        let link = match self.borrow_guest(handle, authority, Some(command), within).await {
            Ok(link) => link,
            Err(failure) => {
                self.close(ticket, OperationOutcome::Failed { failure: failure.clone() }).await;
                return Err(failure);
            }
        };
        let exec = exec_id(operation.id);
        let start = Opening::Start(Box::new(start_message(exec, &spec)));
        let (ways, ways_in) = ways();
        handle.shared.execs.insert(view(&operation, handle.id, spec.clone()), ways);
        self.count();
        let pump = Pump {
            core: self.clone(),
            vm: handle.name.clone(),
            shared: handle.shared.clone(),
            link,
            exec,
            ticket: Some(ticket),
            durable: Some(durable),
            ways: ways_in,
            keeps: true,
            sink: Some(sink),
            stdout: 0,
            stderr: 0,
            timeout: spec.limits.timeout,
            pty: spec.pty.is_some(),
            detail,
            capture: Some(Capture::new(self, operation.id)),
            opening: Some(opening),
        };
        let scope = crate::core::scope(&operation);
        self.tasks.spawn(TaskKind::ExecPump, scope, pump.run(start));
        Ok(operation.id)
    }

    async fn attach(
        self: &Arc<Self>,
        handle: &VmHandle,
        authority: Authority,
        exec: ExecId,
        from: AttachFrom,
    ) -> Result<ExecSession, Failure> {
        let command = Command::Attach { vm: VmRef::Id(handle.id), exec };
        let link = self.borrow_guest(handle, authority, Some(command), None).await?;
        let Some((view, ways)) = handle.shared.execs.get(exec) else {
            return Err(error::exec_not_found(&handle.name, exec));
        };
        let (session, sink) = ExecSession::new(handle.id, exec, operation_id(exec), OnDrop::Detach);
        let taken = ways.takeover.send(Takeover { sink, stdout: from.stdout, stderr: from.stderr }).await;
        if let Err(SendError(Takeover { sink, .. })) = taken {
            // It has ended; the guest keeps its last output for a while.
            self.read_along(handle, link, &view, sink, from);
        }
        Ok(session)
    }

    /// A pump of its own for this session, beside that by which the exec is known, if it has one.
    pub(crate) fn read_along(
        self: &Arc<Self>,
        handle: &VmHandle,
        link: GuestLink,
        exec: &ExecView,
        sink: Sink,
        from: AttachFrom,
    ) {
        let pump = Pump {
            core: self.clone(),
            vm: handle.name.clone(),
            shared: handle.shared.clone(),
            link,
            exec: exec.id,
            ticket: None,
            durable: None,
            ways: ways().1,
            keeps: false,
            sink: Some(sink),
            stdout: from.stdout,
            stderr: from.stderr,
            timeout: None,
            pty: exec.spec.pty.is_some(),
            detail: Value::Null,
            capture: None,
            opening: None,
        };
        let scope = crate::trace::Scope { vm: Some(handle.id), ..Default::default() };
        self.tasks.spawn(TaskKind::ExecPump, scope, pump.run(Opening::Attach));
    }

    /// Takes up an exec that an earlier daemon started: it runs on, unattended until somebody attaches.
    pub async fn take_up_exec(
        self: &Arc<Self>,
        handle: &VmHandle,
        link: GuestLink,
        ticket: Ticket,
        detail: Value,
    ) {
        let operation = ticket.operation().clone();
        let exec = exec_id(operation.id);
        let Ok(Journaled { spec, .. }) = serde_json::from_value(detail.clone()) else {
            // Written by another version: it runs on, but nobody here knows what it is.
            drop(self.close(ticket, OperationOutcome::Interrupted { undone: false }).await);
            return;
        };
        let (ways, ways_in) = ways();
        let pty = spec.pty.is_some();
        handle.shared.execs.insert(view(&operation, handle.id, spec), ways);
        self.count();
        let pump = Pump {
            core: self.clone(),
            vm: handle.name.clone(),
            shared: handle.shared.clone(),
            link,
            exec,
            ticket: Some(ticket),
            durable: None,
            ways: ways_in,
            keeps: true,
            sink: None,
            stdout: 0,
            stderr: 0,
            // The guest enforces it; since when it runs, only the guest knows.
            timeout: None,
            pty,
            detail,
            // Of what came before this daemon it has what the guest still holds.
            capture: Some(Capture::new(self, operation.id)),
            opening: None,
        };
        self.tasks.spawn(TaskKind::ExecPump, crate::core::scope(&operation), pump.run(Opening::Attach));
    }

    /// As `close`, with the exec's status in its journal and what else is known of it in its history.
    pub async fn close_exec(
        &self,
        ticket: Ticket,
        outcome: OperationOutcome,
        detail: Value,
        history: HistoryEnd,
    ) {
        let id = ticket.id();
        let status = Journaled::deserialize(&detail).ok().and_then(|journaled| journaled.status);
        let also = move |tx: &offshoot_store::Tx<'_>| {
            tx.step_done(id, 0, Some(&detail))?;
            tx.put_history(id, &history)?;
            // What "the last failed exec" goes by.
            status.map_or(Ok(()), |status| tx.exec_ended(id, status))
        };
        self.close_with(ticket, outcome, also).await;
    }
}

fn view(operation: &Operation, vm: VmId, spec: ExecSpec) -> ExecView {
    ExecView {
        id: exec_id(operation.id),
        vm,
        operation: operation.id,
        spec,
        pid: None,
        started: operation.created,
        state: ExecState::Running,
    }
}

fn journaled(spec: &ExecSpec) -> Value {
    let mut spec = spec.clone();
    for value in spec.env.values_mut() {
        value.clear();
    }
    json!(Journaled { spec, status: None })
}

/// The command line, cut to what a list can show.
pub(crate) fn reason(spec: &ExecSpec) -> String {
    const MOST: usize = 200;
    let line = match &spec.argv {
        ExecArgv::Argv(argv) => argv.join(" "),
        ExecArgv::Shell(script) => script.clone(),
    };
    let clean: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST + 1).collect();
    let shown: String = clean.chars().take(MOST).collect();
    let more = if clean.len() > shown.len() { "..." } else { "" };
    format!("run as {}: {shown}{more}", spec.user)
}

fn start_message(exec: ExecId, spec: &ExecSpec) -> wire::ExecStart {
    let limits = &spec.limits;
    wire::ExecStart {
        exec: *exec.as_uuid().as_bytes(),
        command: match &spec.argv {
            ExecArgv::Argv(argv) => wire::ExecCommand::Argv(argv.clone()),
            ExecArgv::Shell(script) => wire::ExecCommand::Shell(script.clone()),
        },
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
        pty: spec.pty.map(|size| wire::PtySize { rows: size.rows, cols: size.cols }),
        stdin: spec.stdin,
        timeout_ms: limits.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        max_output: limits.max_output.map(|bytes| bytes.0),
        limits: wire::ResourceLimits {
            open_files: limits.max_open_files,
            address_space: limits.max_address_space.map(|bytes| bytes.0),
            file_size: limits.max_file_size.map(|bytes| bytes.0),
            cpu_seconds: limits.max_cpu_seconds,
            processes: limits.max_processes,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_types::ExecLimits;

    fn spec() -> ExecSpec {
        ExecSpec {
            argv: ExecArgv::Argv(vec!["sh".into(), "-c".into(), "x\ny".repeat(200)]),
            env: [("TOKEN".into(), "hunter2".into())].into(),
            cwd: None,
            user: "root".into(),
            pty: None,
            stdin: false,
            tag: None,
            limits: ExecLimits::default(),
        }
    }

    #[test]
    fn the_journal_keeps_the_names_but_not_the_values_of_the_environment() {
        let text = journaled(&spec()).to_string();
        assert!(text.contains("TOKEN") && !text.contains("hunter2"), "{text}");
        let back: Journaled = serde_json::from_value(journaled(&spec())).unwrap();
        assert_eq!(back.spec.argv, spec().argv);
    }

    #[test]
    fn the_reason_of_an_exec_is_one_bounded_line() {
        let reason = reason(&spec());
        assert!(reason.starts_with("run as root: sh -c x y"), "{reason}");
        assert!(reason.len() < 250 && !reason.contains('\n') && reason.ends_with("..."));
    }
}
