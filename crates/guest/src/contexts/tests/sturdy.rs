//! Code that would bring its interpreter out of step: forks, texts without end, threads, interrupts in the wrong place.

use super::*;

/// Runs on with the same interpreter.
async fn goes_on(bench: &Bench, language: Language) {
    let after = bench.run(language, if language == Language::Bash { "echo 42" } else { "6 * 7" }).await;
    assert!(!after.created && (after.value() == "42" || after.stdout == "42\n"), "{language:?}: {after:?}");
}

#[tokio::test]
async fn a_child_of_the_code_that_comes_to_its_end_is_no_second_interpreter() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let python = Language::Python;
    let code = "import os\npid = os.fork()\nif pid: status = os.waitpid(pid, 0)[1]\nelse: display('child')\n\
        print('parent' if pid else 'child')\n('parent', status) if pid else 'child'";
    let seen = bench.run(python, code).await;
    assert_eq!((seen.value(), seen.error.as_ref(), seen.shown.len()), ("('parent', 0)", None, 0), "{seen:?}");
    assert_eq!(seen.stdout, "child\nparent\n");
    for (end, status) in [("raise ValueError('in it')", 1), ("raise SystemExit(3)", 3)] {
        let code =
            format!("pid = os.fork()\nif not pid: {end}\nos.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])");
        let seen = bench.run(python, &code).await;
        assert_eq!((seen.value(), seen.error.as_ref()), (status.to_string().as_str(), None), "{seen:?}");
        assert_eq!(seen.stderr.contains("ValueError: in it"), status == 1, "{seen:?}");
    }
    goes_on(&bench, python).await;
    bench.end().await;
}

#[tokio::test]
async fn what_is_said_of_an_order_before_is_not_taken_for_an_answer_to_this_one() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    bench.run(Language::Python, "import os").await;
    let stale = "os.write(13, b'value 1 10 5\\ntext/plainstaleend 1 0\\n'); 'mine'";
    let seen = bench.run(Language::Python, stale).await;
    assert_eq!((seen.value(), seen.error.as_ref()), ("'mine'", None), "{seen:?}");
    bench.end().await;
}

#[tokio::test]
async fn long_texts_are_cut_by_the_bytes_they_take_and_kill_no_interpreter() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let (python, js) = (Language::Python, Language::Javascript);
    for (language, code, name) in [
        (js, "throw new Error('漢'.repeat(70000))", "Error"),
        (js, "throw '漢'.repeat(70000)", "Uncaught"),
        (python, "raise ValueError('\u{1F600}' * 70000)", "ValueError"),
        (python, "raise ValueError('\\ud800' * 70000)", "ValueError"),
    ] {
        let seen = bench.run(language, code).await;
        let (kind, message, _) = seen.error.unwrap();
        assert!(kind == name && message.len() < 66_000 && message.contains(" characters"), "{kind}");
    }
    for (code, name) in [
        ("const e = new Error('x'); e.name = '漢'.repeat(300000); throw e", "漢".repeat(200)),
        ("const f = new Error('x'); f.name = Symbol('s'); throw f", "Symbol(s)".into()),
        (
            "const g = new Error('x'); g.name = { toString() { throw null } }; throw g",
            "(it cannot be shown)".into(),
        ),
    ] {
        assert_eq!(bench.run(js, code).await.error(), name);
    }
    assert_eq!(bench.run(python, "'漢' * 70_000").await.value().matches('漢').count(), 65_535 / 3);
    for id in ["''", "'x' * 129", "'漢' * 43"] {
        for more in ["", ", update=True"] {
            let seen = bench.run(python, &format!("display(1, display_id={id}{more})")).await;
            assert_eq!((seen.error(), seen.shown.len()), ("ValueError", 0), "{id}: {seen:?}");
        }
    }
    for id in ["''", "'x'.repeat(129)", "'漢'.repeat(43)"] {
        assert_eq!(bench.run(js, &format!("await display(1, {{ id: {id} }})")).await.error(), "RangeError");
    }
    let longest = bench.run(js, "display(1, { id: 'x'.repeat(128) }); 1").await;
    assert_eq!(longest.shown[0].id.as_ref().unwrap().len(), 128);
    goes_on(&bench, js).await;
    goes_on(&bench, python).await;
    bench.end().await;
}

