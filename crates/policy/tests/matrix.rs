//! Who may do what, as a checked-in table: actor kind by command by resource. A changed cell is a changed policy and
//! shows in review. `UPDATE_GOLDEN=1 cargo nextest run -p offshoot-policy` writes the table anew.

use offshoot_policy::{Decision, Facts, KeyFacts, Policy, RuleId, VmFacts};
use offshoot_types::{
    Action, Actor, Command, ContextCode, CpuCount, ExecArgv, ExecId, ExecLimits, ExecSpec, FileAccess,
    ForkSource, Generation, KeyId, KeyLimits, Labels, LifeChange, Lifetime, OnTimeout, OperationId, Owner,
    ProviderChoice, ProviderKind, RollbackTo, Scopes, SnapshotId, SnapshotKind, SnapshotPolicy,
    SnapshotPolicyChange, SnapshotRef, Target, TransactionId, TrySpec, VmId, VmRef, VmSpec, VmStateName,
};
use std::{collections::BTreeMap, fmt::Write, fs, num::NonZeroU32, path::Path, time::Duration};

const SOCKET_OWNER: u32 = 1000;

fn actors() -> Vec<(&'static str, Actor)> {
    let user = |uid, owner: &str| Actor::LocalUser { uid, owner: owner.parse().unwrap() };
    vec![
        ("owner", user(SOCKET_OWNER, "local")),
        ("stranger", user(1001, "other")),
        // A stranger who claims the owner's name: only the kernel's word counts.
        ("impostor", user(1001, "local")),
        ("root", user(0, "local")),
        ("daemon", Actor::Daemon),
        ("key-all", key(1)),
        ("key-exec", key(2)),
        ("key-box", key(3)),
        ("key-other", key(4)),
        ("key-gone", key(5)),
        // The token of the VM that is met, and of another.
        ("token", Actor::Sandbox { vm: VmId::from_uuid(uuid(7)), owner: Owner::default() }),
        ("token-other", Actor::Sandbox { vm: VmId::from_uuid(uuid(8)), owner: Owner::default() }),
    ]
}

fn key(number: u8) -> Actor {
    Actor::ApiKey { id: KeyId::from_uuid(uuid(number)), owner: Owner::default() }
}

fn uuid(number: u8) -> uuid::Uuid {
    uuid::Uuid::from_bytes([number; 16])
}

/// Of the key that may only work in VMs whose names begin with `box`, on one provider.
fn ci() -> KeyLimits {
    KeyLimits {
        vm_prefix: Some("box".parse().unwrap()),
        provider: Some(ProviderKind::Qemu),
        max_vms: NonZeroU32::new(2),
        ..KeyLimits::NONE
    }
}

/// What is known of the key that an actor has.
fn key_facts(actor: &Actor) -> Option<KeyFacts> {
    let Actor::ApiKey { id, .. } = actor else { return None };
    let limits = match id.as_uuid().as_bytes()[0] {
        1 => KeyLimits::NONE,
        2 => KeyLimits { scopes: Scopes::parse(["exec"]).unwrap(), ..KeyLimits::NONE },
        3 => ci(),
        4 => KeyLimits { vm_prefix: Some("other".parse().unwrap()), ..KeyLimits::NONE },
        _ => return None,
    };
    Some(KeyFacts { id: *id, limits })
}

