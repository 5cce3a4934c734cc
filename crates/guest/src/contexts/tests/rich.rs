//! What code shows besides its output and its value, and where it runs.

use super::*;
use offshoot_guest_proto::message::MAX_VALUE;

#[tokio::test]
async fn python_shows_values_in_all_their_forms_and_displays_behind_the_output_before_them() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let python = Language::Python;
    let code = "class Rich:\n  def _repr_mimebundle_(self, include=None, exclude=None):\n    \
        return {'text/plain': 'rich', 'application/json': {'a': [1, float('nan')]}, 'bad name': 'x'}\n  \
        def _repr_png_(self): return b'PNG'\n  def _repr_latex_(self): return None\n\
        print('before'); display(Rich()); print('after')\nhandle = display('one', display_id=True)\n\
        handle.update('two')\nRich()";
    let seen = bench.run(python, code).await;
    let rich: BTreeMap<String, String> =
        [(TEXT_PLAIN, "rich"), ("application/json", "{\"a\": [1, null]}"), ("image/png", "UE5H")]
            .map(|(kind, text)| (kind.to_owned(), text.to_owned()))
            .into();
    assert_eq!((&seen.value, seen.error.as_ref(), seen.count), (&rich, None, 1), "{seen:?}");
    let [first, one, two] = &seen.shown[..] else { panic!("{seen:?}") };
    assert_eq!((&first.mime, first.after.as_str(), &first.id), (&rich, "before\n", &None));
    assert_eq!((one.mime[TEXT_PLAIN].as_str(), one.update), ("'one'", false));
    assert_eq!((two.mime[TEXT_PLAIN].as_str(), two.update, &two.id), ("'two'", true, &one.id));
    assert!(one.id.is_some() && one.after == "before\nafter\n");
    // One that shows itself is not also a value.
    let own = "class Own:\n  def _ipython_display_(self): display('mine')\nOwn()";
    let seen = bench.run(python, own).await;
    assert!(seen.value.is_empty() && seen.shown.len() == 1 && seen.count == 2, "{seen:?}");
    // One whose forms fail has its text.
    let broken =
        "class Broken:\n  def _repr_html_(self): 1/0\n  def __repr__(self): return 'broken'\nBroken()";
    let seen = bench.run(python, broken).await;
    assert_eq!((seen.value(), seen.value.len()), ("broken", 1));
    bench.end().await;
}

#[tokio::test]
async fn a_picture_of_megabytes_comes_whole_and_a_larger_one_is_said_to_be_left_out() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let class = "class Picture:\n  def __init__(self, size): self.size = size\n  \
        def _repr_png_(self): return bytes(self.size)\n  def __repr__(self): return 'a picture'\n";
    let seen = bench.run(Language::Python, &format!("{class}Picture(3_000_000)")).await;
    assert_eq!((seen.value["image/png"].len(), seen.value()), (4_000_000, "a picture"));
    let seen = bench.run(Language::Python, "display(Picture(8_000_000))").await;
    let shown = &seen.shown[0].mime;
    assert_eq!(shown.len(), 1);
    assert!(shown[TEXT_PLAIN].starts_with("a picture\n(left out") && shown[TEXT_PLAIN].contains("image/png"));
    let most = "'\u{1F600}' * 1_000_000, display({'text/html': 'x' * 4194304}, raw=True)";
    let seen = bench.run(Language::Python, most).await;
    let size: usize = seen.shown[0].mime.values().map(String::len).sum();
    assert!(size <= MAX_VALUE && seen.error.is_none(), "{size}");
    bench.end().await;
}