#[tokio::test]
async fn what_is_shown_comes_behind_what_was_written_before_and_ahead_of_what_is_written_after() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    for (language, code) in [
        (Language::Python, "for n in range(100):\n  print(n)\n  display(n)"),
        (Language::Javascript, "for (let n = 0; n < 100; n++) { console.log(n); display(n); }"),
    ] {
        let seen = bench.run(language, code).await;
        assert_eq!((seen.shown.len(), seen.error.as_ref()), (100, None), "{seen:?}");
        let mut written = String::new();
        for (n, shown) in seen.shown.iter().enumerate() {
            written.push_str(&format!("{n}\n"));
            assert_eq!((shown.mime[TEXT_PLAIN].as_str(), &shown.after), (n.to_string().as_str(), &written));
        }
    }
    bench.end().await;
}

#[tokio::test]
async fn javascript_shows_at_once_and_can_be_interrupted_while_it_shows_without_end() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let js = Language::Javascript;
    for code in ["display(7); while (true) {}", "while (true) display.html('x'.repeat(300_000))"] {
        let mut code = bench.start(run(js, code)).await.unwrap();
        while !matches!(code.events.recv().await, Some(CodeEvent::Display { .. })) {}
        code.interrupt.send(()).await.unwrap();
        let seen = code.see().await;
        assert_eq!((seen.interrupted, seen.error()), (true, "Interrupted"), "{:?}", seen.error);
        goes_on(&bench, js).await;
    }
    // What is shown while no code runs is the next code's.
    let later = "let shown = new Promise((r) => setTimeout(() => { display('late'); r(); }, 1)); 1";
    let first = bench.run(js, later).await;
    let second = bench.run(js, "await shown; 2").await;
    assert_eq!((first.shown.len() + second.shown.len(), second.value()), (1, "2"));
    bench.end().await;
}

#[tokio::test]
async fn javascript_values_are_let_go() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let js = Language::Javascript;
    let collect =
        "require('v8').setFlagsFromString('--expose-gc'); var gc = require('vm').runInNewContext('gc'); 1";
    bench.run(js, collect).await;
    for code in [
        "(() => { const o = {}; globalThis.ref = new WeakRef(o); return o; })()",
        "(() => { const o = {}; globalThis.ref = new WeakRef(o); throw o; })()",
    ] {
        let _value = bench.run(js, code).await;
        bench.run(js, "1").await;
        let gone = bench.run(js, "gc(); await null; gc(); ref.deref() === undefined").await;
        assert_eq!(gone.value(), "true", "{code}: {gone:?}");
    }
    bench.end().await;
}

#[tokio::test]
async fn a_thread_that_shows_across_the_end_of_its_code_loses_nothing_and_breaks_nothing() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let python = Language::Python;
    let code = "import threading\ndef show():\n  for n in range(100): display({'text/plain': str(n), \
        'text/html': 'x' * 300_000}, raw=True)\nthread = threading.Thread(target=show)\nthread.start(); 1";
    let first = bench.run(python, code).await;
    assert_eq!(first.value(), "1");
    let second = bench.run(python, "thread.join(); 2").await;
    assert_eq!((second.created, second.value(), second.error.as_ref()), (false, "2", None));
    let shown: Vec<_> = first.shown.iter().chain(&second.shown).map(|one| &one.mime[TEXT_PLAIN]).collect();
    assert_eq!(shown, (0..100).map(|n| n.to_string()).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    bench.end().await;
}

/// As much of matplotlib as the runner asks for.
const FIGURES: &str = "
import sys, types
def module(name, **names):
    made = sys.modules[name] = types.ModuleType(name)
    made.__dict__.update(names)
    return made
kinds = lambda *names: {name: type(name, (), {}) for name in names}
class Gcf:
    figs = {}
    @classmethod
    def get_all_fig_managers(cls): return list(cls.figs.values())
    @classmethod
    def destroy_all(cls): cls.figs.clear()
