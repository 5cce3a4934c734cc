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
from .files import AsyncFiles
from .process import AsyncProcess
from .transaction import AsyncTransaction
from .transport import AsyncTransport

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


class AsyncVm:
    """A VM, by its id: the same one whatever happens to it.

    As a context manager it is destroyed at the end.
    """

    def __init__(self, transport: AsyncTransport, id: str, name: str, fork: types.ForkedVm | None = None) -> None:
        self._transport = transport
        self.id = id
        self.name = name
        #: Of a fork, what was renewed in it.
        self.attestations = None if fork is None else fork.get("attestations")
        self.files = AsyncFiles(transport, id)

    @classmethod
    def of(cls, transport: AsyncTransport, shown: types.Vm) -> AsyncVm:
        return cls(transport, shown["id"], shown["name"])

    def __repr__(self) -> str:
        return f"<Vm {self.name}>"

    async def __aenter__(self) -> AsyncVm:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.destroy()
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

    async def _post(self, verb: str, body: dict[str, Any] | None = None) -> Any:
        return await self._transport.json("POST", self._path(verb), vm=self.id, body=body or {})

    async def info(self) -> types.Vm:
        return cast(types.Vm, await self._transport.json("GET", self._path(), vm=self.id))

    async def wait(self, state: str, *, timeout: float = 60) -> types.Vm:
        """Until it is in that state, at most a minute; then as it is."""
        query = {"state": state, "timeout_ms": _milliseconds(timeout)}
        waited = await self._transport.json("GET", self._path("/wait"), vm=self.id, query=query)
        return cast(types.Vm, waited["vm"])

    # What it does

    async def exec(
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
        done: types.ExecResult = await self._post("/exec", body)
        stdout, stderr = _frames.collected(done["stdout"]), _frames.collected(done["stderr"])
        result = ExecResult(stdout, stderr, done["status"], done["truncated"])
        return result.check() if check else result

    async def spawn(
        self,
        command: Command,
        *,
        stdin: bool = False,
        pty: tuple[int, int] | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
    ) -> AsyncProcess:
        """Starts a process and follows it; `pty` is the size of its terminal in rows and columns."""
        request = {**_exec(command, env, cwd, user, timeout), "stdin": stdin or pty is not None}
        if pty is not None:
            request["pty"] = {"rows": pty[0], "cols": pty[1]}
        connection = await self._transport.connect(self._path("/exec"), self.id)
        try:
            await connection.say(request)
            return await AsyncProcess(connection).started()
        except BaseException:
            await connection.aclose()
            raise

    async def attach(self, exec: str) -> AsyncProcess:
        """Takes up the streams of a process that runs."""
        connection = await self._transport.connect(self._path(f"/execs/{segment(exec)}/attach"), self.id)
        return AsyncProcess(connection)

    async def execs(self) -> builtins.list[types.ExecSummary]:
        """Processes that run or have lately ended."""
        listed = await self._transport.json("GET", self._path("/execs"), vm=self.id)
        return cast("list[types.ExecSummary]", listed["execs"])

    async def history(
        self, *, failures: bool = False, output: bool = False, limit: int = 100
    ) -> builtins.list[types.HistoryEntry]:
        """What was run in it, newest first, also by others and before a restart; `output`: what it said, as far as the
        record has it."""
        query = {"failures": failures, "output": output, "limit": limit}
        listed = await self._transport.json("GET", self._path("/history"), vm=self.id, query=query)
        return cast("list[types.HistoryEntry]", listed["entries"])

    async def run_code(
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
        async with await self._transport.connect(self._path("/code"), self.id) as connection:
            await connection.say(request)
            while True:
                heard = await connection.hear()
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

    async def contexts(self) -> builtins.list[types.LiveContext]:
        listed = await self._transport.json("GET", self._path("/contexts"), vm=self.id)
        return cast("list[types.LiveContext]", listed["contexts"])

    async def remove_context(self, context: str) -> None:
        await self._transport.send("DELETE", self._path(f"/contexts/{segment(context)}"), vm=self.id)

    async def restart_context(self, context: str) -> None:
        """Its variables are gone."""
        await self._post(f"/contexts/{segment(context)}/restart")

    # Its states

    async def snapshot(
        self, name: str | None = None, *, disk_only: bool = False, note: str | None = None
    ) -> types.Snapshot:
        """Keeps its present state."""
        wanted: dict[str, Any] = {"name": name, "disk_only": disk_only, "note": note}
        body = {key: value for key, value in wanted.items() if value is not None}
        return cast(types.Snapshot, await self._post("/snapshots", body))

    async def snapshots(self) -> builtins.list[types.Snapshot]:
        listed = await self._transport.json("GET", self._path("/snapshots"), vm=self.id)
        return cast("list[types.Snapshot]", listed["snapshots"])

    async def fork(self, count: int = 1, *, name: str | None = None) -> builtins.list[AsyncVm]:
        """New VMs that continue from its present state, each with an identity of its own."""
        body = {"source": self.id, "count": count, **({"name": name} if name else {})}
        forked: types.Forked = await self._transport.json("POST", "/v1/forks", vm=self.id, body=body)
        return [AsyncVm(self._transport, fork["vm"], fork["name"], fork) for fork in forked["forks"]]

    async def rollback(self, to: str | None = None, *, last_good: bool = False) -> types.RolledBack:
        """Continues from an earlier snapshot (an id, or `VM@NAME`; the newest if it is not said). `last_good` is the
        newest taken before the most recent failed exec began. What it leaves is kept: `undo` goes back to it."""
        body: dict[str, Any] = {"last_good": last_good, **({"snapshot": to} if to else {})}
        return cast(types.RolledBack, await self._post("/rollback", body))

    async def undo(self) -> types.RolledBack:
        """Takes back the last rollback, commit or race."""
        return cast(types.RolledBack, await self._post("/undo"))

    def transaction(self, *, deadline: float | None = None) -> AsyncTransaction:
        """What is done inside `with` is kept as a whole, or not at all; after `deadline` seconds (600 unless it is
        said) it is rolled back."""
        return AsyncTransaction(self._transport, self.id, deadline)

    async def attempt(
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
        async with await self._transport.connect(self._path("/try"), self.id) as connection:
            await connection.say(request)
            while True:
                heard = await connection.hear()
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

    async def race(
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
        async with await self._transport.connect(self._path("/race"), self.id) as connection:
            await connection.say(request)
            while True:
                heard = await connection.hear()
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

    async def start(self) -> types.Vm:
        return await self._change("start")

    async def stop(self) -> types.Vm:
        """Its disk is kept."""
        return await self._change("stop")

    async def restart(self) -> types.Vm:
        return await self._change("restart")

    async def pause(self) -> types.Vm:
        return await self._change("pause")

    async def resume(self) -> types.Vm:
        """Lets a paused or suspended VM run on."""
        return await self._change("resume")

    async def suspend(self) -> types.Vm:
        """Writes its memory to disk and ends its process."""
        return await self._change("suspend")

    async def destroy(self, *, snapshots: bool = False) -> None:
        """With its disk; named snapshots outlive it unless `snapshots`."""
        query = {"snapshots": "true" if snapshots else None}
        await self._transport.send("DELETE", self._path(), vm=self.id, query=query)

    async def set_life(self, life: types.SetLife) -> types.Life:
        """When it rests by itself, and how long it may run."""
        return cast(types.Life, await self._settings("/life", life))

    async def set_snapshot_policy(self, policy: types.SetSnapshotPolicy) -> types.SnapshotPolicy:
        """When snapshots are taken without being asked for, and what a failed exec does."""
        return cast(types.SnapshotPolicy, await self._settings("/snapshot-policy", policy))

    async def _settings(self, verb: str, body: object) -> Any:
        return await self._transport.json("PATCH", self._path(verb), vm=self.id, body=body)

    async def _change(self, verb: str) -> types.Vm:
        changed = await self._post(f"/{verb}")
        return cast(types.Vm, changed["vm"])
