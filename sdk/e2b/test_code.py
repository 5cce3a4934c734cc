"""Code in live interpreters, by `e2b-code-interpreter`."""

import pytest
from e2b import NotFoundException
from e2b_code_interpreter import Sandbox


def test_the_quickstart_of_its_documentation() -> None:
    with Sandbox.create("base") as sandbox:
        sandbox.run_code("x = 1")
        execution = sandbox.run_code("x+=1; x")
        assert execution.text == "2"


def test_output_errors_and_results(sandbox: Sandbox) -> None:
    heard: list[str] = []
    ran = sandbox.run_code("print('out')\nimport sys; print('err', file=sys.stderr)\n{'a': 1}", on_stdout=lambda m: heard.append(m.line))
    assert "".join(ran.logs.stdout) == "out\n" and "".join(ran.logs.stderr) == "err\n"
    assert "".join(heard) == "out\n"
    assert (ran.text, ran.error) == ("{'a': 1}", None)
    failed = sandbox.run_code("1 / 0")
    assert failed.error is not None and failed.error.name == "ZeroDivisionError"
    assert "1 / 0" in failed.error.traceback


def test_contexts_are_apart_and_have_languages(sandbox: Sandbox) -> None:
    one, other = sandbox.create_code_context(), sandbox.create_code_context(cwd="/tmp")
    sandbox.run_code("x = 1", context=one)
    missing = sandbox.run_code("x", context=other)
    assert missing.error is not None and missing.error.name == "NameError"
    assert sandbox.run_code("import os; os.getcwd()", context=other).text == "/tmp"
    assert {context.id for context in sandbox.list_code_contexts()} >= {one.id, other.id}
    sandbox.restart_code_context(one)
    assert sandbox.run_code("'x' in globals()", context=one).text == "False"
    sandbox.remove_code_context(one)
    with pytest.raises(NotFoundException):
        sandbox.run_code("1", context=one)
    assert sandbox.run_code("const a = 6; a * 7", language="javascript").text == "42"
    assert "".join(sandbox.run_code("echo $((6 * 7))", language="bash").logs.stdout) == "42\n"


def test_environment_of_one_execution(sandbox: Sandbox) -> None:
    assert sandbox.run_code("import os; os.environ['ONLY_HERE']", envs={"ONLY_HERE": "yes"}).text == "yes"


def test_a_forked_interpreter_has_its_variables(sandbox: Sandbox) -> None:
    sandbox.run_code("kept = 41")
    [fork] = sandbox.fork(count=1)
    with fork:
        assert fork.run_code("kept + 1").text == "42"


def test_charts_and_tables_of_the_default_template() -> None:
    with Sandbox.create(timeout=600) as sandbox:
        plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3], [1, 4, 9])\nplt.title('squares')\nplt.show()"
        [shown] = sandbox.run_code(plot, timeout=150).results
        assert shown.png is not None and shown.png.startswith("iVBORw0KGgo")
        assert (shown.chart.type.value, shown.chart.title) == ("line", "squares")
        assert [list(point) for point in shown.chart.elements[0].points] == [[1, 1], [2, 4], [3, 9]]
        table = sandbox.run_code("import pandas; pandas.DataFrame({'a': [1, 2]})", timeout=150)
        assert "<table" in table.results[0].html and table.results[0].is_main_result
