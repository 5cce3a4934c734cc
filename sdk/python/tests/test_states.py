"""Forks, rollbacks, transactions and races."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from offshoot import Client, OffshootError, ProcessFailed


def test_forks_continue_and_differ(client: Client) -> None:
    with client.create("parent") as parent, ExitStack() as owned:
        parent.run_code("x = 41")
        forks = parent.fork(4)
        for fork in forks:
            owned.enter_context(fork)
        assert [fork.name for fork in forks] == ["parent-1", "parent-2", "parent-3", "parent-4"]
        assert {fork.run_code("x += 1; x").text for fork in forks} == {"42"}
        assert len({fork.exec("head -c 8 /dev/urandom | od -An -tx1").text for fork in forks}) == 4
        assert all(fork.attestations and fork.attestations["hostname"] == fork.name for fork in forks)
        assert parent.run_code("x").text == "41"


def test_a_transaction_is_kept_as_a_whole_or_not_at_all(client: Client) -> None:
    with client.create() as vm:
        with vm.transaction() as kept:
            vm.exec("echo kept > /root/a", check=True)
        assert kept.end is not None and kept.end["committed"]
        with pytest.raises(ProcessFailed), vm.transaction() as lost:
            vm.exec("rm /root/a")
            vm.exec("false", check=True)
        assert lost.end is not None and not lost.end["committed"]
        assert vm.files.read_text("/root/a") == "kept\n"
        with vm.transaction():
            vm.exec("echo outer > /root/b", check=True)
            with vm.transaction() as inner:
                vm.exec("rm /root/b", check=True)
                inner.rollback()
            assert vm.files.exists("/root/b")
            with ThreadPoolExecutor(1) as elsewhere, pytest.raises(OffshootError) as refused:
                elsewhere.submit(vm.exec, "true").result()
            assert refused.value.code == "in_transaction"
        assert vm.files.exists("/root/b")
        vm.undo()
        assert not vm.files.exists("/root/b")


def test_rollbacks_attempts_races_and_differences(client: Client) -> None:
    with client.create("tried") as vm:
        before = vm.snapshot("before", note="nothing yet")
        assert before["note"] == "nothing yet"
        vm.exec("echo x > /root/new", check=True)
        changes = client.diff("tried", "tried@before", kinds=["files"])
        assert [file["path"] for file in changes["files"]["changes"]] == ["/root/new"]  # type: ignore[index]
        vm.rollback("tried@before")
        assert not vm.files.exists("/root/new")
        vm.undo()
        assert vm.files.exists("/root/new")

        tried = vm.attempt("rm /root/new; echo gone", check="test -e /root/new")
        assert (tried.committed, tried.stdout) == (False, b"gone\n")
        assert tried.reason and "check" in tried.reason
        assert vm.files.exists("/root/new")
        assert vm.attempt(["touch", "/root/kept"]).committed

        won = vm.race(
            "hostname > /root/who; echo ${HOSTNAME##*-} > /root/score; cat /root/who", 3, score="wc -c < /root/who"
        )
        assert won.winner is not None and len(won.racers) == 3
        assert all(racer.status == {"kind": "exited", "code": 0} for racer in won.racers)
        assert vm.files.read("/root/who") == won.racers[won.winner - 1].stdout


def test_a_vm_rests_and_continues(client: Client) -> None:
    with client.create() as vm:
        vm.run_code("x = 1")
        assert vm.suspend()["state"] == "suspended"
        assert vm.resume()["state"] == "running"
        assert vm.run_code("x").text == "1"
        assert vm.pause()["state"] == "paused"
        vm.resume()
        assert vm.set_life({"idle_suspend_ms": 3_600_000})["idle_suspend_ms"] == 3_600_000
        assert vm.set_snapshot_policy({"mode": "before-exec"})["mode"] == "before-exec"
        vm.exec("true")
        assert any(snapshot["origin"] == "auto" for snapshot in vm.snapshots())
