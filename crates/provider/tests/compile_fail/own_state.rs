use offshoot_provider::vm::State;

enum Flying {}

impl State for Flying {
    const NAME: &'static str = "flying";
}

fn main() {}
