use offshoot_policy::Authorized;
use offshoot_types::Command;

fn twice(permitted: Authorized<Command>) -> (Authorized<Command>, Authorized<Command>) {
    (permitted.clone(), permitted)
}

fn main() {}
