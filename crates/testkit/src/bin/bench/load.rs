//! Many clients at once over TCP, as E2B's SDKs talk: requests a second, and how long each took.
//!
//! One connection per client, kept open; a client asks again as soon as it has its answer. Up to [`SANDBOXES`] sandboxes
//! share the work, because each is an emulated CPU of this host. What is refused for now (429, 503) is counted by itself:
//! under overload that is the right answer, and a stall is not.

use crate::{
    Plan,
    sample::{Row, Unit, ms},
};
use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::{join_all, try_join_all};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, StatusCode,
    client::conn::http1::{SendRequest, handshake},
    header::RETRY_AFTER,
};
use hyper_util::rt::TokioIo;
use offshoot_testkit::{TestEnv, wait_for_value};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::net::TcpStream;

const CLIENTS: [usize; 3] = [1, 8, 64];
const SANDBOXES: usize = 8;
/// Clients that read nothing.
const READERS: usize = 64;
const ENVD: &str = "49983";
const INTERPRETER: &str = "49999";
/// A request that takes longer has stalled.
const STALLED: Duration = Duration::from_secs(60);

pub async fn measure(plan: &Plan, rows: &mut Vec<Row>) -> Result<()> {
    let env = TestEnv::with_pool(4);
    // Its log goes to a file: a pipe that nobody reads would stall it.
    let log = File::create(env.work_dir().join("serve.log")).context("make the daemon's log")?;
    let mut serve = env.command(&["serve", "--listen", "127.0.0.1:0"]);
    let mut serving = serve.stdout(Stdio::null()).stderr(log).spawn().context("start the daemon")?;
    let address = wait_for_value("the daemon to listen", Duration::from_secs(30), || {
        let status = env.run(&["--no-autostart", "daemon", "status", "--json"]);
        let listen = (status.code == Some(0)).then(|| status.json()["listen"][0].clone())?;
        listen.as_str().and_then(|address| address.parse::<SocketAddr>().ok())
    });
    let made = env.run(&["key", "create", "load", "--json"]).success().json();
    let key = made["key"].as_str().context("the key")?.to_owned();
    let place = Place { address, key };
    let span = Duration::from_millis(if plan.quick { 2_000 } else { 10_000 });

    let sandboxes = try_join_all((0..SANDBOXES).map(|_| place.sandbox())).await?;
    rows.push(login_shell(plan, &place, &sandboxes[0]).await?);
    for clients in CLIENTS {
        let list = || Ask::native("GET", "/v1/vms", &place);
        let status = || Ask::native("GET", format!("/v1/vms/{}", sandboxes[0].id), &place);
        place.load("list", clients, span, rows, |_| list()).await?;
        place.load("status", clients, span, rows, |_| status()).await?;
        let of = |client: usize| &sandboxes[client % SANDBOXES];
        place.load("commands.run('true')", clients, span, rows, |n| Ask::command("true", of(n))).await?;
        place.load("run_code('1+1')", clients, span, rows, |n| Ask::code("1+1", of(n))).await?;
    }
    slow_readers(&place, serving.id(), &sandboxes, span, rows).await?;
    for sandbox in &sandboxes {
        place.kill(&sandbox.id).await?;
    }
    for clients in CLIENTS {
        place.creates(clients, plan, rows).await?;
    }
    env.finish();
    serving.wait().context("wait for the daemon")?;
    Ok(())
}

/// Where the daemon is, and who we are to it.
struct Place {
    address: SocketAddr,
    key: String,
}

struct Sandbox {
    id: String,
    token: String,
}

/// A request that can be made again and again.
struct Ask {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    /// What the answer has to contain.
    expected: &'static str,
}

impl Ask {
    fn native(method: &'static str, path: impl Into<String>, place: &Place) -> Self {
        let headers = vec![("x-api-key", place.key.clone())];
        Self { method, path: path.into(), headers, body: Bytes::new(), expected: "\"name\"" }
    }

    fn to(
        sandbox: &Sandbox,
        port: &str,
        path: &str,
        content: &str,
        body: Bytes,
        expected: &'static str,
    ) -> Self {
        let headers = vec![
            ("e2b-sandbox-id", sandbox.id.clone()),
            ("e2b-sandbox-port", port.into()),
            ("x-access-token", sandbox.token.clone()),
            ("content-type", content.into()),
        ];
        Self { method: "POST", path: path.into(), headers, body, expected }
    }

