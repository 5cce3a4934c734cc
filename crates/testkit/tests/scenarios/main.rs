//! Scenarios: what a user does with the real binary, against real VMs. Each test has a state directory of its own
//! and ends by observing that nothing is left.
//!
//! Numbers in names are those of the project's scenario list, which predecessors' documents share.

mod branch;
mod branch_failures;
mod branch_soak;
mod cli;
mod contexts;
mod crash;
mod diff;
mod faults;
mod files;
mod gvisor;
mod interactive;
mod lifecycle;
mod pool;
mod ports;
mod rebase;
mod run;
mod scale;
mod state;
mod terraphim;
mod upkeep;

use offshoot_testkit::{TestEnv, wait_for_value};
use serde_json::Value;
use std::time::Duration;

/// The VM as `status NAME --json` shows it.
#[track_caller]
fn vm(env: &TestEnv, name: &str) -> Value {
    env.run(&["status", name, "--json"]).success().json()
}

/// Waits until `status` shows the state.
#[track_caller]
fn await_state(env: &TestEnv, name: &str, state: &str, deadline: Duration) -> Value {
    wait_for_value(&format!("{name} to be {state}"), deadline, || {
        let vm = vm(env, name);
        (vm["state"] == state).then_some(vm)
    })
}

/// The events of a VM in order, as `logs NAME --json` shows them.
#[track_caller]
fn events(env: &TestEnv, name: &str) -> Vec<Value> {
    let log = env.run(&["logs", name, "--json"]).success().json();
    log["events"].as_array().expect("`logs --json` has `events`").clone()
}

/// `to` states of a VM in the order of its events.
fn states(events: &[Value]) -> Vec<String> {
    let moved = events.iter().filter(|event| event["event"] == "state-changed");
    moved.filter_map(|event| Some(event["to"].as_str()?.to_owned())).collect()
}

/// The VMM of a VM, found by the VM's id on its command line.
#[track_caller]
fn vmm(env: &TestEnv, id: &str) -> offshoot_testkit::Process {
    let all = env.processes();
    let mut found =
        all.iter().filter(|p| p.command_line.contains("qemu-system") && p.command_line.contains(id));
    let process = found.next().unwrap_or_else(|| panic!("no VMM of {id} among {all:?}")).clone();
    assert!(found.next().is_none(), "one VMM per VM");
    process
}
