use offshoot_policy::Authorized;
use offshoot_types::Command;

fn swap(permitted: Authorized<Command>, other: Command) -> Authorized<Command> {
    *permitted.get() = other;
    permitted
}

fn main() {}
