use offshoot_engine::{Engine, Options, StateDirLock};

fn two(lock: StateDirLock, options: Options) {
    let _ = Engine::start(lock, options.clone());
    let _ = Engine::start(lock, options);
}

fn main() {}
