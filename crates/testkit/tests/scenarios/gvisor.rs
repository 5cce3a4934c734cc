//! What holds for virtual machines holds for gVisor's sandboxes: the same scenarios, by a daemon that prefers them.

use crate::branch;
use offshoot_testkit::TestEnv;

#[test]
fn the_transcript_of_branching_is_true_on_gvisor() {
    if let Some(env) = TestEnv::on_gvisor() {
        branch::transcript(env);
    }
}

#[test]
fn a_transaction_cut_by_the_death_of_the_daemon_is_found_rolled_back_on_gvisor() {
    if let Some(env) = TestEnv::on_gvisor() {
        branch::cut_by_death(env);
    }
}

#[test]
fn restored_clone_has_new_entropy_and_machine_id_on_gvisor() {
    if let Some(env) = TestEnv::on_gvisor() {
        branch::renewed_copies(env);
    }
}

#[test]
fn snapshots_form_a_tree_and_rollback_goes_anywhere_in_it_on_gvisor() {
    if let Some(env) = TestEnv::on_gvisor() {
        branch::tree(env);
    }
}

/// Nothing else of the sandbox outlives its kernel: no process, no directory, no control group.
#[test]
fn a_sandbox_whose_kernel_is_killed_leaves_nothing_and_starts_from_its_snapshot() {
    let Some(env) = TestEnv::on_gvisor() else { return };
    branch::start(&env, "a");
    branch::python(&env, "a", "x=41");
    env.run(&["snapshot", "a", "kept"]).success();
    let id = crate::vm(&env, "a")["id"].as_str().expect("an id").replace('-', "");
    let sandbox = format!("{}-g", &id[20..]);
    let of_a = |p: &&offshoot_testkit::Process| {
        p.command_line.contains("runsc-sandbox") && p.command_line.contains(&sandbox)
    };
    let processes = env.processes();
    assert!(processes.iter().find(of_a).expect("the sandbox of `a` runs").kill());
    crate::await_state(&env, "a", "failed", std::time::Duration::from_secs(60));
    env.run(&["rollback", "a", "a@kept"]).success();
    env.run(&["resume", "a"]).success();
    assert_eq!(branch::python(&env, "a", "x+=1; print(x)").stdout, "42\n");
    env.finish();
}
