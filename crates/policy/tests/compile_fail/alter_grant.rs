use offshoot_policy::Grant;
use offshoot_types::Actor;

fn promote(mut grant: Grant) -> Grant {
    grant.actor = Actor::Daemon;
    grant
}

fn main() {}
