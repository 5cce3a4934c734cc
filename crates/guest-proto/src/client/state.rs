//! Freezing a guest, and thawing one that was restored: what it attests is checked for form and against what was
//! asked for. Whether an attestation is good enough is for the caller to judge.

use super::{
    ClientError,
    call::{Call, Context},
    code::check_context_name,
};
use crate::message::{Frozen, HostOpen, MAX_CONTEXTS, MAX_HOOKS, Reseeded, Thaw, Thawed};
use std::time::Duration;

/// Beyond the guest's own deadline: for the order and the answer to travel.
const TRAVEL: Duration = Duration::from_secs(1);
/// Bytes of a hostname, a machine id, a fingerprint, a hook's name.
const MAX_NAME: usize = 255;
const MAX_REASON: usize = 4096;
/// Kinds of SSH host keys there are, with room to spare.
const MAX_HOST_KEYS: usize = 16;

/// Asks for what takes the guest as long as `limit`.
pub(super) async fn lasting(
    mut context: Context,
    open: &HostOpen,
    limit: Duration,
) -> Result<(), ClientError> {
    context.patience = limit;
    let work = async {
        let mut call = Call::open(context.clone(), open).await?;
        call.reply::<()>().await
    };
    context.within(work).await
}

pub(super) async fn freeze(mut context: Context, deadline: Duration) -> Result<Frozen, ClientError> {
    context.patience = context.patience.min(deadline.saturating_add(TRAVEL));
    let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
    let work = async {
        let mut call = Call::open(context.clone(), &HostOpen::Freeze { deadline_ms }).await?;
        call.reply::<Frozen>().await
    };
    context.within(work).await
}

pub(super) async fn thaw(context: Context, thaw: Thaw) -> Result<Thawed, ClientError> {
    let identity = thaw.identity.clone();
    let operation = context.operation;
    let mut call = Call::open(context, &HostOpen::Thaw(thaw)).await?;
    let thawed = call.reply::<Thawed>().await?;
    judge(&thawed).map_err(|problem| ClientError::protocol(operation, problem))?;
    if let Some(wanted) = identity
        && (thawed.hostname != wanted.hostname || thawed.machine_id != wanted.machine_id_text())
    {
        let problem = "it attests another hostname or machine id than it was given";
        return Err(ClientError::protocol(operation, problem));
    }
    Ok(thawed)
}

fn judge(thawed: &Thawed) -> Result<(), String> {
    let names = [("a hostname", &thawed.hostname), ("a machine id", &thawed.machine_id)].into_iter();
    let names = names.chain(thawed.ssh_host_keys.iter().map(|key| ("a fingerprint", key)));
    for (what, text) in names.chain(thawed.hooks.iter().map(|hook| ("a hook's name", &hook.name))) {
        check_text(what, text, MAX_NAME)?;
    }
    for (what, count, most) in [
        ("SSH host keys", thawed.ssh_host_keys.len(), MAX_HOST_KEYS),
        ("hooks", thawed.hooks.len(), MAX_HOOKS),
        ("interpreters", thawed.interpreters.len(), MAX_CONTEXTS),
    ] {
        if count > most {
            return Err(format!("{count} {what}"));
        }
    }
    check_reseeded(&thawed.kernel_random)?;
    for interpreter in &thawed.interpreters {
        check_context_name(&interpreter.context)?;
        check_reseeded(&interpreter.random)?;
    }
    Ok(())
}

fn check_reseeded(reseeded: &Reseeded) -> Result<(), String> {
    match reseeded {
        Reseeded::Yes | Reseeded::HostProvided => Ok(()),
        Reseeded::No { reason } => check_text("a reason", reason, MAX_REASON),
    }
}

fn check_text(what: &str, text: &str, most: usize) -> Result<(), String> {
    if text.len() > most || text.chars().any(char::is_control) {
        return Err(format!("{what} with control characters or of absurd length"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{HookRun, InterpreterThawed, Language};

    fn thawed() -> Thawed {
        Thawed {
            kernel_random: Reseeded::Yes,
            clock_offset_ns: 0,
            hostname: "vm".into(),
            machine_id: "0".repeat(32),
            ssh_host_keys: vec!["SHA256:x".into()],
            connections_dropped: 0,
            interpreters: vec![InterpreterThawed {
                context: "default".into(),
                language: Language::Python,
                random: Reseeded::Yes,
            }],
            processes_not_reseeded: 0,
            hooks: vec![HookRun { name: "10-app".into(), status: 0 }],
        }
    }

    #[test]
    fn an_attestation_in_due_form_is_admitted() {
        assert_eq!(judge(&thawed()), Ok(()));
    }

    #[test]
    fn absurd_attestations_are_refused() {
        let bad: [fn(&mut Thawed); 9] = [
            |t| t.hostname = "x".repeat(256),
            |t| t.machine_id = "a\u{1b}[2J".into(),
            |t| t.ssh_host_keys[0].push('\n'),
            |t| t.ssh_host_keys = vec![String::new(); MAX_HOST_KEYS + 1],
            |t| t.hooks[0].name.push('\r'),
            |t| t.hooks = vec![HookRun { name: "h".into(), status: 0 }; MAX_HOOKS + 1],
            |t| t.interpreters = vec![t.interpreters[0].clone(); MAX_CONTEXTS + 1],
            |t| t.interpreters[0].context = "../x".into(),
            |t| t.kernel_random = Reseeded::No { reason: "r".repeat(MAX_REASON + 1) },
        ];
        for (index, spoil) in bad.into_iter().enumerate() {
            let mut thawed = thawed();
            spoil(&mut thawed);
            assert!(judge(&thawed).is_err(), "{index}: {thawed:?}");
        }
    }
}
