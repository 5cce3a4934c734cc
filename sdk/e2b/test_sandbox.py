"""Sandboxes: made, found, paused, forked, kept."""

import time
from contextlib import ExitStack
from datetime import datetime, timezone

import pytest
from e2b import AuthenticationException, NotFoundException, Sandbox, SandboxException, SandboxQuery, SandboxState


def test_a_sandbox_says_what_it_is_until_it_is_killed() -> None:
    sandbox = Sandbox.create("base", timeout=120, metadata={"owner": "a b", "n": "1"}, envs={"GREETING": "hello"})
    assert sandbox.is_running()
    info = sandbox.get_info()
    assert (info.sandbox_id, info.state) == (sandbox.sandbox_id, SandboxState.RUNNING)
    assert info.metadata == {"owner": "a b", "n": "1"}
    assert 60 < (info.end_at - datetime.now(timezone.utc)).total_seconds() <= 125
    assert sandbox.commands.run("echo $GREETING").stdout == "hello\n"
    sandbox.set_timeout(300)
    assert (sandbox.get_info().end_at - datetime.now(timezone.utc)).total_seconds() > 200
    assert sandbox.get_host(3000).startswith(f"3000-{sandbox.sandbox_id}.")
    assert sandbox.kill()
    assert not sandbox.kill()
    assert not sandbox.is_running()


def test_sandboxes_are_listed_by_what_they_carry() -> None:
    with ExitStack() as owned:
        mine = [owned.enter_context(Sandbox.create("base", metadata={"of": "listed"})) for _ in range(2)]
        owned.enter_context(Sandbox.create("base", metadata={"of": "others"}))
        query = SandboxQuery(metadata={"of": "listed"}, state=[SandboxState.RUNNING])
        pages = Sandbox.list(query=query, limit=1)
        found = []
        while pages.has_next:
            page = pages.next_items()
            assert len(page) <= 1
            found += page
        assert {one.sandbox_id for one in found} == {one.sandbox_id for one in mine}


def test_a_paused_sandbox_goes_on_where_it_was() -> None:
    sandbox = Sandbox.create("base", timeout=300)
    try:
        sandbox.commands.run("echo kept > /dev/shm/memory && echo kept > ~/disk")
        assert sandbox.pause()
        assert not sandbox.pause()
        assert Sandbox.get_info(sandbox.sandbox_id).state == SandboxState.PAUSED
        again = Sandbox.connect(sandbox.sandbox_id, timeout=300)
        assert again.commands.run("cat /dev/shm/memory ~/disk").stdout == "kept\nkept\n"
    finally:
        assert Sandbox.kill(sandbox.sandbox_id)


def test_a_sandbox_whose_time_is_up_is_paused_and_found_again() -> None:
    sandbox = Sandbox.create("base", timeout=300)
    try:
        sandbox.files.write("note", "still here")
        sandbox.set_timeout(1)
        deadline = time.monotonic() + 60
        while Sandbox.get_info(sandbox.sandbox_id).state != SandboxState.PAUSED:
            assert time.monotonic() < deadline, "it is not paused"
            time.sleep(0.2)
        assert Sandbox.connect(sandbox.sandbox_id).files.read("note") == "still here"
    finally:
        Sandbox.kill(sandbox.sandbox_id)


def test_forks_and_snapshots_continue_apart() -> None:
    with Sandbox.create("base", timeout=300) as parent, ExitStack() as owned:
        parent.files.write("state", "parent")
        forks = [owned.enter_context(fork) for fork in parent.fork(count=2)]
        for number, fork in enumerate(forks):
            assert fork.files.read("state") == "parent"
            fork.files.write("state", f"fork {number}")
        assert parent.files.read("state") == "parent"
        assert [fork.files.read("state") for fork in forks] == ["fork 0", "fork 1"]

        snapshot = parent.create_snapshot()
        parent.files.write("state", "later")
        with Sandbox.create(snapshot.snapshot_id) as child:
            assert child.files.read("state") == "parent"
        assert Sandbox.delete_snapshot(snapshot.snapshot_id)


def test_what_is_not_there_or_not_allowed_is_said_so() -> None:
    with pytest.raises(NotFoundException):
        Sandbox.get_info("inobody00000000000000")
    with pytest.raises(AuthenticationException):
        Sandbox.create("base", api_key="e2b_" + "0" * 40)
    with pytest.raises(SandboxException, match="template 'no-such-template' not found"):
        Sandbox.create("no-such-template")
