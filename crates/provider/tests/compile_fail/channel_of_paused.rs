use offshoot_provider::vm::{Paused, Vm};

async fn channel_of_paused(vm: Vm<Paused>) {
    let _channel = vm.channel().await;
}

fn main() {}
