use offshoot_provider::vm::{Running, Vm};

async fn resume_running(vm: Vm<Running>) {
    let _running = vm.resume().await;
}

fn main() {}