    /// As `sandbox.commands.run` asks for it.
    fn command(line: &str, sandbox: &Sandbox) -> Self {
        let message = json!({ "process": { "cmd": "/bin/bash", "args": ["-l", "-c", line] } }).to_string();
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).expect("a short message"));
        body.put_slice(message.as_bytes());
        let content = "application/connect+json";
        Self::to(sandbox, ENVD, "/process.Process/Start", content, body.freeze(), "exit status 0")
    }

    /// As `sandbox.run_code` asks for it.
    fn code(code: &str, sandbox: &Sandbox) -> Self {
        let body = json!({ "code": code, "language": "python" }).to_string().into();
        Self::to(sandbox, INTERPRETER, "/execute", "application/json", body, "\"2\"")
    }

    fn request(&self) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(self.method).uri(&self.path).header("host", "localhost");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        request.body(Full::new(self.body.clone())).context("make a request")
    }
}

/// How one request ended.
enum Outcome {
    Answered(f64),
    Refused,
    Failed,
}

impl Place {
    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.address).await.context("connect")?;
        stream.set_nodelay(true).context("set no delay")?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.context("begin HTTP")?;
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with its connection, and that with its client"
        )]
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    async fn once(&self, ask: &Ask) -> Result<(StatusCode, String)> {
        let mut sender = self.connect().await?;
        let answer = sender.send_request(ask.request()?).await.context("ask")?;
        let status = answer.status();
        let body = answer.into_body().collect().await.context("read the answer")?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn sandbox(&self) -> Result<Sandbox> {
        let (status, body) = self.once(&self.create()).await?;
        ensure!(status == StatusCode::CREATED, "no sandbox: {status} {body}");
        let made: Value = serde_json::from_str(&body).context("read the sandbox")?;
        let text = |name: &str| made[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
        let sandbox = Sandbox { id: text("sandboxID")?, token: text("envdAccessToken")? };
        // The first code begins its context.
        let (status, body) = self.once(&Ask::code("1+1", &sandbox)).await?;
        ensure!(status == StatusCode::OK && body.contains("\"2\""), "no code runs: {status} {body}");
        Ok(sandbox)
    }

    fn create(&self) -> Ask {
        let body = json!({ "templateID": "base", "timeout": 3600, "secure": true }).to_string().into();
        let headers = vec![("x-api-key", self.key.clone()), ("content-type", "application/json".into())];
        Ask { method: "POST", path: "/sandboxes".into(), headers, body, expected: "sandboxID" }
    }

    async fn kill(&self, id: &str) -> Result<()> {
        let ask = Ask::native("DELETE", format!("/sandboxes/{id}"), self);
        let (status, body) = self.once(&ask).await?;
        ensure!(status == StatusCode::NO_CONTENT, "{id} is not killed: {status} {body}");
        Ok(())
    }

    /// So many clients for so long, each with what `ask` gives its number.
    async fn load(
        &self,
        what: &str,
        clients: usize,
        span: Duration,
        rows: &mut Vec<Row>,
        ask: impl Fn(usize) -> Ask,
    ) -> Result<()> {
        let senders = try_join_all((0..clients).map(|_| self.connect())).await?;
        let began = Instant::now();
        let work = senders.into_iter().enumerate().map(|(client, mut sender)| {
            let ask = ask(client);
            async move {
                let mut outcomes = Vec::new();
                while began.elapsed() < span {
                    outcomes.push(one(&mut sender, &ask).await?.0);
                }
                anyhow::Ok(outcomes)
            }
        });
        let outcomes = try_join_all(work).await?.into_iter().flatten().collect();
        report(what, clients, began, outcomes, rows);
        Ok(())
    }

    /// All clients make one sandbox each at the same time, and kill it once all have an answer.
    async fn creates(&self, clients: usize, plan: &Plan, rows: &mut Vec<Row>) -> Result<()> {
        let rounds = plan.samples(if clients == 1 { 30 } else { 5 });
        let (mut outcomes, mut busy) = (Vec::new(), Duration::ZERO);
        for _ in 0..rounds {
            let senders = try_join_all((0..clients).map(|_| self.connect())).await?;
            let ask = self.create();
            let began = Instant::now();
            let made = join_all(senders.into_iter().map(|mut sender| {
                let ask = &ask;
                async move { one(&mut sender, ask).await }
            }))
            .await;
            busy += began.elapsed();
            for made in made {
                let (outcome, body) = made?;
                if matches!(outcome, Outcome::Answered(_)) {
                    let made: Value = serde_json::from_str(&body).context("read the sandbox")?;
                    self.kill(made["sandboxID"].as_str().context("no id")?).await?;
                }
                outcomes.push(outcome);
            }
            // For the pool to have its instances again; the next round is to find it as this one did.
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        report("create a sandbox", clients, Instant::now() - busy, outcomes, rows);
        Ok(())
    }
}

/// What `bash -l -c true` costs when it is spawned inside the guest: no SDK can be faster.
async fn login_shell(plan: &Plan, place: &Place, sandbox: &Sandbox) -> Result<Row> {
    let code = format!(
        "import subprocess, time\nt = []\nfor _ in range({}):\n    b = time.perf_counter()\n    \
         subprocess.run(['/bin/bash', '-l', '-c', 'true'])\n    t.append((time.perf_counter() - b) * 1e3)\n\
         print('took', *t)",
        plan.samples(200)
    );
    let (status, body) = place.once(&Ask::code(&code, sandbox)).await?;
    let out: String = body
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["type"] == "stdout")
        .filter_map(|event| event["text"].as_str().map(str::to_owned))
        .collect();
    let Some(times) = out.trim().strip_prefix("took ") else { bail!("{status}: {body}") };
    let times = times.split(' ').map(|time| time.parse().context("a time")).collect::<Result<Vec<f64>>>()?;
    Ok(Row::new("load: `bash -l -c true` spawned inside the guest", Unit::Ms, times, 0))
}

/// Clients that ask for output without end and read none of it: what each costs the daemon, and whether others notice.
async fn slow_readers(
    place: &Place,
    daemon: u32,
    sandboxes: &[Sandbox],
    span: Duration,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let resident = || -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{daemon}/status")).context("look at the daemon")?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(kib.trim().trim_end_matches(" kB").parse::<f64>().context("read VmRSS")? / 1024.0)
    };
    let before = resident()?;
    let mut unread = Vec::new();
    for reader in 0..READERS {
        let ask = Ask::command("exec yes", &sandboxes[reader % sandboxes.len()]);
        let mut sender = place.connect().await?;
        let answer = sender.send_request(ask.request()?).await.context("ask for output")?;
        ensure!(answer.status().is_success(), "no output: {}", answer.status());
        unread.push((sender, answer));
    }
    let mut most = before;
    let began = Instant::now();
    while began.elapsed() < 2 * span {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(resident()?);
    }
    let each = (most - before) / READERS as f64;
    rows.push(Row::single(
        format!("load: daemon's memory for each of {READERS} that do not read"),
        Unit::MiB,
        each,
    ));
    let list = || Ask::native("GET", "/v1/vms", place);
    place.load("list beside those that do not read", 1, span, rows, |_| list()).await?;
    drop(unread);
    Ok(())
}

