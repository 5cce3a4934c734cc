//! Forwarded ports and `cp`, against what the channel itself carries.
//!
//! The limit is a file in the guest's memory, read and written through the API: the agent and the channel, and no program. What
//! forwarding adds is a program in the guest with a socket, and on this host a WebSocket and another socket.

use crate::{
    Plan,
    offshoot::socket,
    sample::{Row, Unit, ms},
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, future::join_all};
use offshoot_api::{
    Client,
    v1::{CreateVm, ReadQuery, WriteQuery},
};
use offshoot_testkit::{Session, TestEnv};
use offshoot_types::VmRef;
use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::ChildStdout,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Twice this fits into the guest.
const SIZE: usize = 32 << 20;
const CHUNK: usize = 128 << 10;
const CONNECTIONS: usize = 200;
/// What takes longer has stalled.
const STALLED: Duration = Duration::from_secs(120);

/// 7000 echoes, 7001 sends what it is asked for, 7002 takes what comes and says when it has it.
const SERVERS: &str = "
import asyncio, socket, threading
def listen(port, serve):
    server = socket.create_server(('127.0.0.1', port), backlog=16)
    def run():
        while True:
            serve(server.accept()[0])
    threading.Thread(target=run).start()
block = bytes(1 << 18)
def source(conn):
    left = int.from_bytes(conn.recv(8), 'big')
    while left > 0:
        left -= conn.send(block[:left])
    conn.close()
def sink(conn):
    buffer = bytearray(1 << 18)
    while conn.recv_into(buffer):
        pass
    conn.send(b'k')
    conn.close()
listen(7001, source)
listen(7002, sink)
async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    async with await asyncio.start_server(echo, '127.0.0.1', 7000, backlog=256) as server:
        open('/run/listening', 'w').close()
        await server.serve_forever()
asyncio.run(main())
";

/// In a virtual machine, and in a sandbox where there are some.
pub async fn measure(plan: &Plan, rows: &mut Vec<Row>) -> Result<()> {
    through(plan, TestEnv::new(), rows).await?;
    if let Some(env) = TestEnv::on_gvisor() {
        let first = rows.len();
        through(plan, env, rows).await?;
        for row in &mut rows[first..] {
            row.what = row.what.replacen("ports:", "ports on gVisor:", 1);
        }
    }
    Ok(())
}

async fn through(plan: &Plan, env: TestEnv, rows: &mut Vec<Row>) -> Result<()> {
    env.run(&["list"]).success();
    let client = Client::new(socket(&env)?);
    let vm: VmRef = "ports".parse().context("a valid name")?;
    client.create(&CreateVm { name: "ports".into(), start: true, ..CreateVm::default() }).await?;
    env.run(&["exec", "ports", "--detach", "--", "python3", "-c", SERVERS]).success();
    env.run(&["exec", "ports", "--", "sh", "-c", "until [ -e /run/listening ]; do sleep 0.1; done"])
        .success();

    channel(plan, &client, &vm, rows).await?;
    let forwarding = Forwarding::begin(&env)?;
    let samples = plan.samples(10);
    for (road, through) in [("API, WebSocket", None), ("`offshoot port`", Some(&forwarding))] {
        let (mut out, mut into) = (Vec::new(), Vec::new());
        for _ in 0..samples {
            let stalled = || format!("32 MiB by {road} did not come through within {STALLED:?}");
            let (from, to) = match through {
                None => (
                    timeout(STALLED, pull(client.tcp(&vm, 7001).await?)).await,
                    timeout(STALLED, push(client.tcp(&vm, 7002).await?)).await,
                ),
                Some(forwarding) => (
                    timeout(STALLED, pull(forwarding.connect(7001).await?)).await,
                    timeout(STALLED, push(forwarding.connect(7002).await?)).await,
                ),
            };
            out.push(from.with_context(stalled)??);
            into.push(to.with_context(stalled)??);
        }
        rows.push(Row::new(format!("ports: 32 MiB out of a program, {road}"), Unit::MbPerSecond, out, 0));
        rows.push(Row::new(format!("ports: 32 MiB into a program, {road}"), Unit::MbPerSecond, into, 0));
    }
    at_once(plan, &forwarding, rows).await;
    forwarding.end()?;
    copies(plan, &env, rows)?;
    env.finish();
    Ok(())
}

fn rate(began: Instant) -> f64 {
    SIZE as f64 / 1e6 / began.elapsed().as_secs_f64()
}

/// What agent and channel carry when no program is in the way.
async fn channel(plan: &Plan, client: &Client, vm: &VmRef, rows: &mut Vec<Row>) -> Result<()> {
    let block = Bytes::from(vec![0xA5; CHUNK]);
    let (mut into, mut out) = (Vec::new(), Vec::new());
    for _ in 0..plan.samples(10) {
        let block = block.clone();
        let content = futures::stream::iter((0..SIZE / CHUNK).map(move |_| Ok(block.clone())));
        let write = WriteQuery { path: "/dev/shm/probe".into(), ..WriteQuery::default() };
        let began = Instant::now();
        client.write_file(vm, &write, content).await?;
        into.push(rate(began));
        let read = ReadQuery { path: "/dev/shm/probe".into(), ..ReadQuery::default() };
        let began = Instant::now();
        let mut download = client.read_file(vm, &read).await?;
        let mut got = 0;
        while let Some(chunk) = download.content.next().await {
            got += chunk?.len();
        }
        ensure!(got == SIZE, "{got} bytes came back of {SIZE}");
        out.push(rate(began));
    }
    rows.push(Row::new(
        "ports: limit, 32 MiB out of guest memory by the files API",
        Unit::MbPerSecond,
        out,
        0,
    ));
    rows.push(Row::new(
        "ports: limit, 32 MiB into guest memory by the files API",
        Unit::MbPerSecond,
        into,
        0,
    ));
    Ok(())
}

