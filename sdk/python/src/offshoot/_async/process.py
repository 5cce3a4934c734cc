"""A process in a VM, followed while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from .. import _frames
from ..results import ExecResult
from .transport import AsyncConnection


class AsyncProcess:
    """A process in a VM. It is killed when this is closed before it has ended, unless it was left with `detach`.

    Iterate over it for its output as it comes, `(stream, bytes)`; `wait` gives the rest at once.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        #: In the guest.
        self.pid: int | None = None
        #: Its id: `vm.attach(id)` takes it up again.
        self.id: str | None = None
        self.result: ExecResult | None = None
        self._detached = False

    async def started(self) -> AsyncProcess:
        """Once it runs."""
        while self.pid is None:
            message = await self._connection.hear()
            if isinstance(message, dict) and message.get("event") == "started":
                self.pid, self.id = message["pid"], message["exec"]
        return self

    async def write(self, data: bytes | str) -> None:
        """To its standard input, or its terminal."""
        for frame in _frames.chunks(data.encode() if isinstance(data, str) else data):
            await self._connection.give(frame)

    async def close_stdin(self) -> None:
        await self._connection.say({"type": "stdin-end"})

    async def resize(self, rows: int, cols: int) -> None:
        """Of its terminal."""
        await self._connection.say({"type": "resize", "rows": rows, "cols": cols})

    async def signal(self, number: int) -> None:
        """To its foreground process group."""
        await self._connection.say({"type": "signal", "signal": int(number)})

    async def kill(self) -> None:
        """It and all it has started."""
        await self._connection.say({"type": "kill"})

    async def detach(self) -> None:
        """Lets it run on without us."""
        await self._connection.say({"type": "detach"})
        async for _ in self:
            pass

    def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        while self.result is None and not self._detached:
            heard: bytes | dict[str, Any] = await self._connection.hear()
            if isinstance(heard, bytes):
                return _frames.output(heard)
            if heard["event"] == "ended":
                self.result = ExecResult(b"", b"", heard["status"], heard["truncated"])
            elif heard["event"] == "detached":
                self._detached = True
        raise StopAsyncIteration

    async def wait(self) -> ExecResult:
        """How it ended, with all output that was not read yet."""
        kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        async for stream, data in self:
            kept[stream].append(data)
        if self.result is None:
            raise RuntimeError("the process was detached: its end is not known here")
        return ExecResult(b"".join(kept["stdout"]), b"".join(kept["stderr"]), self.result.status, self.result.truncated)

    async def aclose(self) -> None:
        await self._connection.aclose()

    async def __aenter__(self) -> AsyncProcess:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
