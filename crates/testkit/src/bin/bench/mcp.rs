//! What an agent waits for: `run_code('1+1')` by MCP, over standard input and output and over HTTP, beside the same code by
//! the API.

use crate::{
    Plan,
    branch::python,
    offshoot::socket,
    sample::{Row, Unit, ms},
};
use anyhow::{Context, Result, ensure};
use offshoot_api::Client;
use offshoot_testkit::TestEnv;
use offshoot_types::VmRef;
use rmcp::{
    RoleClient, ServiceExt,
    model::{CallToolRequestParams, JsonObject},
    service::RunningService,
    transport::StreamableHttpClientTransport,
};
use serde_json::Value;
use std::{process::Stdio, time::Instant};

type Agent = RunningService<RoleClient, ()>;

pub async fn measure(plan: &Plan, rows: &mut Vec<Row>) -> Result<()> {
    let env = TestEnv::new();
    let mut command = tokio::process::Command::from(env.command(&["mcp", "--at-end", "destroy"]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut program = command.spawn().context("start `offshoot mcp`")?;
    let pipes = program.stdout.take().zip(program.stdin.take()).context("`offshoot mcp` has no pipes")?;
    let agent = ().serve(pipes).await.context("begin a session over pipes")?;
    let vm: VmRef = once(&agent).await?.parse().context("the name of the session's VM")?;
    rows.push(calls(plan, "mcp: `run_code('1+1')` over standard input and output", &agent).await);

    let socket = socket(&env)?;
    let address = format!("http://offshoot/mcp?vm={vm}");
    let transport = StreamableHttpClientTransport::from_unix_socket(
        socket.to_str().context("the socket's path is not UTF-8")?,
        address,
    );
    let served = ().serve(transport).await.context("begin a session over HTTP")?;
    rows.push(calls(plan, "mcp: `run_code('1+1')` over HTTP", &served).await);
    served.cancel().await.context("end the session over HTTP")?;

    let (client, mut values, mut failed) = (Client::new(socket), Vec::new(), 0);
    for _ in 0..plan.samples(500) {
        let began = Instant::now();
        match python(&client, &vm, "1+1").await {
            Ok(_) => values.push(ms(began)),
            Err(_) => failed += 1,
        }
    }
    rows.push(Row::new("mcp: of that, the same code by the API", Unit::Ms, values, failed));
    agent.cancel().await.context("end the session over pipes")?;
    let status = program.wait().await.context("wait for `offshoot mcp`")?;
    ensure!(status.success(), "`offshoot mcp` ended with {status}");
    env.finish();
    Ok(())
}

async fn calls(plan: &Plan, what: &str, agent: &Agent) -> Row {
    let (mut values, mut failed) = (Vec::new(), 0);
    for _ in 0..plan.samples(500) {
        let began = Instant::now();
        match once(agent).await {
            Ok(_) => values.push(ms(began)),
            Err(_) => failed += 1,
        }
    }
    Row::new(what, Unit::Ms, values, failed)
}

/// One call; returns the VM it ran in.
async fn once(agent: &Agent) -> Result<String> {
    let arguments: JsonObject = [("code".to_owned(), Value::from("1+1"))].into_iter().collect();
    let call = CallToolRequestParams::new("run_code").with_arguments(arguments);
    let answer = agent.peer().call_tool(call).await?.structured_content.context("an answer without data")?;
    ensure!(answer["value"] == "2", "the answer is {answer}");
    Ok(answer["vm"].as_str().context("the answer names no VM")?.to_owned())
}