/// At least one command for each action; a new action does not compile until it has one.
fn commands(action: Action) -> Vec<(&'static str, Command)> {
    let vm = VmRef::Name("box".parse().unwrap());
    let grace = Duration::from_secs(10);
    match action {
        Action::Create => vec![
            ("describe", Command::Describe { vm, labels: Some(Labels::new()), env: None }),
            ("create", Command::Create { spec: Box::new(spec()) }),
            ("import", Command::ImportSnapshot { name: None }),
            ("import-as", Command::ImportSnapshot { name: Some("box".parse().unwrap()) }),
        ],
        Action::Start => vec![("start", Command::Start { vm })],
        Action::Stop => vec![("stop", Command::Stop { vm, grace })],
        Action::Restart => vec![("restart", Command::Restart { vm, grace })],
        Action::Pause => vec![("pause", Command::Pause { vm })],
        Action::Resume => vec![("resume", Command::Resume { vm })],
        Action::Destroy => {
            let life = LifeChange { on_timeout: Some(OnTimeout::Destroy), ..LifeChange::default() };
            vec![
                ("destroy", Command::Destroy { vm: vm.clone() }),
                ("set-life-destroy", Command::SetLife { vm, life }),
            ]
        }
        Action::Exec => vec![
            ("exec", Command::Exec { vm: vm.clone(), spec: Box::new(exec()) }),
            ("attach", Command::Attach { vm: vm.clone(), exec: ExecId::new() }),
            ("try", Command::Try { vm: vm.clone(), spec: Box::new(attempt()) }),
            ("race", Command::Race { vm: vm.clone(), count: 4, spec: Box::new(exec()), score: None }),
            ("run-code", Command::RunCode { vm: vm.clone(), code: Box::new(code()) }),
            ("remove-context", Command::RemoveContext { vm: vm.clone(), context: code().context }),
            ("restart-context", Command::RestartContext { vm, context: code().context }),
        ],
        Action::ReadFiles => vec![
            (
                "read-files",
                Command::Files { vm: vm.clone(), access: FileAccess::Read, path: "/etc/passwd".into() },
            ),
            ("diff-vm", Command::Diff { from: ForkSource::Vm(vm), to: ForkSource::Snapshot(snapshot()) }),
            (
                "diff-snapshot",
                Command::Diff {
                    from: ForkSource::Snapshot(snapshot()),
                    to: ForkSource::Snapshot(snapshot()),
                },
            ),
        ],
        Action::WriteFiles => {
            vec![(
                "write-files",
                Command::Files { vm, access: FileAccess::Write, path: "/etc/passwd".into() },
            )]
        }
        Action::Connect => vec![("connect", Command::Connect { vm, port: 22 })],
        Action::Snapshot => {
            let kind = SnapshotKind::Full;
            vec![
                ("snapshot", Command::Snapshot { vm: vm.clone(), name: None, kind, note: None }),
                ("set-policy", Command::SetPolicy { vm, policy: SnapshotPolicyChange::default() }),
            ]
        }
        Action::RemoveSnapshot => vec![
            ("snapshot-rm", Command::RemoveSnapshot { snapshot: snapshot(), prune: false }),
            (
                "snapshot-rm-id",
                Command::RemoveSnapshot { snapshot: SnapshotRef::Id(SnapshotId::new()), prune: true },
            ),
        ],
        Action::Fork => vec![
            ("fork-vm", Command::Fork { source: ForkSource::Vm(vm), name: None, count: 1 }),
            (
                "fork-snapshot",
                Command::Fork { source: ForkSource::Snapshot(snapshot()), name: None, count: 3 },
            ),
        ],
        Action::Rollback => vec![
            ("rollback", Command::Rollback { vm: vm.clone(), to: RollbackTo::Newest }),
            ("rollback-to", Command::Rollback { vm: vm.clone(), to: RollbackTo::Snapshot(snapshot()) }),
            (
                "rollback-to-other",
                Command::Rollback {
                    vm: vm.clone(),
                    to: RollbackTo::Snapshot("prod@backup".parse().unwrap()),
                },
            ),
            (
                "rollback-to-id",
                Command::Rollback {
                    vm: vm.clone(),
                    to: RollbackTo::Snapshot(SnapshotRef::Id(SnapshotId::new())),
                },
            ),
            ("undo", Command::Undo { vm }),
        ],
        Action::Suspend => vec![
            ("suspend", Command::Suspend { vm: vm.clone() }),
            ("set-life", Command::SetLife { vm, life: LifeChange::default() }),
        ],
        Action::Transact => {
            let transaction = TransactionId::new();
            vec![
                ("begin", Command::Begin { vm: vm.clone(), parent: None, deadline: grace }),
                ("commit", Command::Commit { vm: vm.clone(), transaction }),
                ("rollback-tx", Command::RollbackTransaction { vm, transaction }),
            ]
        }
        Action::Inspect => vec![
            ("inspect", Command::Inspect { vm: Some(vm) }),
            ("inspect-all", Command::Inspect { vm: None }),
            ("inspect-snapshot", Command::InspectSnapshot { snapshot: snapshot() }),
            ("verify-snapshot", Command::VerifySnapshot { snapshot: snapshot() }),
            ("inspect-operation", Command::InspectOperation { id: OperationId::new() }),
        ],
        Action::Admit => vec![("admit", Command::Admit { vm })],
        Action::ManageKeys => vec![
            ("create-key", Command::CreateKey { name: "ci".parse().unwrap(), limits: Box::new(ci()) }),
            (
                "create-key-all",
                Command::CreateKey { name: "ci".parse().unwrap(), limits: Box::new(KeyLimits::NONE) },
            ),
            ("list-keys", Command::ListKeys),
            ("remove-key", Command::RemoveKey { key: KeyId::from_uuid(uuid(9)) }),
        ],
        Action::ManageImage => vec![("manage-image", Command::ManageImage { image: "base".into() })],
        Action::StopDaemon => vec![("stop-daemon", Command::StopDaemon { vms: true })],
    }
}

