//! Real interpreters on the host, through the same scripts and descriptors as in a VM.

use super::*;
use crate::{
    exec::ProcessGroups,
    reaper::{CHILDREN, Reaper},
};
use offshoot_guest_proto::message::{
    EXIT_STATUS, INTERPRETER_DIED, INTERPRETER_KILLED, OutputStream, TEXT_PLAIN,
};
use std::path::Path;

mod rich;
mod sturdy;

struct Bench {
    contexts: Arc<Contexts>,
    _files: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        crate::sys::become_subreaper();
        let files = tempfile::tempdir().unwrap();
        let addon = files.path().join("reseed.node");
        place_addon(&addon).unwrap();
        let starter =
            Starter { reaper: Reaper::start().unwrap(), trees: Arc::new(ProcessGroups), addon: Ok(addon) };
        let freezer = Arc::new(Freezer::new(Vec::new()));
        let users = Arc::new(Users::new(Path::new("/etc")));
        Self { contexts: Arc::new(Contexts::new(starter, users, freezer)), _files: files }
    }

    async fn start(&self, run: RunCode) -> Result<Code, GuestError> {
        let (context, mut turn) = self.contexts.turn(&run).await?;
        let created = self.contexts.ensure(&context, &mut turn)?;
        let (sender, events) = mpsc::channel(2);
        let (interrupt, interrupts) = mpsc::channel(1);
        let timeout = run.timeout_ms.map(Duration::from_millis);
        let run = Run { turn, created, code: run.code, env: run.env, timeout };
        let freezer = Arc::clone(&self.contexts.freezer);
        crate::task::forever("code", run.drive(sender, interrupts, freezer));
        Ok(Code { events, interrupt })
    }

    async fn run(&self, language: Language, code: &str) -> Seen {
        self.start(run(language, code)).await.unwrap().see().await
    }

    async fn run_at_home(&self, language: Language, code: &str) -> Seen {
        self.start(at_home(language, code)).await.unwrap().see().await
    }

    async fn reseed(&self) -> Vec<InterpreterThawed> {
        Contexts::reseeded(self.contexts.ask_to_reseed()).await
    }

    async fn end(&self) {
        let names: Vec<String> = self.contexts.list().into_iter().map(|info| info.context).collect();
        for name in names {
            self.contexts.remove(&name).await.unwrap();
        }
    }
}

struct Code {
    events: mpsc::Receiver<CodeEvent>,
    interrupt: mpsc::Sender<()>,
}

#[derive(Debug, Default)]
struct Seen {
    created: bool,
    count: u32,
    shown: Vec<Shown>,
    stdout: String,
    stderr: String,
    value: BTreeMap<String, String>,
    error: Option<(String, String, String)>,
    interrupted: bool,
}

/// A display, with what had been written before it.
#[derive(Debug)]
struct Shown {
    mime: BTreeMap<String, String>,
    id: Option<String>,
    update: bool,
    after: String,
}

impl Seen {
    fn value(&self) -> &str {
        self.value.get(TEXT_PLAIN).map_or("", String::as_str)
    }
    fn error(&self) -> &str {
        self.error.as_ref().map_or("", |(name, ..)| name)
    }
}

impl Code {
    async fn see(mut self) -> Seen {
        let mut seen = Seen::default();
        while let Some(event) = self.events.recv().await {
            match event {
                CodeEvent::Started { created, count, .. } => {
                    (seen.created, seen.count) = (created, count);
                }
                CodeEvent::Display { mime, id, update } => {
                    seen.shown.push(Shown { mime, id, update, after: seen.stdout.clone() });
                }
                CodeEvent::Output { stream, data } => {
                    let text = String::from_utf8_lossy(&data);
                    match stream {
                        OutputStream::Stdout => seen.stdout.push_str(&text),
                        OutputStream::Stderr => seen.stderr.push_str(&text),
                    }
                }
                CodeEvent::Value { mime } => seen.value = mime,
                CodeEvent::Error { name, message, traceback } => {
                    seen.error = Some((name, message, traceback))
                }
                CodeEvent::Ended { interrupted, .. } => seen.interrupted = interrupted,
                CodeEvent::Failed(error) => panic!("{error}"),
            }
        }
        seen
    }
}

