//! What tests do with a VM: boot it, talk to its agent, see it end.

use super::Real;
use offshoot_guest_proto::{
    client::{Client, ConnectOptions},
    message::{ExecCommand, ExecEvent, ExecStart, ResourceLimits},
};
use offshoot_provider::{BootPlan, Exit, Instance, InstanceRecord, conformance::Harness};
use std::{collections::BTreeMap, time::Duration};

pub async fn boot(real: &Real, plan: &BootPlan) -> Box<dyn Instance> {
    real.provider().boot(plan).await.unwrap_or_else(|error| panic!("{error}: {error:#?}"))
}

pub async fn connect(instance: &dyn Instance) -> Client {
    let options = ConnectOptions { deadline: Duration::from_secs(60), ..ConnectOptions::new("real-vm", 1) };
    match Client::connect(instance.channel().await.unwrap(), options).await {
        Ok((client, _)) => client,
        Err(error) => panic!("{error}: {:#?}", instance.diagnostics().await),
    }
}

pub fn shell(script: &str) -> ExecStart {
    ExecStart {
        exec: *uuid::Uuid::now_v7().as_bytes(),
        command: ExecCommand::Shell(script.into()),
        env: BTreeMap::new(),
        cwd: None,
        user: "root".into(),
        pty: None,
        stdin: false,
        timeout_ms: None,
        max_output: None,
        limits: ResourceLimits::default(),
    }
}

pub async fn run(client: &Client, script: &str) -> String {
    let (_sender, mut events) = client.exec(shell(script)).await.unwrap().split();
    let mut output = Vec::new();
    loop {
        match events.next().await.unwrap() {
            Some(ExecEvent::Output { data, .. }) => output.extend(data),
            Some(ExecEvent::Ended(_)) => return String::from_utf8_lossy(&output).into_owned(),
            Some(_) => {}
            None => panic!("no end of `{script}`"),
        }
    }
}

pub async fn exit(instance: &dyn Instance, limit: Duration) -> Exit {
    let mut exit = instance.exit();
    let seen = tokio::time::timeout(limit, exit.wait_for(Option::is_some)).await;
    seen.expect("an exit in time").expect("an exit").clone().expect("an exit")
}

pub async fn finish(real: &Real, record: &InstanceRecord) {
    let report = real.provider().reclaim(record).await;
    assert_eq!(report.failed, Vec::<String>::new());
    assert_eq!(real.leftovers(record).await, Vec::<String>::new());
}