fn spec() -> VmSpec {
    VmSpec {
        name: "box".parse().unwrap(),
        image: "base".parse().unwrap(),
        image_digest: "0a".repeat(32).parse().unwrap(),
        provider: ProviderChoice::Auto,
        min_isolation: None,
        memory: "256M".parse().unwrap(),
        cpus: CpuCount::ONE,
        disk: "1G".parse().unwrap(),
        lifetime: Lifetime::Kept,
        labels: Labels::new(),
        env: Default::default(),
        policy: SnapshotPolicy::default(),
        life: Default::default(),
    }
}

fn snapshot() -> SnapshotRef {
    "box@before".parse().unwrap()
}

fn attempt() -> TrySpec {
    TrySpec { exec: exec(), check: Some(ExecArgv::Shell("true".into())), timeout: None }
}

fn code() -> ContextCode {
    ContextCode {
        context: "main".parse().unwrap(),
        language: None,
        code: "x = 41".into(),
        timeout: None,
        user: "user".into(),
        cwd: None,
        context_env: Default::default(),
        env: Default::default(),
        existing: false,
    }
}

fn exec() -> ExecSpec {
    ExecSpec {
        argv: ExecArgv::Shell("true".into()),
        env: BTreeMap::new(),
        cwd: None,
        user: "root".into(),
        pty: None,
        stdin: false,
        tag: None,
        limits: ExecLimits::default(),
    }
}

/// What the command meets: nothing, a VM of the caller's owner, a VM of another.
fn resources(command: &Command) -> Vec<(&'static str, Facts)> {
    let of = |owner: &str| VmFacts {
        id: VmId::from_uuid(uuid(7)),
        name: "box".parse().unwrap(),
        owner: owner.parse::<Owner>().unwrap(),
        labels: Labels::new(),
        provider: ProviderKind::Qemu,
        state: VmStateName::Running,
        generation: Generation(3),
    };
    let mut resources = vec![("none", Facts::NONE)];
    if matches!(command.target(), Target::Vm(_) | Target::Operation(_) | Target::Snapshot(_)) {
        resources.push(("own-vm", Facts { vm: Some(of("local")), ..Facts::NONE }));
        resources.push(("foreign-vm", Facts { vm: Some(of("foreign")), ..Facts::NONE }));
    }
    resources
}

fn cell(decision: &Decision) -> String {
    let short = |rules: &[RuleId]| {
        let rules: Vec<_> = rules.iter().map(|rule| rule.as_str().rsplit('/').next().unwrap()).collect();
        rules.join("+")
    };
    match decision {
        Decision::Permit(authorized) => format!("permit {}", short(authorized.grant().rules())),
        Decision::Deny(denial) => format!("deny {}", short(&denial.rule_ids)),
        Decision::Require(required) => format!("require {}", short(&required.rule_ids)),
    }
}