fn run(language: Language, code: &str) -> RunCode {
    RunCode {
        context: format!("{language:?}").to_lowercase(),
        language: Some(language),
        code: code.into(),
        timeout_ms: Some(60_000),
        user: rustix::process::geteuid().as_raw().to_string(),
        cwd: Some("/".into()),
        context_env: BTreeMap::new(),
        env: BTreeMap::new(),
        existing: false,
    }
}

#[tokio::test]
async fn python_keeps_variables_and_imports_and_says_the_last_value() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let first = bench.run(Language::Python, "x = 41\nimport math").await;
    assert!(first.created && first.value.is_empty() && first.error.is_none(), "{first:?}");
    let second = bench.run(Language::Python, "x += 1; print(x); math.floor(x)").await;
    assert_eq!((second.created, second.stdout.as_str(), second.value()), (false, "42\n", "42"));
    let html = "class A:\n  def _repr_html_(self): return '<b>'\nA()";
    assert_eq!(bench.run(Language::Python, html).await.value["text/html"], "<b>");
    let error =
        bench.run(Language::Python, "import sys\ndef f():\n  print('tail', end='')\n  1/0\nf()").await;
    assert_eq!((error.error(), error.stdout.as_str()), ("ZeroDivisionError", "tail"));
    let (_, message, traceback) = error.error.unwrap();
    assert_eq!(message, "division by zero");
    assert!(traceback.contains("line 4, in f\n    1/0") && !traceback.contains("/proc/"), "{traceback}");
    assert_eq!(bench.run(Language::Python, "no syntax").await.error(), "SyntaxError");
    assert_eq!(
        bench.run(Language::Python, "import asyncio; await asyncio.sleep(0, 'later')").await.value(),
        "'later'"
    );
    bench.end().await;
}

#[tokio::test]
async fn javascript_keeps_bindings_awaits_and_shows_values() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let js = Language::Javascript;
    assert_eq!(bench.run(js, "const x = 41; let y = { a: [1, 2] }").await.error, None);
    let second = bench.run(js, "console.log(x + 1); y").await;
    assert_eq!((second.stdout.as_str(), second.value()), ("42\n", "{ a: [ 1, 2 ] }"));
    assert_eq!(
        bench.run(js, "const x = 7; await new Promise((r) => setTimeout(() => r(x), 1))").await.value(),
        "7"
    );
    let error = bench.run(js, "function f() { throw new TypeError('bad') }\nf()").await;
    let (name, message, traceback) = error.error.unwrap();
    assert_eq!((name.as_str(), message.as_str()), ("TypeError", "bad"));
    assert!(traceback.contains("at f (code-4:1:") && !traceback.contains("offshoot"), "{traceback}");
    assert_eq!(bench.run(js, "}{").await.error(), "SyntaxError");
    bench.end().await;
}

#[tokio::test]
async fn bash_is_one_shell_and_its_status_is_an_error() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    bench.run(Language::Bash, "x=41; cd /tmp; f() { echo f$x; }").await;
    let second = bench.run(Language::Bash, "x=$((x+1)); pwd; f; nosuch; false").await;
    assert_eq!(second.stdout, "/tmp\nf42\n");
    assert!(second.stderr.contains("nosuch: command not found"), "{}", second.stderr);
    assert_eq!((second.error(), second.error.as_ref().unwrap().1.as_str()), (EXIT_STATUS, "exit status 1"));
    let died = bench.run(Language::Bash, "exit 5").await;
    assert_eq!(died.error(), INTERPRETER_DIED);
    assert!(died.error.unwrap().1.contains("ended with status 5"));
    let anew = bench.run(Language::Bash, "echo \"[$x]\"").await;
    assert_eq!((anew.created, anew.stdout.as_str()), (true, "[]\n"));
    bench.end().await;
}

