use offshoot_engine::Engine;
use offshoot_policy::Authorized;
use offshoot_types::Command;

fn asked_twice(engine: &Engine, permit: Authorized<Command>) {
    let _ = engine.submit(permit);
    let _ = engine.submit(permit);
}

fn main() {}
