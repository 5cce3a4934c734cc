//! What code in a live context shows, by the real interpreters in real VMs.

use offshoot_testkit::TestEnv;
use serde_json::Value;

#[track_caller]
fn code(env: &TestEnv, vm: &str, more: &[&str], code: &str) -> Value {
    let mut line = vec!["exec", vm, "--context", "main", "--json", "--timeout", "300s"];
    line.extend(more);
    line.extend(["-c", code]);
    env.run(&line).success().json()
}

#[test]
fn code_shows_several_things_and_has_an_environment_of_its_own() {
    let env = TestEnv::new();
    env.run(&["create", "web", "--start"]).success();
    let rich = "import os\nclass A:\n  def _repr_png_(self): return bytes(2_000_000)\n  def __repr__(self): return 'a'\n\
        print('first'); display(A()); display('two')\nos.environ['K'], os.environ['HOME']";
    let seen = code(&env, "web", &["--env", "K=v", "--user", "user"], rich);
    assert_eq!((&seen["stdout"], &seen["count"]), (&"first\n".into(), &1.into()), "{seen}");
    assert_eq!(seen["value"]["text/plain"], "('v', '/home/user')");
    assert_eq!(seen["displays"][0]["mime"]["image/png"].as_str().map(str::len), Some(2_666_668));
    assert_eq!(seen["displays"][1]["mime"]["text/plain"], "'two'");
    let after = code(&env, "web", &["--user", "user"], "os.environ.get('K')");
    assert_eq!((&after["value"], &after["count"]), (&Value::Null, &2.into()), "given back");
    // As text, a picture is named.
    let shown = env.run(&["exec", "web", "--context", "main", "--user", "user", "-c", "A()"]).success();
    assert!(shown.stdout.starts_with("a [image/png"), "{shown:?}");
    env.finish();
}

#[test]
fn a_conversation_keeps_its_variables_and_saves_pictures() {
    let env = TestEnv::new();
    env.run(&["create", "web", "--start"]).success();
    let typed = "x = 41\nx + 1\nclass A:\n  def _repr_svg_(self): return '<svg/>'\n\nA()\n1/0\nx\n";
    let talked = env.run_with_input(&["repl", "web"], typed.as_bytes()).success();
    assert!(talked.stdout.contains("42\n") && talked.stdout.ends_with("41\n"), "{talked:?}");
    assert!(talked.stderr.contains("ZeroDivisionError"), "{talked:?}");
    let saved = talked.stderr.lines().find_map(|line| line.strip_prefix("saved as ")).expect("a picture");
    assert_eq!(std::fs::read(saved).expect("it is there"), b"<svg/>");
    std::fs::remove_dir_all(std::path::Path::new(saved).parent().expect("a directory")).expect("removed");
    let kept = env.run(&["exec", "web", "--context", "repl-python", "-c", "x"]).success();
    kept.prints("41\n");
    env.run(&["repl", "web", "--json"]).exits(2);
    env.finish();
}

/// Builds the image if it is not there: 1 GB, and some minutes.
#[test]
fn heavy_figures_and_tables_of_image_interpreter_come_with_their_data() {
    let env = TestEnv::new();
    env.run(&["image", "build", "interpreter"]).success();
    env.run(&["create", "lab", "--image", "interpreter", "--start", "--timeout", "120s"]).success();
    let bars = "import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [1, 2.5], label='g')\nplt.title('Bars')\n\
        plt.ylabel('Speed (km/h)'); plt.show()";
    let seen = code(&env, "lab", &["--user", "user"], bars);
    let shown = &seen["displays"][0]["mime"];
    assert!(shown["image/png"].as_str().is_some_and(|png| png.starts_with("iVBOR")), "{seen}");
    let chart: Value =
        serde_json::from_str(shown["application/vnd.e2b.chart+json"].as_str().expect("a chart")).unwrap();
    assert_eq!(
        (&chart["type"], &chart["title"], &chart["y_unit"]),
        (&"bar".into(), &"Bars".into(), &"km/h".into())
    );
    assert_eq!(chart["elements"][1], serde_json::json!({ "label": "b", "group": "g", "value": 2.5 }));
    let table = "import pandas as pd\npd.DataFrame({'n': [1, None], 's': ['a', 'b']})";
    let seen = code(&env, "lab", &["--user", "user"], table);
    assert!(seen["value"]["text/html"].as_str().is_some_and(|html| html.contains("<table")), "{seen}");
    assert_eq!(seen["value"]["application/vnd.e2b.data+json"], r#"{"n": [1.0, null], "s": ["a", "b"]}"#);
    let magic = code(&env, "lab", &["--user", "user"], "!echo $HOME\n%time 1");
    assert!(magic["stdout"].as_str().is_some_and(|out| out.starts_with("/home/user\nCPU times")), "{magic}");
    assert_eq!(magic["value"]["text/plain"], "1");
    env.finish();
}
