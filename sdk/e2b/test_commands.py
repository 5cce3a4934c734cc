"""Processes, in the foreground, in the background and in terminals."""

import os
import threading

import pytest
from e2b import CommandExitException, PtySize, Sandbox, TimeoutException


def test_a_command_runs_as_the_user_with_its_environment(sandbox: Sandbox) -> None:
    ran = sandbox.commands.run('whoami; pwd; echo "$A"; echo err >&2', envs={"A": "b"})
    assert (ran.stdout, ran.stderr, ran.exit_code) == ("user\n/home/user\nb\n", "err\n", 0)
    assert sandbox.commands.run("whoami; pwd", user="root", cwd="/tmp").stdout == "root\n/tmp\n"
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run("echo out; exit 3")
    assert (failed.value.exit_code, failed.value.stdout) == (3, "out\n")


def test_a_sandbox_is_of_the_provider_its_key_is_for(sandbox: Sandbox) -> None:
    kernel = sandbox.commands.run("dmesg", user="root").stdout
    assert ("gVisor" in kernel) == (os.environ.get("OFFSHOOT_E2B_PROVIDER") == "gvisor")


def test_output_is_told_as_it_comes(sandbox: Sandbox) -> None:
    heard: list[str] = []
    sandbox.commands.run("echo 1; sleep 0.3; echo 2", on_stdout=heard.append)
    assert heard == ["1\n", "2\n"]
    much = sandbox.commands.run("seq 1 100000")
    assert len(much.stdout.splitlines()) == 100_000


def test_a_command_past_its_time_is_killed(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 4321", timeout=1)
    assert sandbox.commands.run("pgrep -fx 'sleep 4321' || echo gone").stdout == "gone\n"


def test_a_background_command_is_listed_written_to_connected_to_and_killed(sandbox: Sandbox) -> None:
    reader = sandbox.commands.run("read line; echo got $line; sleep 1234", background=True, stdin=True)
    assert reader.pid in [process.pid for process in sandbox.commands.list()]
    again = sandbox.commands.connect(reader.pid)
    heard = threading.Event()

    def follow() -> None:
        with pytest.raises(CommandExitException):
            again.wait(on_stdout=lambda text: heard.set() if "got it" in text else None)

    following = threading.Thread(target=follow)
    following.start()
    sandbox.commands.send_stdin(reader.pid, "it\n")
    assert heard.wait(30)
    assert sandbox.commands.kill(reader.pid)
    following.join(30)
    assert not following.is_alive()
    assert not sandbox.commands.kill(reader.pid)


def test_a_terminal_has_a_size_and_a_shell(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=60)
    sandbox.pty.resize(terminal.pid, PtySize(rows=30, cols=100))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; exit 0\n")
    seen = bytearray()
    ended = terminal.wait(on_pty=seen.extend)
    assert ended.exit_code == 0
    assert b"30 100" in seen
