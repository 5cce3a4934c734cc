//! Handshake, processes and files: what the engine does with a channel.

use super::{Harness, Outcome, Violation, boot, ensure, finish};
use crate::{BootPlan, Instance};
use offshoot_guest_proto::{
    client::{Client, ConnectOptions},
    message::{
        ExecAttach, ExecCommand, ExecEvent, ExecStart, ExitKind, GuestHello, OutputStream, ResourceLimits,
    },
};
use std::{collections::BTreeMap, time::Duration};
use uuid::Uuid;

/// A guest that answers at all answers well within this, on a busy host too.
const ANSWER: Duration = Duration::from_secs(60);

/// Opens the channel and shakes hands; the first time this waits for the guest to boot.
pub(super) async fn connect(instance: &dyn Instance, plan: &BootPlan) -> Outcome<(Client, GuestHello)> {
    let options = ConnectOptions {
        deadline: plan.boot_deadline,
        ..ConnectOptions::new(plan.name.as_str(), plan.generation.0)
    };
    match Client::connect(instance.channel().await?, options).await {
        Ok(connected) => Ok(connected),
        Err(error) => {
            let exit = instance.exit().borrow().clone();
            let diagnostics = instance.diagnostics().await;
            let Violation(chain) = error.into();
            Err(Violation(format!("{chain}\nexit: {exit:?}\n{diagnostics:#?}")))
        }
    }
}

pub(super) fn exec_start(argv: &[&str], stdin: bool) -> ExecStart {
    ExecStart {
        exec: *Uuid::now_v7().as_bytes(),
        command: ExecCommand::Argv(argv.iter().map(|word| (*word).to_owned()).collect()),
        env: BTreeMap::new(),
        cwd: None,
        user: "root".into(),
        pty: None,
        stdin,
        timeout_ms: None,
        max_output: None,
        limits: ResourceLimits::default(),
    }
}

/// Runs to the end; standard output and status.
pub(super) async fn run(client: &Client, argv: &[&str]) -> Outcome<(Vec<u8>, ExitKind)> {
    let handle = client.exec(exec_start(argv, false)).await?;
    let (_sender, mut events) = handle.split();
    let mut output = Vec::new();
    loop {
        match tokio::time::timeout(ANSWER, events.next()).await?? {
            Some(ExecEvent::Output { stream: OutputStream::Stdout, data, .. }) => output.extend(data),
            Some(ExecEvent::Ended(end)) => return Ok((output, end.status)),
            Some(ExecEvent::Started { .. } | ExecEvent::Output { .. }) => {}
            Some(event @ (ExecEvent::Lost { .. } | ExecEvent::Failed(_))) => {
                return Err(Violation::new(format_args!("{argv:?}: {event:?}")));
            }
            None => return Err(Violation::new(format_args!("{argv:?}: no end was told"))),
        }
    }
}

pub(super) async fn exec_passes_output_and_status(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let instance = boot(harness, &plan).await?;
    let (client, hello) = connect(instance.as_ref(), &plan).await?;
    ensure!(!hello.boot_id.is_empty(), "the guest has no boot id");
    for (argv, output, status) in [
        (&["true"][..], "", 0),
        (&["false"], "", 1),
        (&["echo", "one two"], "one two\n", 0),
        (&["sh", "-c", "exit 7"], "", 7),
    ] {
        let ran = run(&client, argv).await?;
        let expected = (output.as_bytes().to_vec(), ExitKind::Code(status));
        ensure!(ran == expected, "{argv:?} gave {ran:?}");
    }
    let missing = client.exec(exec_start(&["/no/such/program"], false)).await;
    ensure!(missing.is_err(), "a program that does not exist was started");
    let info = client.info().await?;
    ensure!(info.hostname == plan.name.as_str(), "the guest calls itself {:?}", info.hostname);
    finish(harness, &harness.record(&plan)).await
}

pub(super) async fn a_process_survives_the_loss_of_its_session(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let instance = boot(harness, &plan).await?;
    let (client, _) = connect(instance.as_ref(), &plan).await?;
    let start = exec_start(&["cat"], true);
    let exec = start.exec;
    let (mut sender, mut events) = client.exec(start).await?.split();
    sender.stdin(b"before\n").await?;
    let first = tokio::time::timeout(ANSWER, events.next()).await??;
    ensure!(
        matches!(&first, Some(ExecEvent::Output { data, .. }) if data == b"before\n"),
        "the process did not echo: {first:?}"
    );

    // Another channel: the first session and its streams are lost.
    let (client, _) = connect(instance.as_ref(), &plan).await?;
    let attach = ExecAttach { exec, stdout_offset: 0, stderr_offset: 0 };
    let (mut sender, mut events) = client.attach(attach).await?.split();
    sender.stdin(b"after\n").await?;
    sender.stdin_end().await?;
    let mut output = Vec::new();
    let end = loop {
        match tokio::time::timeout(ANSWER, events.next()).await?? {
            Some(ExecEvent::Output { data, .. }) => output.extend(data),
            Some(ExecEvent::Ended(end)) => break end,
            Some(_) => {}
            None => return Err(Violation::new("no end was told after the second attachment")),
        }
    };
    ensure!(output == b"before\nafter\n", "replayed: {:?}", String::from_utf8_lossy(&output));
    ensure!(end.status == ExitKind::Code(0), "it ended with {:?}", end.status);
    finish(harness, &harness.record(&plan)).await
}

pub(super) async fn files_come_back_as_they_were_written(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let instance = boot(harness, &plan).await?;
    let (client, _) = connect(instance.as_ref(), &plan).await?;
    // Every byte value, at a size that is no multiple of any chunk.
    let written: Vec<u8> = (0..3_000_017_u32).map(|n| (n % 251) as u8).collect();
    super::channel::write_file(&client, "/tmp/conformance", &written).await?;
    let read = super::channel::read_file(&client, "/tmp/conformance").await?;
    ensure!(read == written, "{} bytes came back differently as {}", written.len(), read.len());
    finish(harness, &harness.record(&plan)).await
}