#[tokio::test]
async fn an_interrupt_and_a_timeout_stop_the_code_and_keep_the_variables() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    for (language, set, forever, get) in [
        (Language::Python, "x = 42", "print('on', flush=True)\nwhile True: pass", "print(x)"),
        (Language::Javascript, "let x = 42", "console.log('on'); while (true) {}", "console.log(x)"),
        (Language::Bash, "x=42", "echo on; while :; do sleep 0.01; done; echo not", "echo $x"),
    ] {
        bench.run(language, set).await;
        let mut code = bench.start(run(language, forever)).await.unwrap();
        while !matches!(code.events.recv().await, Some(CodeEvent::Output { .. })) {}
        code.interrupt.send(()).await.unwrap();
        let seen = code.see().await;
        assert!(seen.interrupted && seen.error.is_some() && !seen.stdout.contains("not"), "{seen:?}");
        let timed = RunCode { timeout_ms: Some(100), ..run(language, forever) };
        let seen = bench.start(timed).await.unwrap().see().await;
        assert!(seen.interrupted && seen.error.is_some(), "{seen:?}");
        let after = bench.run(language, get).await;
        assert_eq!((after.created, after.stdout.as_str()), (false, "42\n"), "{language:?}: {after:?}");
    }
    bench.end().await;
}

#[tokio::test]
async fn code_that_does_not_yield_is_killed_and_its_variables_are_said_to_be_gone() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass";
    let timed = RunCode { timeout_ms: Some(300), ..run(Language::Python, deaf) };
    let seen = bench.start(timed).await.unwrap().see().await;
    assert_eq!((seen.error(), seen.interrupted), (INTERPRETER_KILLED, true));
    assert!(seen.error.unwrap().1.ends_with("its variables are gone"));
    assert!(bench.run(Language::Python, "1").await.created);
    bench.end().await;
}

#[tokio::test]
async fn a_host_that_leaves_interrupts_the_code_and_the_next_code_has_its_turn() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let mut code = bench.start(run(Language::Python, "print(1)\nwhile True: pass")).await.unwrap();
    while !matches!(code.events.recv().await, Some(CodeEvent::Output { .. })) {}
    let mut waiting = std::pin::pin!(bench.run(Language::Python, "'mine'"));
    assert!(futures::poll!(&mut waiting).is_pending(), "the context is busy");
    drop(code);
    let seen = waiting.await;
    assert_eq!((seen.created, seen.value(), seen.stdout.as_str()), (false, "'mine'", ""));
    bench.end().await;
}

#[tokio::test]
async fn a_flood_of_output_comes_whole_and_before_the_end() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let seen = bench.run(Language::Python, "import sys\nsys.stdout.write('x' * 3_000_000); 'end'").await;
    assert_eq!(seen.stdout.len(), 3_000_000);
    let tail = bench.run(Language::Bash, "head -c 50000 /dev/zero | tr '\\0' y; echo -n z").await;
    assert!(tail.stdout.len() == 50_001 && tail.stdout.ends_with("yz"));
    bench.end().await;
}

#[tokio::test]
async fn every_interpreter_reseeds_itself_when_asked() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    bench.run(Language::Python, "import random, ssl; random.seed(7)").await;
    bench.run(Language::Javascript, "let a = Math.random()").await;
    bench.run(Language::Bash, "RANDOM=7").await;
    let all = bench.reseed().await;
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|one| one.random == Reseeded::Yes), "{all:?}");
    // What the seed would have given.
    let python = "a = random.random(); random.seed(7); a == random.random()";
    assert_eq!(bench.run(Language::Python, python).await.value(), "False");
    let bash = "a=$RANDOM; RANDOM=7; [[ $a != $RANDOM ]]";
    assert_eq!(bench.run(Language::Bash, bash).await.error, None);
    bench.end().await;
}

