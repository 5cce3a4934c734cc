//! The channel as a pipe that may be cut anywhere.

use super::{Harness, Outcome, Violation, boot, ensure, finish, session};
use offshoot_guest_proto::{client::Client, message::ExitKind};
use std::time::Duration;

/// Larger than everything on the way can hold.
const TRANSFER: usize = 3 * 1024 * 1024;

pub(super) async fn write_file(client: &Client, path: &str, data: &[u8]) -> Outcome {
    let mut writer = client.files("root").write(path, None, false, false).await?;
    for part in data.chunks(100_000) {
        writer.send(part).await?;
    }
    let stat = writer.finish().await?;
    ensure!(stat.size == data.len() as u64, "{} bytes written, the file has {}", data.len(), stat.size);
    Ok(())
}

pub(super) async fn read_file(client: &Client, path: &str) -> Outcome<Vec<u8>> {
    let mut reader = client.files("root").read(path, 0, None).await?;
    let mut data = Vec::new();
    while let Some(part) = reader.next().await? {
        data.extend(part);
    }
    Ok(data)
}

pub(super) async fn reopening_in_the_middle_of_a_transfer_recovers(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let instance = boot(harness, &plan).await?;
    let (client, hello) = session::connect(instance.as_ref(), &plan).await?;
    let data = vec![0x5a; TRANSFER];
    write_file(&client, "/tmp/whole", &data).await?;

    // From the guest: the reader stops reading in the middle, so the guest hangs in a write.
    let mut reader = client.files("root").read("/tmp/whole", 0, None).await?;
    let first = reader.next().await?;
    ensure!(first.is_some(), "an empty file");
    let (second, hello_again) = session::connect(instance.as_ref(), &plan).await?;
    ensure!(hello.boot_id == hello_again.boot_id, "the guest rebooted");
    ensure!(client.closed_within(Duration::from_secs(10)).await, "the old session does not end");
    drop((reader, client));

    // To the guest: the writer is cut off in the middle.
    let mut writer = second.files("root").write("/tmp/half", None, false, false).await?;
    writer.send(&data[..TRANSFER / 2]).await?;
    let (third, _) = session::connect(instance.as_ref(), &plan).await?;
    ensure!(writer.finish().await.is_err(), "a write over a lost session succeeded");
    drop(second);

    let missing = third.files("root").stat("/tmp/half", false).await;
    ensure!(missing.is_err(), "half a file was put in place");
    ensure!(read_file(&third, "/tmp/whole").await? == data, "the file changed");
    finish(harness, &harness.record(&plan)).await
}

pub(super) async fn a_paused_guest_is_silent_and_goes_on_where_it_was(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let instance = boot(harness, &plan).await?;
    let (client, hello) = session::connect(instance.as_ref(), &plan).await?;
    instance.pause().await?;
    instance.pause().await?;
    ensure!(instance.is_paused().await?, "a paused VM does not say so");
    {
        let mut answer = std::pin::pin!(session::run(&client, &["true"]));
        let silent = tokio::time::timeout(Duration::from_millis(300), &mut answer).await;
        ensure!(silent.is_err(), "a paused guest answered");
        instance.resume().await?;
        ensure!(!instance.is_paused().await?, "a resumed VM says it is paused");
        let (_, status) = answer.await?;
        ensure!(status == ExitKind::Code(0), "`true` ended with {status:?}");
    }
    let (_, hello_again) = session::connect(instance.as_ref(), &plan).await?;
    ensure!(hello.boot_id == hello_again.boot_id, "the guest rebooted");

    // Standing still, a guest cannot power off: no grace period is spent on it.
    instance.pause().await?;
    let report = tokio::time::timeout(Duration::from_secs(10), instance.stop(Duration::from_secs(60))).await;
    match report {
        Ok(report) => drop(report?),
        Err(_) => return Err(Violation::new("the grace period was spent on a paused VM")),
    }
    finish(harness, &harness.record(&plan)).await
}

trait ClosedWithin {
    async fn closed_within(&self, limit: Duration) -> bool;
}
impl ClosedWithin for Client {
    async fn closed_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.closed()).await.is_ok()
    }
}
