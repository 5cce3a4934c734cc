"""One VM, by the blocking client."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from offshoot import Client, CodeFailed, ConnectionFailed, OffshootError, ProcessFailed, Vm


def test_a_process_tells_what_it_printed_and_how_it_ended(vm: Vm) -> None:
    done = vm.exec("echo out; echo err >&2; exit 3", env={"A": "b"})
    assert (done.text, done.error_text, done.exit_code) == ("out\n", "err\n", 3)
    assert vm.exec(["sh", "-c", 'cat; echo "$A"'], input="in ", env={"A": "b"}).text == "in b\n"
    with pytest.raises(ProcessFailed, match="exited with 1: no such luck") as failed:
        vm.exec("echo no such luck >&2; exit 1", check=True)
    assert failed.value.result.exit_code == 1
    assert vm.exec("sleep 60", timeout=0.2).status == {"kind": "timed-out"}
    assert vm.exec(r"printf '\377'").stdout == b"\xff"


def test_a_process_is_followed_written_to_and_taken_up_again(vm: Vm) -> None:
    with vm.spawn(["cat"], stdin=True) as process:
        process.write("one\n")
        assert next(process) == ("stdout", b"one\n")
        process.write(b"two")
        process.close_stdin()
        assert process.wait().stdout == b"two"
    with vm.spawn("sleep 60") as process:
        process.signal(signal.SIGTERM)
        assert process.wait().status == {"kind": "signaled", "signal": 15}
    with vm.spawn("read line; echo got $line", stdin=True) as process:
        process.detach()
        again = vm.attach(process.id or "")
    with again:
        again.started()
        again.write("it\n")
        assert again.wait().text == "got it\n"
    with vm.spawn("stty size", pty=(12, 34)) as terminal:
        assert terminal.wait().text.strip() == "12 34"


def test_an_interpreter_keeps_its_variables_and_tells_its_errors(vm: Vm) -> None:
    heard: list[tuple[str, str]] = []
    first = vm.run_code("x = 40\nprint('hello')\nx + 1", context="kept", on_output=lambda *said: heard.append(said))
    assert (first.text, first.stdout, heard) == ("41", "hello\n", [("stdout", "hello\n")])
    assert vm.run_code("x + 2", context="kept").text == "42"
    failed = vm.run_code("1 / 0", context="kept")
    assert failed.error is not None and failed.error.name == "ZeroDivisionError"
    with pytest.raises(CodeFailed, match="ZeroDivisionError"):
        failed.check()
    assert vm.run_code("while True: pass", context="kept", timeout=0.3).interrupted
    assert vm.run_code("const a = 6; a * 7", context="js", language="javascript").text == "42"
    assert {"kept", "js"} <= {context["context"] for context in vm.contexts()}
    vm.restart_context("kept")
    again = vm.run_code("x", context="kept")
    assert again.error is not None and again.error.name == "NameError"
    for context in ("kept", "js"):
        vm.remove_context(context)


def test_files_go_both_ways_and_errors_have_codes(vm: Vm) -> None:
    content = bytes(range(256)) * 5000
    vm.files.write("/root/some/where/a.bin", content, mode=0o600)
    assert vm.files.read("/root/some/where/a.bin") == content
    assert vm.files.read("/root/some/where/a.bin", offset=256, length=3) == b"\x00\x01\x02"
    with vm.files.open("/root/some/where/a.bin") as pieces:
        assert b"".join(pieces) == content
    vm.files.write("/root/some/b", (piece for piece in [b"from ", b"pieces"]))
    assert vm.files.read_text("/root/some/b") == "from pieces"
    assert vm.files.stat("/root/some/where/a.bin")["mode"] & 0o777 == 0o600
    vm.files.symlink("/root/some/link", "b")
    vm.files.rename("/root/some/b", "/root/some/c")
    assert sorted(entry["name"] for entry in vm.files.list("/root/some")) == ["c", "link", "where"]
    with pytest.raises(OffshootError) as missing:
        vm.files.read("/root/some/b")
    assert missing.value.code == "not_found" and missing.value.request_id
    vm.files.remove("/root/some", recursive=True)
    assert not vm.files.exists("/root/some")


def test_what_there_is_can_be_listed(client: Client, vm: Vm) -> None:
    assert vm.info()["state"] == "running"
    assert "shared" in [shown["name"] for shown in client.vms()]
    assert client.vm("shared")
    assert client.vm(vm.id).name == "shared"
    assert any("base" in image["tags"] for image in client.images())
    assert client.daemon()["vms"] >= 1
    assert any(operation["kind"] == "create" for operation in client.operations())
    first = next(client.events())
    assert first["id"] > 0
    with pytest.raises(OffshootError) as nobody:
        client.vm("nobody")
    assert nobody.value.code == "not_found"


def test_what_was_run_is_told_newest_first(vm: Vm) -> None:
    vm.exec(["sh", "-c", "echo nothing; exit 3"])
    vm.run_code("6 * 7", context="told")
    deadline = time.monotonic() + 10
    # The record of an end follows it.
    while any(entry["state"] == "running" for entry in vm.history(limit=2)):
        assert time.monotonic() < deadline
    code, process = vm.history(output=True, limit=2)
    assert (code["kind"], code["what"], code["context"]) == ("code", "6 * 7", "told")
    assert (process["kind"], process["succeeded"]) == ("exec", False)
    assert process["id"] in [entry["id"] for entry in vm.history(failures=True)]
    assert code["id"] not in [entry["id"] for entry in vm.history(failures=True)]


def test_where_no_daemon_may_be_started_the_error_says_what_to_do(tmp_path: Path) -> None:
    with (
        Client(state_dir=tmp_path, autostart=False) as client,
        pytest.raises(ConnectionFailed, match="offshoot serve"),
    ):
        client.vms()