#[tokio::test]
async fn a_busy_python_reseeds_in_the_middle_and_a_busy_javascript_is_not_claimed() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let mut codes = Vec::new();
    for (language, busy) in [
        (Language::Python, "print(1)\nwhile True: pass"),
        (Language::Javascript, "console.log(1); while (true) {}"),
    ] {
        let mut code = bench.start(run(language, busy)).await.unwrap();
        while !matches!(code.events.recv().await, Some(CodeEvent::Output { .. })) {}
        codes.push(code);
    }
    let all = bench.reseed().await;
    let of = |language| &all.iter().find(|one| one.language == language).unwrap().random;
    assert_eq!(*of(Language::Python), Reseeded::Yes);
    assert!(matches!(of(Language::Javascript), Reseeded::No { reason } if reason.contains("busy")));
    bench.end().await;
}

#[tokio::test]
async fn a_context_is_of_one_language_and_one_user_and_can_be_restarted_and_removed() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    bench.run(Language::Python, "x = 1").await;
    let wrong = |change: fn(&mut RunCode)| {
        let mut run = run(Language::Python, "1");
        change(&mut run);
        run
    };
    for run in [
        wrong(|run| run.language = Some(Language::Bash)),
        wrong(|run| run.user = "nobody".into()),
        wrong(|run| run.context = "../x".into()),
    ] {
        let refused = bench.start(run).await.err().unwrap();
        assert_eq!(refused.kind, GuestErrorKind::InvalidArgument, "{refused}");
    }
    let before = bench.contexts.list()[0].clone();
    bench.contexts.restart("python").await.unwrap();
    let after = bench.contexts.list()[0].clone();
    assert!(before.pid.is_some() && after.pid.is_some() && before.pid != after.pid);
    assert_eq!(bench.run(Language::Python, "x").await.error(), "NameError");
    bench.contexts.remove("python").await.unwrap();
    assert_eq!(bench.contexts.list(), []);
    assert_eq!(bench.contexts.remove("python").await.unwrap_err().kind, GuestErrorKind::NotFound);
}

fn at_home(language: Language, code: &str) -> RunCode {
    RunCode { cwd: None, ..run(language, code) }
}

const LANGUAGES: [Language; 3] = [Language::Python, Language::Javascript, Language::Bash];

#[tokio::test]
async fn a_context_takes_over_an_interpreter_that_was_kept_ready_and_finds_it_as_if_new() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let me = at_home(Language::Bash, "").user;
    for language in LANGUAGES {
        // Asked for again, it is the same.
        for _ in 0..2 {
            bench.contexts.prepare(language, me.clone()).await.unwrap();
        }
    }
    assert_eq!((bench.contexts.spares(), bench.contexts.list()), (3, vec![]));
    let pids: Vec<i32> =
        bench.contexts.spares.kept().iter().map(|spare| spare.interpreter.live.pid).collect();
    let score = |pid| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert!(pids.iter().all(|&pid| score(pid) == "1000\n"));
    for (language, code, shown) in [
        // No name is bound that a new one would not have, and the code is its first.
        (Language::Python, "print(sorted(n for n in globals() if n[:2] != '__')); 1/0", "[]\n"),
        (Language::Javascript, "console.log(typeof _); throw new Error('x')", "undefined\n"),
        (Language::Bash, "echo \"$?\"; false", "0\n"),
    ] {
        let seen = bench.start(at_home(language, code)).await.unwrap().see().await;
        assert_eq!((seen.created, seen.stdout.as_str()), (true, shown), "{seen:?}");
        let traceback = seen.error.unwrap().2;
        assert!(language == Language::Bash || traceback.contains("code 1") || traceback.contains("code-1"));
        assert!(!bench.start(at_home(language, ":")).await.unwrap().see().await.created);
    }
    let mut taken: Vec<i32> =
        bench.contexts.list().iter().filter_map(|info| info.pid.map(u32::cast_signed)).collect();
    assert!(taken.iter().all(|&pid| score(pid) == "0\n"));
    taken.sort_unstable();
    let mut pids = pids;
    pids.sort_unstable();
    assert_eq!((taken, bench.contexts.spares()), (pids, 0));
    bench.end().await;
}

