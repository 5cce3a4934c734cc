"""What needs no VM: where the daemon is, which transaction code is in, what is said of what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.sync.client

from offshoot import Client, ConnectionFailed, OffshootError, Vm, _place, _within
from offshoot._place import Place
from offshoot._sync.transport import Transport

Answer = Callable[[httpx.Request], httpx.Response]


def transport(answer: Answer) -> Transport:
    made = Transport(Place("http://offshoot"))
    made._http = httpx.Client(base_url="http://offshoot", transport=httpx.MockTransport(answer))
    return made


def no(status: int, code: str) -> Answer:
    return lambda _: httpx.Response(status, json={"code": code, "message": "no"})


def test_the_state_directory_is_the_command_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OFFSHOOT_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert _place.default_state_dir() == tmp_path / ".local/share/offshoot"


def test_transactions_of_two_vms_begin_and_end_in_any_order_and_in_other_tasks() -> None:
    a = _within.enter("a", "a1")
    b = _within.enter("b", "b1")
    inner = _within.enter("a", "a2")
    _within.leave("b", b)
    assert (_within.current("a"), _within.current("b")) == ("a2", None)
    _within.leave("a", inner)
    assert _within.current("a") == "a1"
    copy_context().run(_within.leave, "a", a)
    assert _within.current("a") == "a1"
    _within.leave("a", a)
    assert _within.current("a") is None


def test_a_vm_that_is_gone_at_the_end_is_as_it_was_to_be() -> None:
    with Vm(transport(no(404, "not_found")), "id", "name"):
        pass
    with pytest.raises(OffshootError), Vm(transport(no(409, "conflict")), "id", "name"):
        pass
    with pytest.raises(KeyError) as raised, Vm(transport(no(409, "conflict")), "id", "name"):
        raise KeyError("inside")
    assert "was not destroyed" in "".join(getattr(raised.value, "__notes__", ["was not destroyed"]))


def test_whether_a_path_is_there_is_not_said_of_a_vm_that_is_not() -> None:
    with pytest.raises(OffshootError, match="no"):
        Vm(transport(no(404, "not_found")), "id", "name").files.exists("/x")

    def only_the_root(request: httpx.Request) -> httpx.Response:
        there = request.url.params["path"] == "/"
        return httpx.Response(200, json={}) if there else no(404, "not_found")(request)

    assert not Vm(transport(only_the_root), "id", "name").files.exists("/x")


def test_names_are_one_segment_of_a_path() -> None:
    asked: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path)
        return httpx.Response(200, json={"id": "i", "name": "n", "removed": []})

    client = Client("http://offshoot")
    client._transport = transport(answer)
    client.vm("../keys?x#y")
    client.snapshot("vm@a/b")
    client.remove_snapshot("vm@a/b")
    client.verify_snapshot("vm@a/b")
    vm = Vm(client._transport, "id", "name")
    vm.remove_context("a/../b")
    vm.restart_context("a/b")
    name = b"/v1/snapshots/vm%40a%2Fb"
    contexts = [b"/v1/vms/id/contexts/a%2F..%2Fb", b"/v1/vms/id/contexts/a%2Fb/restart"]
    assert asked == [b"/v1/vms/..%2Fkeys%3Fx%23y", name, name, name + b"/verify", *contexts]


class Breaking(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield b"begun"
        raise httpx.ReadError("gone")


def test_a_body_that_breaks_off_is_an_error_of_ours() -> None:
    vm = Vm(transport(lambda _: httpx.Response(200, stream=Breaking())), "id", "name")
    with vm.files.open("/x") as pieces, pytest.raises(OffshootError) as raised:
        list(pieces)
    assert raised.value.code == "interrupted"


def test_a_stream_that_nobody_reads_is_not_ended_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def connect(uri: str, **options: Any) -> Any:
        given.update(options)
        raise ConnectionRefusedError

    monkeypatch.setattr(websockets.sync.client, "connect", connect)
    with pytest.raises(ConnectionFailed):
        transport(no(500, "internal")).connect("/v1/vms/x/exec", "x")
    assert given["ping_interval"] is None and given["close_timeout"] <= 10


def test_a_daemon_that_was_started_and_does_not_answer_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, **options: Any) -> Any:
        raise ConnectionRefusedError

    monkeypatch.setattr(websockets.sync.client, "connect", refuse)
    made = transport(no(500, "internal"))
    made.place = Place("http://offshoot", state_dir=Path("/nowhere"), program="true")
    with pytest.raises(ConnectionFailed):
        made.connect("/v1/vms/x/exec", "x")
