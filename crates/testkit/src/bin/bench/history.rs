//! What the history costs an exec, and how long a question to 100,000 entries takes. On a record of its own, without VMs.

use crate::{
    Plan,
    sample::{Row, Unit, ms},
};
use anyhow::{Context, Result, ensure};
use offshoot_store::{
    AuditDecision, AuditEntry, HistoryEnd, HistoryFilter, HistoryOutput, HistoryStream, Limits, NewHistory,
    NewOperation, NewVm, Options, Store, StoreError, Tx,
};
use offshoot_types::{
    Actor, CpuCount, ExecStatus, IsolationClass, Labels, Lifetime, NodeName, OperationId, OperationKind,
    OperationOutcome, Owner, ProviderChoice, ProviderKind, SnapshotPolicy, VmId, VmSpec,
};
use std::time::Instant;

const ENTRIES: usize = 100_000;
const VMS: usize = 50;
/// Entries made in one commit.
const AT_ONCE: usize = 1000;

pub async fn measure(plan: &Plan, rows: &mut Vec<Row>) -> Result<()> {
    let folder = tempfile::tempdir().context("make a directory")?;
    let options = Options::new(folder.path().join("offshoot.db"), Limits::UNBOUNDED);
    let store = Store::open(options).context("open a record")?;
    let mut vms = Vec::new();
    for number in 0..VMS {
        let vm = new_vm(number)?;
        vms.push(vm.id);
        store.create_vm(operation(OperationKind::Create, Some(vm.id)), vm).await?;
    }
    cost(plan, rows, &store, vms[0]).await?;
    for first in (0..ENTRIES).step_by(AT_ONCE) {
        let vms = vms.clone();
        let fill = move |tx: &Tx<'_>| {
            (first..first + AT_ONCE).try_for_each(|number| {
                let operation = operation(OperationKind::Exec, Some(vms[number % VMS]));
                begin(tx, &operation, Some(number))?;
                // A number that shares no divisor with those of agents and VMs: each of them has failures.
                end(tx, operation.id, Some(i32::from(number % 11 == 0)))
            })
        };
        store.transaction(fill).await?;
    }
    let one_vm = HistoryFilter { vm: Some(vms[1]), ..HistoryFilter::default() };
    let agent = HistoryFilter { agent: Some("agent-1".parse()?), ..HistoryFilter::default() };
    let since = midway(&store).await?;
    for (what, filter) in [
        ("all", HistoryFilter::default()),
        ("one VM", one_vm.clone()),
        ("one agent", agent.clone()),
        ("failures", HistoryFilter { failures: true, ..HistoryFilter::default() }),
        ("failures of one agent in one VM", HistoryFilter { failures: true, agent: agent.agent, ..one_vm }),
        ("since a time", HistoryFilter { since, ..HistoryFilter::default() }),
    ] {
        let filter = HistoryFilter { owner: Some(Owner::default()), ..filter };
        let mut values = Vec::new();
        for _ in 0..plan.samples(100) {
            let (began, asked) = (Instant::now(), filter.clone());
            let page = store.read(move |view| view.history(&asked, 100)).await?;
            values.push(ms(began));
            ensure!(page.total > 0, "nothing was found");
        }
        rows.push(Row::new(format!("history: 100 of 100,000, {what}"), Unit::Ms, values, 0));
    }
    store.close().await;
    Ok(())
}

/// The time in the middle of all there is.
async fn midway(store: &Store) -> Result<Option<jiff::Timestamp>> {
    let page = store.read(|view| view.history(&HistoryFilter::default(), ENTRIES as u32)).await?;
    Ok(page.entries.get(page.entries.len() / 2).map(|entry| entry.started))
}

/// Beginning and end of an exec, each acknowledged, one after the other; every other one without a history.
async fn cost(plan: &Plan, rows: &mut Vec<Row>, store: &Store, vm: VmId) -> Result<()> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for turn in 0..plan.samples(500) * 2 {
        let history = (turn % 2 == 0).then_some(turn);
        let new = operation(OperationKind::Exec, Some(vm));
        let id = new.id;
        let began = Instant::now();
        store.transaction(move |tx| begin(tx, &new, history)).await?;
        store.transaction(move |tx| end(tx, id, history.map(|_| 0))).await?;
        if history.is_some() { &mut with } else { &mut without }.push(ms(began));
    }
    rows.push(Row::new("history: record of an exec, with it", Unit::Ms, with, 0));
    rows.push(Row::new("history: record of an exec, without it", Unit::Ms, without, 0));
    Ok(())
}

fn begin(tx: &Tx<'_>, operation: &NewOperation, history: Option<usize>) -> Result<(), StoreError> {
    tx.begin_operation(operation)?;
    tx.step_begun(operation.id, 0, "exec", &serde_json::json!({ "spec": "what an exec writes down" }))?;
    let Some(number) = history else { return Ok(()) };
    tx.begin_history(&NewHistory {
        operation: operation.id,
        agent: (number % 3 == 0).then(|| format!("agent-{}", number % 7).parse().ok()).flatten(),
        what: "python3 -c 'import json; print(json.dumps({}))'".into(),
        language: None,
        context: None,
        user: "root".into(),
        cwd: None,
        transaction: None,
    })
}

fn end(tx: &Tx<'_>, id: OperationId, history: Option<i32>) -> Result<(), StoreError> {
    tx.step_done(id, 0, None)?;
    if history.is_some() {
        let stream = HistoryStream { bytes: 1024, head: vec![b'x'; 1024], ..HistoryStream::default() };
        let output = HistoryOutput { stdout: stream, ..HistoryOutput::default() };
        tx.put_history(id, &HistoryEnd { output: Some(output), ..HistoryEnd::default() })?;
    }
    tx.exec_ended(id, ExecStatus::Exited(history.unwrap_or(0)))?;
    tx.end_operation(id, &OperationOutcome::Done)
}

fn operation(kind: OperationKind, vm: Option<VmId>) -> NewOperation {
    let actor = Actor::LocalUser { uid: 1000, owner: Owner::default() };
    NewOperation {
        id: OperationId::new(),
        kind,
        owner: Owner::default(),
        labels: Labels::new(),
        node: NodeName::default(),
        vm,
        actor: actor.clone(),
        reason: "measuring".into(),
        obligation: None,
        idempotency: None,
        request: None,
        audit: AuditEntry {
            actor,
            action: kind.to_string(),
            target: "vm".into(),
            decision: AuditDecision::Permit,
            rules: vec!["owner-of-socket/owner".into()],
            revision: "owner-of-socket/1".into(),
            detail: String::new(),
        },
    }
}

fn new_vm(number: usize) -> Result<NewVm> {
    let spec = VmSpec {
        name: format!("vm-{number}").parse()?,
        image: "base".parse()?,
        image_digest: "0a".repeat(32).parse()?,
        provider: ProviderChoice::Auto,
        min_isolation: None,
        memory: "256M".parse()?,
        cpus: CpuCount::ONE,
        disk: "1G".parse()?,
        lifetime: Lifetime::Kept,
        labels: Labels::new(),
        env: Default::default(),
        policy: SnapshotPolicy::default(),
        life: Default::default(),
    };
    Ok(NewVm {
        id: VmId::new(),
        owner: Owner::default(),
        node: NodeName::default(),
        spec,
        provider: ProviderKind::Qemu,
        isolation: IsolationClass::EmulatedVm,
        memory: None,
        position: None,
    })
}
