# Made by scripts/generate.py from `_async/`: change that.
"""One VM."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, cast

from .. import _frames, types
from .._place import segment
from ..errors import OffshootError
from ..results import CodeError, CodeResult, ExecResult, Racer, RaceResult, TryResult
from .files import Files
from .process import Process
from .transaction import Transaction
from .transport import Transport

#: A program and its arguments, or a script for bash.
Command = str | Sequence[str]


def _command(command: Command) -> dict[str, Any]:
    return {"shell": command} if isinstance(command, str) else {"argv": list(command)}


def _exec(
    command: Command,
    env: dict[str, str] | None,
    cwd: str | None,
    user: str | None,
    timeout: float | None,
) -> dict[str, Any]:
    asked = {**_command(command), "env": env, "cwd": cwd, "user": user}
    request = {key: value for key, value in asked.items() if value is not None}
    if timeout is not None:
        request["limits"] = {"timeout_ms": _milliseconds(timeout)}
    return request


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


class Vm:
    """A VM, by its id: the same one whatever happens to it.

    As a context manager it is destroyed at the end.
    """

    def __init__(self, transport: Transport, id: str, name: str, fork: types.ForkedVm | None = None) -> None:
        self._transport = transport
        self.id = id
        self.name = name
        #: Of a fork, what was renewed in it.
        self.attestations = None if fork is None else fork.get("attestations")
        self.files = Files(transport, id)

    @classmethod
    def of(cls, transport: Transport, shown: types.Vm) -> Vm:
        return cls(transport, shown["id"], shown["name"])

    def __repr__(self) -> str:
        return f"<Vm {self.name}>"

    def __enter__(self) -> Vm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.destroy()
        except OffshootError as failed:
            if failed.code == "not_found":
                # It is gone, as it was to be.
                return
            if error is None:
                raise
            # What went wrong inside matters more.
            if hasattr(error, "add_note"):
                error.add_note(f"the VM was not destroyed: {failed}")

    def _path(self, verb: str = "") -> str:
        return f"/v1/vms/{self.id}{verb}"

    def _post(self, verb: str, body: dict[str, Any] | None = None) -> Any:
        return self._transport.json("POST", self._path(verb), vm=self.id, body=body or {})

    def info(self) -> types.Vm:
        return cast(types.Vm, self._transport.json("GET", self._path(), vm=self.id))

    def wait(self, state: str, *, timeout: float = 60) -> types.Vm:
        """Until it is in that state, at most a minute; then as it is."""
        query = {"state": state, "timeout_ms": _milliseconds(timeout)}
        waited = self._transport.json("GET", self._path("/wait"), vm=self.id, query=query)
        return cast(types.Vm, waited["vm"])

    # What it does

    def exec(
        self,
        command: Command,
        *,
        input: str | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> ExecResult:
        """Runs a process to its end; a string is a script for bash. At most 8 MiB of output are kept."""
        body: dict[str, Any] = {"exec": _exec(command, env, cwd, user, timeout)}
        if input is not None:
            body["input"] = input
        done: types.ExecResult = self._post("/exec", body)
        stdout, stderr = _frames.collected(done["stdout"]), _frames.collected(done["stderr"])
        result = ExecResult(stdout, stderr, done["status"], done["truncated"])
        return result.check() if check else result

    def spawn(
        self,
        command: Command,
        *,
        stdin: bool = False,
        pty: tuple[int, int] | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
    ) -> Process:
        """Starts a process and follows it; `pty` is the size of its terminal in rows and columns."""
        request = {**_exec(command, env, cwd, user, timeout), "stdin": stdin or pty is not None}
        if pty is not None:
            request["pty"] = {"rows": pty[0], "cols": pty[1]}
        connection = self._transport.connect(self._path("/exec"), self.id)
        try:
            connection.say(request)
            return Process(connection).started()
        except BaseException:
            connection.close()
            raise

    def attach(self, exec: str) -> Process:
        """Takes up the streams of a process that runs."""
        connection = self._transport.connect(self._path(f"/execs/{segment(exec)}/attach"), self.id)
        return Process(connection)

    def execs(self) -> builtins.list[types.ExecSummary]:
        """Processes that run or have lately ended."""
        listed = self._transport.json("GET", self._path("/execs"), vm=self.id)
        return cast("list[types.ExecSummary]", listed["execs"])

    def history(
        self, *, failures: bool = False, output: bool = False, limit: int = 100
    ) -> builtins.list[types.HistoryEntry]:
        """What was run in it, newest first, also by others and before a restart; `output`: what it said, as far as the
        record has it."""
        query = {"failures": failures, "output": output, "limit": limit}
        listed = self._transport.json("GET", self._path("/history"), vm=self.id, query=query)
        return cast("list[types.HistoryEntry]", listed["entries"])

    def run_code(
        self,
        code: str,
        *,
        context: str = "default",
        language: str | None = None,
        user: str | None = None,
        cwd: str | None = None,
        timeout: float | None = None,
        on_output: Callable[[str, str], None] | None = None,
        check: bool = False,
    ) -> CodeResult:
        """Runs code in a live interpreter that keeps its variables; it is made on first use, Python by default.

        `on_output` is told what it prints as it comes: `stdout` or `stderr`, and text.
        """
        wanted: dict[str, Any] = {"context": context, "code": code, "language": language, "user": user, "cwd": cwd}
        request = {key: value for key, value in wanted.items() if value is not None}
        if timeout is not None:
            request["timeout_ms"] = _milliseconds(timeout)
        result = CodeResult()
        printed = {"stdout": bytearray(), "stderr": bytearray()}
        with self._transport.connect(self._path("/code"), self.id) as connection:
            connection.say(request)
            while True:
                heard = connection.hear()
                if isinstance(heard, bytes):
                    stream, data = _frames.output(heard)
                    printed[stream] += data
                    if on_output is not None:
                        on_output(stream, data.decode(errors="replace"))
                elif heard["event"] == "started":
                    result.created = heard["created"]
                elif heard["event"] == "value":
                    result.value = heard["mime"]
                elif heard["event"] == "display":
                    result.displays.append(heard["mime"])
                elif heard["event"] == "error":
                    result.error = CodeError(heard["name"], heard["message"], heard["traceback"])
                elif heard["event"] == "ended":
                    result.interrupted = heard["interrupted"]
                    break
        result.stdout = printed["stdout"].decode(errors="replace")
        result.stderr = printed["stderr"].decode(errors="replace")
        return result.check() if check else result

    def contexts(self) -> builtins.list[types.LiveContext]:
        listed = self._transport.json("GET", self._path("/contexts"), vm=self.id)
        return cast("list[types.LiveContext]", listed["contexts"])

    def remove_context(self, context: str) -> None:
        self._transport.send("DELETE", self._path(f"/contexts/{segment(context)}"), vm=self.id)

    def restart_context(self, context: str) -> None:
        """Its variables are gone."""
        self._post(f"/contexts/{segment(context)}/restart")

    # Its states

    def snapshot(
        self, name: str | None = None, *, disk_only: bool = False, note: str | None = None
    ) -> types.Snapshot:
        """Keeps its present state."""
        wanted: dict[str, Any] = {"name": name, "disk_only": disk_only, "note": note}
        body = {key: value for key, value in wanted.items() if value is not None}
        return cast(types.Snapshot, self._post("/snapshots", body))

    def snapshots(self) -> builtins.list[types.Snapshot]:
        listed = self._transport.json("GET", self._path("/snapshots"), vm=self.id)
        return cast("list[types.Snapshot]", listed["snapshots"])

    def fork(self, count: int = 1, *, name: str | None = None) -> builtins.list[Vm]:
        """New VMs that continue from its present state, each with an identity of its own."""
        body = {"source": self.id, "count": count, **({"name": name} if name else {})}
        forked: types.Forked = self._transport.json("POST", "/v1/forks", vm=self.id, body=body)
        return [Vm(self._transport, fork["vm"], fork["name"], fork) for fork in forked["forks"]]

    def rollback(self, to: str | None = None, *, last_good: bool = False) -> types.RolledBack:
        """Continues from an earlier snapshot (an id, or `VM@NAME`; the newest if it is not said). `last_good` is the
        newest taken before the most recent failed exec began. What it leaves is kept: `undo` goes back to it."""
        body: dict[str, Any] = {"last_good": last_good, **({"snapshot": to} if to else {})}
        return cast(types.RolledBack, self._post("/rollback", body))

    def undo(self) -> types.RolledBack:
        """Takes back the last rollback, commit or race."""
        return cast(types.RolledBack, self._post("/undo"))

    def transaction(self, *, deadline: float | None = None) -> Transaction:
        """What is done inside `with` is kept as a whole, or not at all; after `deadline` seconds (600 unless it is
        said) it is rolled back."""
        return Transaction(self._transport, self.id, deadline)

    def attempt(
        self,
        command: Command,
        *,
        check: Command | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
    ) -> TryResult:
        """Runs a command and takes back all it did unless it and `check` exit with 0 within `timeout`."""
        request: dict[str, Any] = {"exec": _exec(command, env, cwd, user, None)}
        if check is not None:
            request["check"] = _command(check)
        if timeout is not None:
            request["timeout_ms"] = _milliseconds(timeout)
        printed = {part: bytearray() for part in (1, 2, 3, 4)}
        with self._transport.connect(self._path("/try"), self.id) as connection:
            connection.say(request)
            while True:
                heard = connection.hear()
                if isinstance(heard, bytes):
                    if heard[:1] not in (b"\x01", b"\x02", b"\x03", b"\x04"):
                        raise _frames.wrong(heard)
                    printed[heard[0]] += heard[1:]
                elif heard["event"] == "ended":
                    end: types.TransactionEnd = heard["end"]
                    break
        return TryResult(
            committed=end["committed"],
            stdout=bytes(printed[1]),
            stderr=bytes(printed[2]),
            status=heard.get("status"),
            reason=end.get("reason"),
            transaction=heard["transaction"],
            check_stdout=bytes(printed[3]),
            check_stderr=bytes(printed[4]),
        )

    def race(
        self,
        command: Command,
        count: int,
        *,
        score: Command | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
    ) -> RaceResult:
        """Runs a command in `count` forks at once. The VM continues as the first that succeeds, or as the one whose
        `score` prints the highest number; without any it stays as it was."""
        request: dict[str, Any] = {"count": count, "exec": _exec(command, env, cwd, user, timeout)}
        if score is not None:
            request["score"] = _command(score)
        racers: dict[int, dict[str, Any]] = {}
        with self._transport.connect(self._path("/race"), self.id) as connection:
            connection.say(request)
            while True:
                heard = connection.hear()
                if isinstance(heard, bytes):
                    number, stream, data = _frames.race_output(heard)
                    one = racers.setdefault(number, {})
                    one[stream] = one.get(stream, b"") + data
                    continue
                if heard["event"] == "ended":
                    break
                one = racers.setdefault(heard["racer"], {})
                one.update({key: heard[key] for key in ("name", "status", "score", "problem") if key in heard})
        found = [Racer(number, **racers[number]) for number in sorted(racers)]
        return RaceResult(heard.get("winner"), found, heard.get("undo"))

    # Its life

    def start(self) -> types.Vm:
        return self._change("start")

    def stop(self) -> types.Vm:
        """Its disk is kept."""
        return self._change("stop")

    def restart(self) -> types.Vm:
        return self._change("restart")

    def pause(self) -> types.Vm:
        return self._change("pause")

    def resume(self) -> types.Vm:
        """Lets a paused or suspended VM run on."""
        return self._change("resume")

    def suspend(self) -> types.Vm:
        """Writes its memory to disk and ends its process."""
        return self._change("suspend")

    def destroy(self, *, snapshots: bool = False) -> None:
        """With its disk; named snapshots outlive it unless `snapshots`."""
        query = {"snapshots": "true" if snapshots else None}
        self._transport.send("DELETE", self._path(), vm=self.id, query=query)

    def set_life(self, life: types.SetLife) -> types.Life:
        """When it rests by itself, and how long it may run."""
        return cast(types.Life, self._settings("/life", life))

    def set_snapshot_policy(self, policy: types.SetSnapshotPolicy) -> types.SnapshotPolicy:
        """When snapshots are taken without being asked for, and what a failed exec does."""
        return cast(types.SnapshotPolicy, self._settings("/snapshot-policy", policy))

    def _settings(self, verb: str, body: object) -> Any:
        return self._transport.json("PATCH", self._path(verb), vm=self.id, body=body)

    def _change(self, verb: str) -> types.Vm:
        changed = self._post(f"/{verb}")
        return cast(types.Vm, changed["vm"])
