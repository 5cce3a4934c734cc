//! Start, stop, and everything that ends a VM.

use super::{
    Harness, Outcome, Violation, boot, ensure, exit_within, finish, is_ended, nothing_left, session,
};
use crate::{Adoption, BootStep, Exit, StopStep, vm::Vm};
use offshoot_guest_proto::message::ShutdownKind;
use offshoot_types::IsolationClass;
use std::time::{Duration, Instant};

pub(super) async fn boot_pause_resume_stop(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let instance = boot(harness, &plan).await?;
    ensure!(!instance.is_paused().await?, "a booted VM is paused");
    let vm = Vm::booted(instance);
    let exit = vm.exit();
    ensure!(exit.borrow().is_none(), "a booted VM has an exit");
    vm.usage().await?;
    let vm = vm.pause().await.map_err(|(_, error)| error)?;
    let vm = vm.resume().await.map_err(|(_, error)| error)?;
    let report = vm.stop(Duration::ZERO).await.map_err(|(_, error)| error)?;
    ensure!(report.exit != Exit::PoweredOff, "nobody asked the guest, yet it is said to have powered off");
    let seen = exit_within(exit, Duration::from_secs(1)).await?;
    ensure!(seen == report.exit, "the report says {:?}, the watch {seen:?}", report.exit);
    finish(harness, &harness.record(&plan)).await
}

pub(super) async fn two_starts_of_one_instance_or_disk_are_refused(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let first = boot(harness, &plan).await?;
    let again = harness.provider().boot(&plan).await;
    let error = again.err().ok_or_else(|| Violation::new("a second start of one instance succeeded"))?;
    ensure!(error.step == BootStep::Keeper, "refused at {}: {error}", error.step);
    ensure!(error.undo.failed.is_empty(), "undo failed: {:?}", error.undo);

    let mut other = harness.plan();
    other.disk.clone_from(&plan.disk);
    let second = harness.provider().boot(&other).await;
    let error = second.err().ok_or_else(|| Violation::new("a second start on one disk succeeded"))?;
    ensure!(error.to_string().contains("in use by"), "the refusal does not name a holder: {error}");
    nothing_left(harness, &harness.record(&other)).await?;

    ensure!(first.exit().borrow().is_none(), "the refused start ended the first VM");
    first.pause().await?;
    finish(harness, &harness.record(&plan)).await
}

pub(super) async fn isolation_is_never_lowered(harness: &dyn Harness) -> Outcome {
    let class = harness.provider().capabilities().await.isolation.map_err(Violation::new)?;
    let mut plan = harness.plan();
    let record = harness.record(&plan);
    ensure!(record.isolation == class, "a VM would be {}, the host gives {class}", record.isolation);
    if class < IsolationClass::HardwareVm {
        plan.min_isolation = Some(IsolationClass::HardwareVm);
        let refused = harness.provider().boot(&plan).await.err();
        let error = refused.ok_or_else(|| Violation::new("a VM of a lower class was booted"))?;
        ensure!(error.step == BootStep::Probe, "refused at {}: {error}", error.step);
        nothing_left(harness, &record).await?;
    }
    plan.min_isolation = Some(class);
    drop(boot(harness, &plan).await?);
    finish(harness, &record).await
}

pub(super) async fn graceful_stop_is_the_guests_own(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let instance = boot(harness, &plan).await?;
    let (client, _) = session::connect(instance.as_ref(), &plan).await?;
    client.shutdown(ShutdownKind::PowerOff).await?;
    let report = instance.stop(Duration::from_secs(20)).await?;
    ensure!(report.exit == Exit::PoweredOff, "a guest that powered off is reported as {:?}", report.exit);
    // The guest may be quicker than we are: then no rung was needed at all.
    let steps: Vec<StopStep> = report.steps.iter().map(|(step, _)| *step).collect();
    ensure!(steps.iter().all(|step| *step == StopStep::GuestShutdown), "rungs climbed: {steps:?}");
    ensure!(is_ended(&instance.channel().await.map(drop)), "an ended VM has a channel");
    finish(harness, &harness.record(&plan)).await
}

pub(super) async fn forced_stop_climbs_the_ladder(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let instance = boot(harness, &plan).await?;
    // Nobody asked the guest to power off, so the grace period passes.
    let grace = Duration::from_millis(300);
    let begun = Instant::now();
    let report = instance.stop(grace).await?;
    ensure!(begun.elapsed() >= grace, "the grace period was cut short: {:?}", begun.elapsed());
    let steps: Vec<StopStep> = report.steps.iter().map(|(step, _)| *step).collect();
    ensure!(steps.starts_with(&[StopStep::GuestShutdown, StopStep::VmmQuit]), "rungs climbed: {steps:?}");
    let again = instance.stop(grace).await?;
    ensure!(again.exit == report.exit, "stopped twice, ended as {:?}, then {:?}", report.exit, again.exit);
    finish(harness, &harness.record(&plan)).await
}

pub(super) async fn killed_vmm_is_seen_within_a_second(harness: &dyn Harness) -> Outcome {
    let plan = harness.plan();
    let record = harness.record(&plan);
    let instance = boot(harness, &plan).await?;
    let exit = instance.exit();
    harness.kill_vmm(&record).await;
    let seen = exit_within(exit, Duration::from_secs(1)).await?;
    ensure!(seen == Exit::Signal(libc::SIGKILL), "a killed VMM is reported as {seen:?}");
    ensure!(is_ended(&instance.pause().await), "an ended VM was paused");
    ensure!(is_ended(&instance.resume().await), "an ended VM was resumed");
    match harness.provider().adopt(&record).await? {
        Adoption::Ended(Some(exit)) if exit == seen => {}
        other => return Err(Violation::new(format_args!("adopted as {other:?}"))),
    }
    finish(harness, &record).await
}