#[tokio::test]
async fn javascript_shows_what_it_is_told_to_and_what_values_say_of_themselves() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let js = Language::Javascript;
    let code = "console.log('a'); await display.html('<b>', { id: 'x' }); display({ k: 1 }, { id: 'x', update: true });\n\
        ({ [Symbol.for('Jupyter.display')]: async () => ({ 'text/plain': 'me', 'application/json': [1] }) })";
    let seen = bench.run(js, code).await;
    assert_eq!((seen.value(), seen.value["application/json"].as_str()), ("me", "[1]"), "{seen:?}");
    let [html, update] = &seen.shown[..] else { panic!("{seen:?}") };
    assert_eq!((html.mime["text/html"].as_str(), html.after.as_str(), html.update), ("<b>", "a\n", false));
    assert_eq!(
        (update.mime[TEXT_PLAIN].as_str(), update.id.as_deref(), update.update),
        ("{ k: 1 }", Some("x"), true)
    );
    let picture = "display.png(Buffer.alloc(3_000_000)); 1";
    let seen = bench.run(js, picture).await;
    assert_eq!(seen.shown[0].mime["image/png"].len(), 4_000_000);
    bench.end().await;
}

#[tokio::test]
async fn javascript_imports_modules_by_declarations_and_calls() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let js = Language::Javascript;
    let code = "\n  console.log(typeof readFileSync, pi)\n  import { readFileSync, existsSync as there } from 'fs'\n\
        import all, * as os from 'node:os'; import 'path'\nimport {\n default as pi } from 'data:text/javascript,export default 3'\n\
        [there('/'), all === os.default, (await import('node:util')).inspect.name, `import('x')`] // import('y')";
    let seen = bench.run(js, code).await;
    assert_eq!(
        (seen.value(), seen.stdout.as_str()),
        ("[ true, true, 'inspect', \"import('x')\" ]", "function 3\n"),
        "{seen:?}"
    );
    // Again, from a function, and of the directory the code is in.
    let code = "import { readFileSync } from 'fs';\n\
        fs = await import('fs'); d = fs.mkdtempSync('/tmp/import-'); fs.writeFileSync(d + '/own.mjs', 'export const own = 7');\n\
        pack = d + '/node_modules/pack/'; fs.mkdirSync(pack, { recursive: true });\n\
        fs.writeFileSync(pack + 'package.json', '{\"main\": \"../../own.mjs\"}');\n\
        process.chdir(d); const get = () => import('./own.mjs');\n[(await get()).own, (await import('pack')).own]";
    let seen = bench.run(js, code).await;
    assert_eq!(seen.value(), "[ 7, 7 ]", "{seen:?}");
    let (name, message, _) = bench.run(js, "import { none } from 'fs'").await.error.unwrap();
    assert_eq!((name.as_str(), message.contains("export named 'none'")), ("SyntaxError", true), "{message}");
    let (_, message, _) = bench.run(js, "await import('nothing-of-this-name')").await.error.unwrap();
    assert!(message.contains("nothing-of-this-name"), "{message}");
    // Lines are where they were, and code that is none is told of by the engine.
    let (_, _, trace) =
        bench.run(js, "import {\n  sep } from 'path'\n\nthrow Error('x')").await.error.unwrap();
    assert!(trace.contains(":4:"), "{trace}");
    assert_eq!(bench.run(js, "import {").await.error.unwrap().0, "SyntaxError");
    let seen =
        bench.run(js, "process.chdir('/'); fs.rmSync(d, { recursive: true }); process.execArgv.length").await;
    assert_eq!(seen.value(), "2");
    bench.end().await;
}

#[tokio::test]
async fn python_refuses_input_clearly_and_shows_tracebacks_of_the_code_alone() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let (name, message, traceback) = bench.run(Language::Python, "input('name? ')").await.error.unwrap();
    assert_eq!(name, "EOFError");
    assert!(message.contains("no standard input") && !traceback.contains("/proc/self/fd"), "{traceback}");
    let class = "class Bad:\n  def _repr_mimebundle_(self, **k): return {'text/plain': 'b'}\n  \
        def __repr__(self): return 1 / 0\nclass Worse:\n  def __repr__(self): return 1 / 0\n";
    let (name, _, traceback) =
        bench.run(Language::Python, &format!("{class}display(Worse())")).await.error.unwrap();
    assert!(name == "ZeroDivisionError" && !traceback.contains("in show"), "{traceback}");
    bench.end().await;
}

