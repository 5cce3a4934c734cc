//! What a guest has written, where its disk is its memory.

use super::{
    Harness, Outcome, boot, ensure, finish,
    session::{connect, run},
};
use offshoot_guest_proto::{
    client::ClientError,
    message::{ExitKind, GuestErrorKind},
};
use std::time::Duration;

const STILL: Duration = Duration::from_secs(5);
const LIMIT: u64 = 256 << 20;
const WRITE: &str =
    "echo kept >/root/kept && chmod 640 /root/kept && ln -s kept /root/link && rm -r /etc/skel";
const LOOK: &str =
    "cat /root/link; stat -c %a /root/kept; test -e /etc/skel || echo gone; ls /run/new 2>&1 | wc -w";

/// Where it is, all of it can be carried into another VM of the same image, and the first one goes on if it is not ended.
/// Where it is not, a guest says that this is not for it to do.
pub(super) async fn a_disk_in_memory_is_carried_into_the_next_vm(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let instance = boot(harness, &plan).await?;
    let (client, _) = connect(&*instance, &plan).await?;
    if harness.provider().keeps_disk() {
        client.freeze(STILL).await?;
        let refused = client.keep_disk().await;
        let fits =
            matches!(&refused, Err(ClientError::Guest(error)) if error.kind == GuestErrorKind::Unsupported);
        ensure!(fits, "its disk outlives it, and it carries it all the same: {refused:?}");
        return finish(harness, &harness.record(&plan)).await;
    }
    let shell = |line: &'static str| ["sh", "-c", line];
    let (_, status) = run(&client, &shell(WRITE)).await?;
    ensure!(status == ExitKind::Code(0), "it does not write: {status:?}");
    let moving = client.keep_disk().await;
    ensure!(moving.is_err(), "its programs may still write, and it offers its disk");
    client.freeze(STILL).await?;
    let offer = client.keep_disk().await?;
    ensure!(offer.used().bytes > 0, "what was written takes no room");
    offer.decline().await?;
    let mut reader = client.keep_disk().await?.accept(LIMIT).await?;
    let mut tree = Vec::new();
    while let Some(bytes) = reader.next().await? {
        tree.extend_from_slice(&bytes);
    }
    client.unfreeze().await?;
    let (before, _) = run(&client, &shell(LOOK)).await?;

    let other = harness.plan();
    let next = boot(harness, &other).await?;
    let (heir, _) = connect(&*next, &other).await?;
    let mut writer = heir.put_disk_back().await?;
    writer.send(&tree[..tree.len() / 2]).await?;
    let cut = writer.finish().await;
    ensure!(cut.is_err(), "half of a disk was taken for all of it");
    let mut writer = heir.put_disk_back().await?;
    writer.send(&tree).await?;
    writer.finish().await?;
    let (after, _) = run(&heir, &shell(LOOK)).await?;
    let (before, after) = (String::from_utf8_lossy(&before), String::from_utf8_lossy(&after));
    ensure!(before == after && after.starts_with("kept\n640\ngone\n"), "it was {before:?}, it is {after:?}");
    finish(harness, &harness.record(&plan)).await?;
    finish(harness, &harness.record(&other)).await
}