async fn one(sender: &mut SendRequest<Full<Bytes>>, ask: &Ask) -> Result<(Outcome, String)> {
    let began = Instant::now();
    let answered = async {
        sender.ready().await?;
        let answer = sender.send_request(ask.request()?).await?;
        let status = answer.status();
        let later = answer.headers().contains_key(RETRY_AFTER);
        let body = answer.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, later, String::from_utf8_lossy(&body).into_owned()))
    };
    let Ok(answered) = tokio::time::timeout(STALLED, answered).await else { bail!("{} stalled", ask.path) };
    let (status, later, body) = answered.with_context(|| format!("ask for {}", ask.path))?;
    let refused = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) && later;
    let outcome = match status.is_success() && body.contains(ask.expected) {
        true => Outcome::Answered(ms(began)),
        false if refused => Outcome::Refused,
        false => {
            eprintln!("{} {}: {status} {body}", ask.method, ask.path);
            Outcome::Failed
        }
    };
    Ok((outcome, body))
}

fn report(what: &str, clients: usize, began: Instant, outcomes: Vec<Outcome>, rows: &mut Vec<Row>) {
    let seconds = began.elapsed().as_secs_f64();
    let count = |which: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| which(outcome)).count();
    let (refused, failed) =
        (count(|one| matches!(one, Outcome::Refused)), count(|one| matches!(one, Outcome::Failed)));
    let times: Vec<f64> = outcomes
        .iter()
        .filter_map(|one| match one {
            Outcome::Answered(time) => Some(*time),
            Outcome::Refused | Outcome::Failed => None,
        })
        .collect();
    let rate = times.len() as f64 / seconds;
    let what = format!("load: {what}, {clients} clients");
    eprintln!("{what}: {} answered", times.len());
    rows.push(Row::new(&what, Unit::Ms, times, failed));
    rows.push(Row::single(format!("{what}: requests a second"), Unit::PerSecond, rate));
    if refused > 0 {
        rows.push(Row::single(format!("{what}: refused for now"), Unit::Count, refused as f64));
    }
}
