//! Processes as a VM's guest has them now: found, read along by any number of callers, given input by any of them.
//!
//! ```text
//! pid or tag --> known here and running ------------------------------------------> ExecView
//!      '-------> not, or its VM went away meanwhile --ask the guest--> taken up --------^
//!
//! guest ring --> pump that keeps the exec --> its session        each reads at its own pace; the process waits for the
//!          '---> pump of each follower ------> that follower     slowest within the ring's size
//! ```
//! A process goes on in a VM that was suspended and resumed, rolled back or forked, though its exec has ended here or was
//! another VM's. Whoever asks for it then has it taken up again: streamed and given input, with no operation of its own.

use crate::{
    AttachFrom, Engine, ExecEvents, ExecInput, ExecState, ExecView, OnDrop,
    core::{Authority, Core},
    error,
    exec::{Journaled, operation_id},
    execs::ways,
    link::GuestLink,
    manager::VmHandle,
    pump::{Opening, Pump},
    session,
    tasks::TaskKind,
};
use offshoot_guest_proto::{
    client::Client,
    message::{ExecSummary, ExitKind, Usage},
};
use offshoot_policy::{Authorized, Grant};
use offshoot_types::{Command, ErrorCode, ExecArgv, ExecId, ExecLimits, ExecSpec, ExecStatus, Failure};
use serde::Deserialize as _;
use serde_json::Value;
use std::{collections::BTreeMap, fmt, sync::Arc};
use tokio::time::Instant;
use uuid::Uuid;

/// Which process of a VM is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessSelector {
    Pid(u32),
    /// As given with its [`ExecSpec`].
    Tag(String),
}

impl fmt::Display for ProcessSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "process {pid}"),
            Self::Tag(tag) => write!(f, "process tagged `{tag}`"),
        }
    }
}

impl ProcessSelector {
    fn means(&self, view: &ExecView) -> bool {
        match self {
            Self::Pid(pid) => view.pid == Some(*pid),
            Self::Tag(tag) => view.spec.tag.as_ref() == Some(tag),
        }
    }
}

impl Engine {
    /// Processes that run in the VM ([`Command::Inspect`]), newest first, as its guest has them now.
    pub async fn processes(&self, permit: Authorized<Command>) -> Result<Vec<ExecView>, Failure> {
        let (core, handle, command, grant) = self.about_processes(permit, "processes")?;
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let mut views = core.taken_up(&handle, grant, command).await?;
                views.retain(|view| view.state == ExecState::Running);
                Ok(views)
            })
            .await
    }

    /// One that runs or has lately ended ([`Command::Inspect`]); of several that were called the same, one that runs,
    /// or else the newest.
    pub async fn find_process(
        &self,
        permit: Authorized<Command>,
        which: ProcessSelector,
    ) -> Result<ExecView, Failure> {
        let (core, handle, command, grant) = self.about_processes(permit, "find_process")?;
        if let Some(view) = find(handle.shared.execs.list(), &which)
            && view.state == ExecState::Running
        {
            return Ok(view);
        }
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let views = core.taken_up(&handle, grant, command).await?;
                find(views, &which).ok_or_else(|| {
                    Failure::new(ErrorCode::NotFound, format!("there is no {which} in VM `{}`", handle.name))
                })
            })
            .await
    }

    /// What a process prints from now on, or with `replay` all that the guest still holds of it, and how it ends
    /// ([`Command::Attach`]). Others' sessions of it go on. Dropping the events lets the process run on.
    pub async fn follow(&self, permit: Authorized<Command>, replay: bool) -> Result<ExecEvents, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::Attach { ref vm, exec } = command else {
            return Err(error::wrong_permit("follow", command.action()));
        };
        let core = self.core().clone();
        let handle = core.manager.find(vm, &grant.actor().owner())?;
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let authority = Authority::Granted(Box::new(grant));
                let link = core.borrow_guest(&handle, authority, Some(command), None).await?;
                let Some((view, _)) = handle.shared.execs.get(exec) else {
                    return Err(error::exec_not_found(&handle.name, exec));
                };
                let from = match replay {
                    true => AttachFrom { stdout: 0, stderr: 0 },
                    false => core.printed(&handle, &link, exec).await?,
                };
                let (_, events, sink) = session::channels(OnDrop::Detach);
                core.read_along(&handle, link, &view, sink, from);
                Ok(events)
            })
            .await
    }

    /// The way to a running process's input for a caller that has no session of it ([`Command::Attach`]).
    pub async fn process_input(&self, permit: Authorized<Command>) -> Result<ExecInput, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::Attach { vm, exec } = command else {
            return Err(error::wrong_permit("process_input", command.action()));
        };
        let handle = self.core().manager.find(&vm, &grant.actor().owner())?;
        match handle.shared.execs.get(exec) {
            Some((view, ways)) if view.state == ExecState::Running => Ok(ways.input),
            _ => Err(error::exec_not_found(&handle.name, exec)),
        }
    }

    /// What the VM uses of what it has ([`Command::Inspect`]), measured by its guest.
    pub async fn usage(&self, permit: Authorized<Command>) -> Result<Usage, Failure> {
        let (core, handle, command, grant) = self.about_processes(permit, "usage")?;
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let authority = Authority::Granted(Box::new(grant));
                let link = core.borrow_guest(&handle, authority, Some(command), None).await?;
                let client = core.client_of(&handle, &link).await?;
                client.usage().await.map_err(|error| error::guest_failure(&handle.name, &error))
            })
            .await
    }

    fn about_processes(
        &self,
        permit: Authorized<Command>,
        method: &'static str,
    ) -> Result<(Arc<Core>, VmHandle, Command, Grant), Failure> {
        let handle = self.inspected(&permit, method)?;
        let (command, grant) = permit.into_parts();
        Ok((self.core().clone(), handle, command, grant))
    }
}