module('matplotlib', rcParams={'backend': 'module://offshoot_matplotlib'})
for name, names in {'category': ['StrCategoryConverter'], 'collections': ['PathCollection'], 'container': ['BarContainer'],
        'dates': ['DateConverter', '_SwitchableDateConverter'], 'lines': ['Line2D'],
        'patches': ['PathPatch', 'Rectangle', 'Wedge'], 'text': ['Text'], 'figure': ['Figure'], 'pyplot': []}.items():
    module('matplotlib.' + name, **kinds(*names))
    setattr(sys.modules['matplotlib'], name, sys.modules['matplotlib.' + name])
module('matplotlib._pylab_helpers', Gcf=Gcf)
class Line(sys.modules['matplotlib.lines'].Line2D):
    def __init__(self, count): self.count = count
    def get_label(self): return 'line'
    def get_xdata(self, orig=True): return range(self.count)
    get_ydata = get_xdata
    def get_xydata(self): return []
class Axis:
    converter = None
    def get_scale(self): return 'linear'
    def convert_units(self, given): return given
    def get_ticklocs(self): return []
    get_ticklabels = get_ticklocs
class Axes:
    containers, xaxis, yaxis = [], Axis(), Axis()
    def __init__(self, *children): self._children = children
    def has_data(self): return True
    def get_title(self): return 'T'
    get_xlabel = get_ylabel = get_title
class Figure(sys.modules['matplotlib.figure'].Figure):
    def __init__(self, axes, draw=lambda: None): self.axes, self.draw, self.figure, self.canvas = axes, draw, self, self
    def get_facecolor(self): return 'w'
    def get_axes(self): return self.axes()
    def savefig(self, file, **options): self.draw(); file.write(b'PNG')
    def __repr__(self): return 'a figure'
def forever():
    print('drawing', flush=True)
    while True: pass
def draw(*given):
    Gcf.figs[1] = Figure(*given)
def line(count): return lambda: [Axes(Line(count))]
";

#[tokio::test]
async fn code_with_figures_open_yields_to_an_interrupt_and_draws_none_of_them() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let python = Language::Python;
    assert_eq!(bench.run(python, FIGURES).await.error, None);
    for code in [
        // In the code; while it draws at the end; while it draws at a failed one's end.
        "draw(line(1), forever); print('code', flush=True)\nwhile True: pass",
        "draw(line(1), forever)",
        "draw(line(1), forever); 1/0",
    ] {
        let mut running = bench.start(run(python, code)).await.unwrap();
        while !matches!(running.events.recv().await, Some(CodeEvent::Output { .. })) {}
        running.interrupt.send(()).await.unwrap();
        let seen = running.see().await;
        assert_eq!((seen.error(), seen.stdout.as_str()), ("KeyboardInterrupt", ""), "{code}: {seen:?}");
        assert_eq!(bench.run(python, "len(Gcf.figs)").await.value(), "0");
    }
    goes_on(&bench, python).await;
    bench.end().await;
}

#[tokio::test]
async fn a_chart_of_too_many_points_or_of_a_strange_kind_is_shown_as_a_picture_alone() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    let python = Language::Python;
    assert_eq!(bench.run(python, FIGURES).await.error, None);
    for (axes, chart) in [("line(3)", true), ("line(50_001)", false), ("lambda: 1/0", false)] {
        let seen = bench.run(python, &format!("draw({axes})")).await;
        let shown = &seen.shown[0].mime;
        assert_eq!((shown["image/png"].as_str(), shown[TEXT_PLAIN].as_str()), ("UE5H", "a figure"), "{axes}");
        assert_eq!(shown.contains_key("application/vnd.e2b.chart+json"), chart, "{axes}: {shown:?}");
    }
    bench.end().await;
}

#[tokio::test]
async fn bash_gives_a_variable_that_was_not_exported_back_as_it_was() {
    let _one = CHILDREN.lock().await;
    let bench = Bench::new();
    bench.run(Language::Bash, "foo=max; export bar=max").await;
    let env = ["foo", "bar"].map(|name| (name.to_owned(), "lent".to_owned())).into();
    let show = "bash -c 'echo ${foo--} ${bar--}'; echo $foo";
    let lent = RunCode { env, ..run(Language::Bash, show) };
    assert_eq!(bench.start(lent).await.unwrap().see().await.stdout, "lent lent\nlent\n");
    assert_eq!(bench.run(Language::Bash, show).await.stdout, "- max\nmax\n");
    bench.end().await;
}
