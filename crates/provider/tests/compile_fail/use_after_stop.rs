use offshoot_provider::vm::{Running, Vm};
use std::time::Duration;

async fn use_after_stop(vm: Vm<Running>) {
    let _report = vm.stop(Duration::ZERO).await;
    let _channel = vm.channel().await;
}

fn main() {}