/// What the guest has, those that lately ended included.
async fn known(handle: &VmHandle, client: &Client) -> Result<Vec<ExecSummary>, Failure> {
    client.list_execs().await.map_err(|error| error::guest_failure(&handle.name, &error))
}

fn find(views: Vec<ExecView>, which: &ProcessSelector) -> Option<ExecView> {
    let mut meant: Vec<ExecView> = views.into_iter().filter(|view| which.means(view)).collect();
    let running = meant.iter().position(|view| view.state == ExecState::Running);
    (!meant.is_empty()).then(|| meant.swap_remove(running.unwrap_or(0)))
}

impl Core {
    /// All that the guest knows and all that is known here, newest first, what runs in the guest taken up.
    async fn taken_up(
        self: &Arc<Self>,
        handle: &VmHandle,
        grant: Grant,
        command: Command,
    ) -> Result<Vec<ExecView>, Failure> {
        let authority = Authority::Granted(Box::new(grant));
        let link = self.borrow_guest(handle, authority, Some(command), None).await?;
        let client = self.client_of(handle, &link).await?;
        for summary in known(handle, &client).await? {
            let exec = ExecId::from_uuid(Uuid::from_bytes(summary.exec));
            let here = handle.shared.execs.get(exec).map(|(view, _)| view);
            // One that has ended here may run there again: the VM was rolled back.
            let settled = here.as_ref().is_some_and(|view| match view.state {
                ExecState::Running => true,
                ExecState::Ended(_) => summary.ended.is_some(),
                ExecState::Failed(_) | ExecState::Interrupted => false,
            });
            if !settled {
                self.take_up_again(handle, &link, exec, &summary, here).await?;
            }
        }
        Ok(handle.shared.execs.list())
    }

    /// Where the output of a process ends now. Only its guest knows: it ran before this daemon, perhaps, or was brought back
    /// by a rollback.
    async fn printed(
        &self,
        handle: &VmHandle,
        link: &GuestLink,
        exec: ExecId,
    ) -> Result<AttachFrom, Failure> {
        let client = self.client_of(handle, link).await?;
        let summaries = known(handle, &client).await?;
        let own = summaries.into_iter().find(|summary| summary.exec == *exec.as_uuid().as_bytes());
        // The guest is only just told to begin it.
        let none = AttachFrom { stdout: 0, stderr: 0 };
        Ok(own.map_or(none, |own| AttachFrom { stdout: own.stdout, stderr: own.stderr }))
    }

    async fn client_of(&self, handle: &VmHandle, link: &GuestLink) -> Result<Client, Failure> {
        let until = Instant::now() + self.options.deadlines.reconnect;
        link.client(until).await.map_err(|error| error::guest_silent(&handle.name, &error.to_string()))
    }

    /// A process that the guest has and that nobody here attends to.
    async fn take_up_again(
        self: &Arc<Self>,
        handle: &VmHandle,
        link: &GuestLink,
        exec: ExecId,
        summary: &ExecSummary,
        here: Option<ExecView>,
    ) -> Result<(), Failure> {
        let state = match summary.ended {
            None => ExecState::Running,
            Some(end) => ExecState::Ended(match end.status {
                ExitKind::Code(code) => ExecStatus::Exited(code),
                ExitKind::Signal(signal) => ExecStatus::Signaled(signal),
                ExitKind::TimedOut => ExecStatus::TimedOut,
            }),
        };
        let view = match here {
            Some(view) => ExecView { pid: Some(summary.pid), state, ..view },
            None => ExecView {
                id: exec,
                vm: handle.id,
                operation: operation_id(exec),
                spec: self.journaled_spec(exec).await?,
                pid: Some(summary.pid),
                started: self.now(),
                state,
            },
        };
        let (ways, ways_in) = ways();
        let pty = view.spec.pty.is_some();
        let runs = view.state == ExecState::Running;
        let another = handle.shared.execs.insert_unless_running(view, ways);
        if !runs || another.is_some() {
            return Ok(());
        }
        let pump = Pump {
            core: self.clone(),
            vm: handle.name.clone(),
            shared: handle.shared.clone(),
            link: link.clone(),
            exec,
            ticket: None,
            durable: None,
            ways: ways_in,
            keeps: true,
            sink: None,
            // Who wants what was printed before says so when it attaches.
            stdout: summary.stdout,
            stderr: summary.stderr,
            timeout: None,
            pty,
            detail: Value::Null,
            // Its history was written when it ended the first time, or is another record's.
            capture: None,
            opening: None,
        };
        let scope = crate::trace::Scope { vm: Some(handle.id), ..Default::default() };
        self.tasks.spawn(TaskKind::ExecPump, scope, pump.run(Opening::Attach));
        self.count();
        Ok(())
    }

    /// What was written down when it was started, be it in another VM of this state directory. One of a VM that was
    /// imported has left nothing here.
    async fn journaled_spec(&self, exec: ExecId) -> Result<ExecSpec, Failure> {
        let steps = self.store.steps(operation_id(exec)).await?;
        let journaled = steps.first().and_then(|step| Journaled::deserialize(&step.detail).ok());
        Ok(journaled.map_or_else(unknown, |journaled| journaled.spec))
    }
}

fn unknown() -> ExecSpec {
    ExecSpec {
        argv: ExecArgv::Argv(Vec::new()),
        env: BTreeMap::new(),
        cwd: None,
        user: String::new(),
        pty: None,
        stdin: true,
        tag: None,
        limits: ExecLimits::default(),
    }
}