#[tokio::test]
async fn code_finds_the_directory_and_environment_of_its_context_and_variables_of_its_own() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let me = at_home(Language::Bash, "").user;
    let tmp = std::fs::canonicalize(std::env::temp_dir()).unwrap().to_string_lossy().into_owned();
    let variables = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    for (language, show) in [
        (
            Language::Python,
            "import os; print(os.getcwd(), *[os.environ.get(k, '-') for k in ('KEPT', 'LENT')])",
        ),
        (
            Language::Javascript,
            "console.log(process.cwd(), ...['KEPT', 'LENT'].map((k) => process.env[k] ?? '-'))",
        ),
        (Language::Bash, "bash -c 'echo $PWD ${KEPT--} ${LENT--}'"),
    ] {
        // Started for it, and taken over.
        for ready in [false, true] {
            if ready {
                bench.contexts.prepare(language, me.clone()).await.unwrap();
            }
            let code = |text: &str, env: &[(&str, &str)]| RunCode {
                cwd: Some(tmp.clone()),
                context_env: variables(&[("KEPT", "a b")]),
                env: variables(env),
                ..run(language, text)
            };
            let run = async |code: RunCode| bench.start(code).await.unwrap().see().await;
            let lent = run(code(show, &[("LENT", "x\ny"), ("KEPT", "other")])).await;
            let expected = |kept: &str, lent: &str| format!("{tmp} {kept} {lent}\n");
            let split = lent.stdout.replace("x y", "x\ny");
            assert_eq!(
                (lent.created, split),
                (true, expected("other", "x\ny")),
                "{language:?} {ready} {lent:?}"
            );
            assert_eq!(bench.contexts.spares(), 0);
            // Given back, and what the code sets itself stays.
            let after = run(code(show, &[])).await;
            assert_eq!((after.created, after.count, after.stdout), (false, 2, expected("a b", "-")));
            assert_eq!(bench.contexts.list()[0].cwd, tmp);
            let name = bench.contexts.list()[0].context.clone();
            bench.contexts.restart(&name).await.unwrap();
            assert_eq!(run(code(show, &[])).await.stdout, expected("a b", "-"), "{language:?}: begun anew");
            bench.end().await;
        }
        // A directory that is none: nothing is left of the context, whatever was kept ready.
        bench.contexts.prepare(language, me.clone()).await.unwrap();
        let nowhere = RunCode { cwd: Some("/no/such".into()), ..run_code(language) };
        assert!(bench.start(nowhere).await.is_err());
        assert!(bench.contexts.list().is_empty(), "{language:?}");
    }
    let absent = RunCode { existing: true, ..run_code(Language::Python) };
    assert_eq!(bench.start(absent).await.err().unwrap().kind, GuestErrorKind::NotFound);
    let odd = RunCode { env: variables(&[("A=B", "")]), ..run_code(Language::Python) };
    assert_eq!(bench.start(odd).await.err().unwrap().kind, GuestErrorKind::InvalidArgument);
    bench.end().await;
}

fn run_code(language: Language) -> RunCode {
    run(language, "")
}

#[tokio::test]
async fn a_display_of_code_that_goes_on_comes_at_once_and_survives_its_interrupt() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let mut code = bench.start(run(Language::Python, "display(7)\nwhile True: pass")).await.unwrap();
    while !matches!(code.events.recv().await, Some(CodeEvent::Display { .. })) {}
    code.interrupt.send(()).await.unwrap();
    let seen = code.see().await;
    assert_eq!((seen.interrupted, seen.error()), (true, "KeyboardInterrupt"));
    // In the middle of one of many: the interpreter is not taken for a liar.
    let flood = "while True: display({'text/html': 'x' * 100_000}, raw=True)";
    let mut code = bench.start(run(Language::Python, flood)).await.unwrap();
    while !matches!(code.events.recv().await, Some(CodeEvent::Display { .. })) {}
    code.interrupt.send(()).await.unwrap();
    let seen = code.see().await;
    assert_eq!((seen.interrupted, seen.error()), (true, "KeyboardInterrupt"), "{:?}", seen.error);
    assert_eq!(bench.run(Language::Python, "6 * 7").await.value(), "42");
    bench.end().await;
}
