use offshoot_provider::vm::{Paused, Vm};

async fn pause_twice(vm: Vm<Paused>) {
    let _paused = vm.pause().await;
}

fn main() {}
