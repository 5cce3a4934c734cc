# Made by scripts/generate.py from `_async/`: change that.
"""A process in a VM, followed while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

from .. import _frames
from ..results import ExecResult
from .transport import Connection


class Process:
    """A process in a VM. It is killed when this is closed before it has ended, unless it was left with `detach`.

    Iterate over it for its output as it comes, `(stream, bytes)`; `wait` gives the rest at once.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        #: In the guest.
        self.pid: int | None = None
        #: Its id: `vm.attach(id)` takes it up again.
        self.id: str | None = None
        self.result: ExecResult | None = None
        self._detached = False

    def started(self) -> Process:
        """Once it runs."""
        while self.pid is None:
            message = self._connection.hear()
            if isinstance(message, dict) and message.get("event") == "started":
                self.pid, self.id = message["pid"], message["exec"]
        return self

    def write(self, data: bytes | str) -> None:
        """To its standard input, or its terminal."""
        for frame in _frames.chunks(data.encode() if isinstance(data, str) else data):
            self._connection.give(frame)

    def close_stdin(self) -> None:
        self._connection.say({"type": "stdin-end"})

    def resize(self, rows: int, cols: int) -> None:
        """Of its terminal."""
        self._connection.say({"type": "resize", "rows": rows, "cols": cols})

    def signal(self, number: int) -> None:
        """To its foreground process group."""
        self._connection.say({"type": "signal", "signal": int(number)})

    def kill(self) -> None:
        """It and all it has started."""
        self._connection.say({"type": "kill"})

    def detach(self) -> None:
        """Lets it run on without us."""
        self._connection.say({"type": "detach"})
        for _ in self:
            pass

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return self

    def __next__(self) -> tuple[str, bytes]:
        while self.result is None and not self._detached:
            heard: bytes | dict[str, Any] = self._connection.hear()
            if isinstance(heard, bytes):
                return _frames.output(heard)
            if heard["event"] == "ended":
                self.result = ExecResult(b"", b"", heard["status"], heard["truncated"])
            elif heard["event"] == "detached":
                self._detached = True
        raise StopIteration

    def wait(self) -> ExecResult:
        """How it ended, with all output that was not read yet."""
        kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        for stream, data in self:
            kept[stream].append(data)
        if self.result is None:
            raise RuntimeError("the process was detached: its end is not known here")
        return ExecResult(b"".join(kept["stdout"]), b"".join(kept["stderr"]), self.result.status, self.result.truncated)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
