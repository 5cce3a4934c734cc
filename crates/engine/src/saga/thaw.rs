//! Renewing a guest that continues from a state others may continue from too: nothing is handed out before it has
//! confirmed.

use crate::{error, host_key::random, link::GuestLink, machine::Machine};
use offshoot_guest_proto::{
    client::ClientError,
    message::{self as wire, Entropy, HostTime, NewIdentity, Thaw, Thawed},
};
use offshoot_types::{
    Attestations, ErrorCode, Failure, Generation, Interpreter, Reseeded, ThawHook, VmId, VmName,
};
use std::time::Duration;
use tokio::time::Instant;

/// Whom a restored guest is to be from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Who it was: it takes the place of the state it comes from.
    Kept,
    /// A machine of its own, called as its VM.
    New,
}

impl Machine {
    /// Asks the guest behind `link` to renew itself as the instance of `generation`, and judges its answer.
    pub async fn thaw(
        &self,
        link: &GuestLink,
        generation: Generation,
        identity: Identity,
    ) -> Result<Attestations, Failure> {
        let name = self.name().clone();
        let begun = Instant::now();
        let limit = self.core.options.deadlines.thaw;
        let until = begun + limit;
        let identity = match identity {
            Identity::Kept => None,
            // As at a boot: the machine id is the VM's own.
            Identity::New => {
                let machine_id = *self.id().as_uuid().as_bytes();
                Some(NewIdentity { hostname: name.as_str().into(), machine_id })
            }
        };
        let mut entropy = [0; 64];
        random(&mut entropy)?;
        let instance = instance(self.id(), generation);
        let asked = async {
            loop {
                let client =
                    link.client(until).await.map_err(|error| no_answer(&name, &error.to_string()))?;
                let thaw = Thaw {
                    instance,
                    entropy: Entropy(entropy),
                    identity: identity.clone(),
                    time: HostTime::now(),
                };
                match client.thaw(thaw).await {
                    Ok(thawed) => return Ok(thawed),
                    // The same instance is thawed once, so asking again over a new session is safe.
                    Err(ClientError::Closed { .. }) => {}
                    Err(error) => return Err(refused(&name, &error)),
                }
            }
        };
        let thawed = match tokio::time::timeout_at(until, asked).await {
            Ok(thawed) => thawed?,
            Err(_elapsed) => return Err(no_answer(&name, &format!("nothing within {limit:?}"))),
        };
        attested(&name, thawed, begun.elapsed())
    }
}

/// Never the same for two starts.
fn instance(vm: VmId, generation: Generation) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(vm.as_uuid().as_bytes()).update(&generation.0.to_le_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}

fn no_answer(vm: &VmName, why: &str) -> Failure {
    Failure::new(
        ErrorCode::Thaw,
        format!("the guest of VM `{vm}` did not confirm that it was renewed: {why}"),
    )
    .hint("nothing of it was handed out; try again")
}

fn refused(vm: &VmName, error: &ClientError) -> Failure {
    let refused = error::guest_failure(vm, error);
    Failure { cause: Some(refused.message), ..no_answer(vm, "it refused") }
}

fn attested(vm: &VmName, thawed: Thawed, took: Duration) -> Result<Attestations, Failure> {
    let lie = |what: &str| no_answer(vm, &format!("its answer names {what}"));
    let kernel_random = reseeded(thawed.kernel_random);
    if let Reseeded::No { reason } = &kernel_random {
        return Err(no_answer(vm, &format!("its kernel's random generator is not renewed ({reason})")));
    }
    let interpreters = thawed.interpreters.into_iter().map(|interpreter| {
        let context = interpreter.context.parse().map_err(|_| lie("a context that cannot be"))?;
        Ok(Interpreter {
            context,
            language: interpreter.language.into(),
            random: reseeded(interpreter.random),
        })
    });
    Ok(Attestations {
        kernel_random,
        clock_offset_ns: thawed.clock_offset_ns,
        hostname: thawed.hostname,
        machine_id: thawed.machine_id,
        ssh_host_keys: thawed.ssh_host_keys,
        connections_dropped: thawed.connections_dropped,
        interpreters: interpreters.collect::<Result<_, Failure>>()?,
        processes_not_reseeded: thawed.processes_not_reseeded,
        hooks: thawed
            .hooks
            .into_iter()
            .map(|hook| ThawHook { name: hook.name, status: hook.status })
            .collect(),
        took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
    })
}

fn reseeded(reseeded: wire::Reseeded) -> Reseeded {
    match reseeded {
        wire::Reseeded::Yes => Reseeded::Yes,
        wire::Reseeded::HostProvided => Reseeded::HostProvided,
        wire::Reseeded::No { reason } => Reseeded::No { reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_starts_are_the_same_instance() {
        let (a, b) = (VmId::new(), VmId::new());
        assert_eq!(instance(a, Generation(1)), instance(a, Generation(1)));
        assert_ne!(instance(a, Generation(1)), instance(a, Generation(2)));
        assert_ne!(instance(a, Generation(1)), instance(b, Generation(1)));
    }

    #[test]
    fn a_kernel_that_shares_its_random_state_is_refused_and_an_interpreter_is_told() {
        let vm: VmName = "a".parse().unwrap();
        let thawed = |kernel_random| Thawed {
            kernel_random,
            clock_offset_ns: -5,
            hostname: "a".into(),
            machine_id: "0".repeat(32),
            ssh_host_keys: Vec::new(),
            connections_dropped: 1,
            interpreters: vec![wire::InterpreterThawed {
                context: "main".into(),
                language: wire::Language::Javascript,
                random: wire::Reseeded::No { reason: "no add-on".into() },
            }],
            processes_not_reseeded: 2,
            hooks: Vec::new(),
        };
        let told = attested(&vm, thawed(wire::Reseeded::Yes), Duration::from_millis(3)).unwrap();
        assert_eq!((told.took_us, told.processes_not_reseeded), (3000, 2));
        assert_eq!(told.interpreters[0].random, Reseeded::No { reason: "no add-on".into() });
        let shared = wire::Reseeded::No { reason: "no permission".into() };
        let refused = attested(&vm, thawed(shared), Duration::ZERO).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Thaw);
        assert!(refused.message.contains("no permission"), "{refused:?}");
    }
}
