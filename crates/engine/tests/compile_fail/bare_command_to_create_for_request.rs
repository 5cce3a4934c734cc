use offshoot_engine::Engine;
use offshoot_types::Command;

fn asked(engine: &Engine, command: Command) {
    let _ = engine.create_for_request(command);
}

fn main() {}
