//! Daemons die; their VMs are found again, or nothing of them is left.

use super::{Harness, Outcome, Violation, boot, ensure, exit_within, finish, nothing_left, session};
use crate::{Adoption, Instance, InstanceRecord, vm::Adopted};
use std::{future::Future, pin::pin, task::Poll, time::Duration};

async fn adopted(harness: &dyn Harness, record: &InstanceRecord) -> Outcome<Box<dyn Instance>> {
    match harness.provider().adopt(record).await? {
        Adoption::Running(instance) => Ok(instance),
        other => Err(Violation::new(format_args!("a running VM was adopted as {other:?}"))),
    }
}

pub(super) async fn a_vm_without_a_daemon_is_adopted_undisturbed(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let record = harness.record(&plan);
    let instance = boot(harness, &plan).await?;
    let (client, hello) = session::connect(instance.as_ref(), &plan).await?;
    super::channel::write_file(&client, "/tmp/kept", b"kept").await?;
    drop((client, instance));

    let instance = adopted(harness, &record).await?;
    let (client, hello_again) = session::connect(instance.as_ref(), &plan).await?;
    ensure!(hello.boot_id == hello_again.boot_id, "the guest rebooted");
    ensure!(super::channel::read_file(&client, "/tmp/kept").await? == b"kept", "the file changed");
    instance.pause().await?;
    drop((client, instance));

    // A successor sees the state the VM is in, not the one it was left in on paper.
    match Adopted::observe(adopted(harness, &record).await?).await {
        Ok(Adopted::Paused(vm)) => drop(vm.resume().await.map_err(|(_, error)| error)?),
        Ok(Adopted::Running(_)) => return Err(Violation::new("a paused VM was adopted as running")),
        Err((_, error)) => return Err(error.into()),
    }
    finish(harness, &record).await
}

pub(super) async fn an_ended_vm_is_adopted_as_ended(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let record = harness.record(&plan);
    let instance = boot(harness, &plan).await?;
    let report = instance.stop(Duration::ZERO).await?;
    drop(instance);
    match harness.provider().adopt(&record).await? {
        Adoption::Ended(Some(exit)) if exit == report.exit => {}
        other => {
            return Err(Violation::new(format_args!("ended as {:?}, adopted as {other:?}", report.exit)));
        }
    }
    nothing_left(harness, &record).await?;
    finish(harness, &record).await
}

pub(super) async fn a_start_that_was_only_permitted_never_happens(harness: &dyn Harness) -> Outcome {
    // Before anything was written at all, and after the permission was.
    for permitted in [false, true] {
        let plan = harness.plan();
        let record = harness.record(&plan);
        if permitted {
            harness.permit_start(&plan);
        }
        for _ in 0..2 {
            match harness.provider().adopt(&record).await? {
                Adoption::NeverStarted => {}
                other => return Err(Violation::new(format_args!("adopted as {other:?}"))),
            }
        }
        finish(harness, &record).await?;
    }
    Ok(())
}

pub(super) async fn reclaim_leaves_nothing_and_may_be_repeated(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let record = harness.record(&plan);
    let instance = boot(harness, &plan).await?;
    let exit = instance.exit();
    finish(harness, &record).await?;
    exit_within(exit, Duration::from_secs(2)).await?;
    for _ in 0..2 {
        let report = harness.provider().reclaim(&record).await;
        ensure!(report.failed.is_empty(), "failed: {:?}", report.failed);
        ensure!(report.removed.is_empty(), "removed again: {:?}", report.removed);
    }
    Ok(())
}

/// The daemon is cancelled, or killed, at some await of `boot`.
pub(super) async fn an_abandoned_boot_is_reclaimed(harness: &dyn Harness) -> Outcome {
    for polls in [1, 2, 3, 5] {
        let plan = harness.plan();
        let record = harness.record(&plan);
        let provider = harness.provider();
        {
            let mut boot = pin!(provider.boot(&plan));
            let mut left = polls;
            std::future::poll_fn(|context| {
                left -= 1;
                match boot.as_mut().poll(context) {
                    Poll::Pending if left > 0 => Poll::Pending,
                    _ => Poll::Ready(()),
                }
            })
            .await;
        }
        finish(harness, &record).await?;
    }
    Ok(())
}