/// What a fork finds: the same interpreter, with the same numbers to come, in two VMs.
#[tokio::test]
async fn an_interpreter_that_was_kept_ready_has_numbers_of_its_own_before_its_first_code() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let me = at_home(Language::Bash, "").user;
    for (language, seed, draw) in [
        (Language::Python, "import random; random.seed(7)", "random.random()"),
        (Language::Bash, "RANDOM=7", "echo $RANDOM"),
    ] {
        bench.contexts.prepare(language, me.clone()).await.unwrap();
        {
            let mut kept = bench.contexts.spares.kept();
            let spare = kept.last_mut().unwrap();
            // Seeded behind the agent's back.
            spare.interpreter.run(seed).unwrap();
        }
        let mut interpreter = bench.contexts.spares.take(language, &me).unwrap();
        assert_eq!(interpreter.answer().await.unwrap(), answer::Answer::End { status: 0 });
        bench.contexts.spares.keep(me.clone(), interpreter);
        let seen = bench.start(at_home(language, draw)).await.unwrap().see().await;
        let again = bench.run_at_home(language, &format!("{seed}\n{draw}")).await;
        let drawn = |seen: &Seen| format!("{}{}", seen.stdout, seen.value());
        assert!(
            seen.created && !drawn(&seen).is_empty() && drawn(&seen) != drawn(&again),
            "{seen:?} {again:?}"
        );
    }
    bench.end().await;
}

#[tokio::test]
async fn where_none_is_kept_ready_that_fits_a_new_one_is_started() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let me = at_home(Language::Bash, "").user;
    bench.contexts.prepare(Language::Python, me.clone()).await.unwrap();
    // An environment that comes too late for one that runs, or another language: not this one.
    let late = [("PYTHONPATH".to_owned(), "/x".to_owned())].into();
    let late = RunCode { context_env: late, ..at_home(Language::Python, "import sys; '/x' in sys.path") };
    assert_eq!(bench.start(late).await.unwrap().see().await.value(), "True");
    assert!(bench.start(at_home(Language::Bash, ":")).await.unwrap().see().await.created);
    assert_eq!(bench.contexts.spares(), 1);
    bench.contexts.remove("python").await.unwrap();
    // It ended while nobody looked: no code is lost for it.
    let live = Arc::clone(&bench.contexts.spares.kept()[0].interpreter.live);
    live.kill().unwrap();
    live.exited().await;
    assert_eq!(bench.contexts.spares(), 0);
    assert_eq!(bench.run_at_home(Language::Python, "6 * 7").await.value(), "42");
    // It stopped listening: it is ended, and the code runs in a new one.
    bench.contexts.remove("python").await.unwrap();
    bench.contexts.prepare(Language::Python, me).await.unwrap();
    let stuck = Arc::clone(&bench.contexts.spares.kept()[0].interpreter.live);
    crate::sys::send_signal(stuck.pid, libc::SIGSTOP).unwrap();
    let seen = bench.run_at_home(Language::Python, "6 * 7").await;
    assert_eq!((seen.created, seen.value()), (true, "42"));
    assert!(stuck.exit().is_some());
    let nobody = bench.contexts.prepare(Language::Python, "no-such-user".into()).await.unwrap_err();
    assert_eq!(nobody.kind, GuestErrorKind::UnknownUser, "{nobody}");
    bench.end().await;
}
