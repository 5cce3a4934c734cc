use offshoot_policy::Authorized;
use offshoot_types::Command;

/// What every method of the engine asks for.
fn submit(_: Authorized<Command>) {}

fn main() {
    submit(Command::StopDaemon { vms: true });
}