fn matrix(policy: &Policy) -> String {
    let mut table = format!("policy {}\n\n{:18} {:11}", policy.revision(), "command", "resource");
    for (name, _) in actors() {
        write!(table, " {name:14}").unwrap();
    }
    for action in Action::ALL {
        for (name, command) in commands(action) {
            assert_eq!(command.action(), action, "{name}");
            for (resource, facts) in resources(&command) {
                write!(table, "\n{name:18} {resource:11}").unwrap();
                for (_, actor) in actors() {
                    let facts = facts.clone().with_key(key_facts(&actor));
                    let decision = policy.decide(&actor, command.clone(), &facts);
                    write!(table, " {:14}", cell(&decision)).unwrap();
                }
            }
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn every_way_in_is_judged_as_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/built_in.txt");
    let found = matrix(&Policy::built_in(SOCKET_OWNER));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    assert!(found == expected, "{} says otherwise:\n{found}", path.display());
}

/// The table, read back: independent of what is checked in.
#[test]
fn no_cell_permits_anyone_but_the_owner_and_the_daemon_without_a_key_or_token() {
    let policy = Policy::built_in(SOCKET_OWNER);
    for action in Action::ALL {
        for (name, command) in commands(action) {
            for (resource, facts) in resources(&command) {
                for (who, actor) in actors() {
                    let facts = facts.clone().with_key(key_facts(&actor));
                    let permitted =
                        matches!(policy.decide(&actor, command.clone(), &facts), Decision::Permit(_));
                    let all = matches!(who, "owner" | "daemon" | "key-all");
                    match (all, actor) {
                        (true, _) | (false, Actor::LocalUser { .. } | Actor::Daemon) => {
                            assert_eq!(permitted, all, "{who} {name} {resource}");
                        }
                        (false, _) if permitted => {
                            assert!(!matches!(who, "key-gone" | "token-other"), "{who} {name} {resource}");
                            let foreign = who == "key-other" && facts.vm.is_some();
                            assert!(!foreign, "{who} {name} {resource}: its prefix is another");
                        }
                        (false, _) => {}
                    }
                }
            }
        }
    }
}

/// A snapshot's id says nothing of whose it is: what is known of it decides.
#[test]
fn a_key_goes_back_to_snapshots_of_its_own_vms_only() {
    let policy = Policy::built_in(SOCKET_OWNER);
    let to = RollbackTo::Snapshot(SnapshotRef::Id(SnapshotId::new()));
    let command = Command::Rollback { vm: VmRef::Name("box".parse().unwrap()), to };
    let (_, own) = resources(&command).swap_remove(1);
    for (beside, permitted) in [(Some("box-2"), true), (Some("prod"), false), (None, false)] {
        let facts = Facts { beside: beside.map(|name| name.parse().unwrap()), ..own.clone() };
        let facts = facts.with_key(key_facts(&key(3)));
        let decision = policy.decide(&key(3), command.clone(), &facts);
        assert_eq!(matches!(decision, Decision::Permit(_)), permitted, "{beside:?}: {decision:?}");
    }
}

/// On another provider than its own it neither makes VMs nor has them made.
#[test]
fn a_key_of_one_provider_makes_no_vm_on_another() {
    let policy = Policy::built_in(SOCKET_OWNER);
    let vm = VmRef::Name("box".parse().unwrap());
    let fork = Command::Fork { source: ForkSource::Vm(vm.clone()), name: None, count: 1 };
    let race = Command::Race { vm, count: 2, spec: Box::new(exec()), score: None };
    for command in [fork, race] {
        let (_, own) = resources(&command).swap_remove(1);
        for (provider, permitted) in [(ProviderKind::Qemu, true), (ProviderKind::Gvisor, false)] {
            let vm = own.vm.clone().map(|vm| VmFacts { provider, ..vm });
            let facts = Facts { vm, ..Facts::NONE }.with_key(key_facts(&key(3)));
            let decision = policy.decide(&key(3), command.clone(), &facts);
            assert_eq!(matches!(decision, Decision::Permit(_)), permitted, "{provider}: {decision:?}");
        }
    }
}

#[test]
fn root_is_served_where_root_owns_the_socket() {
    let root = Actor::LocalUser { uid: 0, owner: Owner::default() };
    let decision = Policy::built_in(0).decide(&root, Command::StopDaemon { vms: false }, &Facts::NONE);
    assert!(matches!(decision, Decision::Permit(_)), "{decision:?}");
}