/// MB/s out of the guest.
async fn pull(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<f64> {
    let began = Instant::now();
    stream.write_all(&(SIZE as u64).to_be_bytes()).await?;
    stream.flush().await?;
    let mut buffer = vec![0; CHUNK];
    let mut got = 0;
    while got < SIZE {
        let count = stream.read(&mut buffer).await?;
        ensure!(count > 0, "it ended after {got} bytes");
        got += count;
    }
    Ok(rate(began))
}

/// MB/s into the guest, until its program has it all.
async fn push(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<f64> {
    let block = vec![0xA5; CHUNK];
    let began = Instant::now();
    for _ in 0..SIZE / CHUNK {
        stream.write_all(&block).await?;
    }
    stream.shutdown().await?;
    ensure!(stream.read_u8().await? == b'k', "the program says something else");
    Ok(rate(began))
}

/// Connections opened together, each of which has its answer before any is closed.
async fn at_once(plan: &Plan, forwarding: &Forwarding, rows: &mut Vec<Row>) {
    let (mut all, mut failed) = (Vec::new(), 0);
    for _ in 0..plan.samples(10) {
        let began = Instant::now();
        let each = (0..CONNECTIONS).map(|nth| async move {
            let mut stream = forwarding.connect(7000).await?;
            let word = [nth as u8; 1024];
            stream.write_all(&word).await?;
            let mut back = [0; 1024];
            stream.read_exact(&mut back).await?;
            ensure!(back == word, "connection {nth} got another's bytes");
            anyhow::Ok(stream)
        });
        match timeout(STALLED, join_all(each)).await {
            Ok(streams) if streams.iter().all(Result::is_ok) => all.push(ms(began)),
            _ => failed += 1,
        }
    }
    let what = format!("ports: {CONNECTIONS} connections at once, 1 KiB there and back in each");
    rows.push(Row::new(what, Unit::Ms, all, failed));
}

/// `offshoot cp` of one file, its start included.
fn copies(plan: &Plan, env: &TestEnv, rows: &mut Vec<Row>) -> Result<()> {
    let (here, back) = (env.work_dir().join("large"), env.work_dir().join("back"));
    fs::write(&here, vec![0xA5; SIZE]).context("write the file to copy")?;
    let (mut into, mut out) = (Vec::new(), Vec::new());
    for _ in 0..plan.samples(10) {
        into.push(
            SIZE as f64
                / 1e6
                / env.run(&["cp", "large", "ports:/dev/shm/probe"]).success().took.as_secs_f64(),
        );
        out.push(
            SIZE as f64 / 1e6 / env.run(&["cp", "ports:/dev/shm/probe", "back"]).success().took.as_secs_f64(),
        );
        fs::remove_file(&back).context("remove the copy")?;
    }
    rows.push(Row::new("ports: `cp` of 32 MiB out of guest memory", Unit::MbPerSecond, out, 0));
    rows.push(Row::new("ports: `cp` of 32 MiB into guest memory", Unit::MbPerSecond, into, 0));
    Ok(())
}

/// `offshoot port` of all three.
struct Forwarding {
    session: Session,
    /// Held, so that it may say more.
    _stdout: BufReader<ChildStdout>,
    addresses: Vec<(u16, SocketAddr)>,
}

impl Forwarding {
    fn begin(env: &TestEnv) -> Result<Self> {
        let mut session = env.spawn(&["port", "--json", "ports", "7000:0", "7001:0", "7002:0"]);
        let mut stdout = BufReader::new(session.child.stdout.take().context("standard output is a pipe")?);
        let mut line = String::new();
        stdout.read_line(&mut line).context("read where it listens")?;
        let said: serde_json::Value = serde_json::from_str(&line).context("read where it listens")?;
        let mut addresses = Vec::new();
        for one in said["ports"].as_array().context("a list of ports")? {
            let port = one["port"].as_u64().and_then(|port| u16::try_from(port).ok()).context("a port")?;
            addresses.push((port, one["address"].as_str().context("an address")?.parse()?));
        }
        Ok(Self { session, _stdout: stdout, addresses })
    }

    async fn connect(&self, port: u16) -> Result<TcpStream> {
        let (_, address) =
            self.addresses.iter().find(|(known, _)| *known == port).context("it is forwarded")?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn end(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.session.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).context("interrupt it")?;
        let status = self.session.child.wait().context("wait for `offshoot port`")?;
        ensure!(status.code() == Some(130), "`offshoot port` ended with {status}");
        Ok(())
    }
}
