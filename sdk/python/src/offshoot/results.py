"""What processes, code, transactions and races end as."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import types
from .errors import CodeFailed, ProcessFailed


@dataclass(frozen=True)
class ExecResult:
    """How a process ended, and what it printed."""

    stdout: bytes
    stderr: bytes
    status: types.ExitStatus
    #: Output beyond the limit was dropped.
    truncated: bool = False

    @property
    def exit_code(self) -> int:
        """As a shell would report it: 128 + signal, 124 for a timeout."""
        return exit_code(self.status)

    @property
    def text(self) -> str:
        """Standard output as text; what is no UTF-8 is replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def error_text(self) -> str:
        return self.stderr.decode(errors="replace")

    def check(self) -> ExecResult:
        """Itself, if it ended with status 0."""
        if self.exit_code != 0:
            last = self.error_text.strip().splitlines()[-1:] or ["nothing on standard error"]
            raise ProcessFailed(f"the process {describe(self.status)}: {last[0]}", self)
        return self


def exit_code(status: types.ExitStatus) -> int:
    if status["kind"] == "exited":
        return status["code"]
    if status["kind"] == "signaled":
        return 128 + status["signal"]
    return 124


def describe(status: types.ExitStatus) -> str:
    if status["kind"] == "exited":
        return f"exited with {status['code']}"
    if status["kind"] == "signaled":
        return f"was ended by signal {status['signal']}"
    return "was killed because its time was up"


@dataclass(frozen=True)
class CodeError:
    name: str
    message: str
    #: As the interpreter shows it; may be empty.
    traceback: str = ""


@dataclass
class CodeResult:
    """What a piece of code printed, its value, and how it ended."""

    stdout: str = ""
    stderr: str = ""
    #: Of the last expression, by MIME type; `None` if it had none worth showing.
    value: dict[str, str] | None = None
    error: CodeError | None = None
    #: By a timeout, or because somebody asked.
    interrupted: bool = False
    #: The interpreter was made for this code: there were no variables of earlier code.
    created: bool = False
    #: Everything else it showed, by MIME type, in order.
    displays: list[dict[str, str]] = field(default_factory=list)

    @property
    def text(self) -> str | None:
        """The value as plain text."""
        return None if self.value is None else self.value.get("text/plain")

    def check(self) -> CodeResult:
        """Itself, if it ended without an error."""
        if self.error is not None:
            raise CodeFailed(f"{self.error.name}: {self.error.message}", self)
        return self


@dataclass(frozen=True)
class TryResult:
    """A command that was run as a transaction."""

    committed: bool
    stdout: bytes
    stderr: bytes
    #: Of the command, if it ran to an end.
    status: types.ExitStatus | None
    #: Why it was rolled back, as a sentence.
    reason: str | None
    transaction: str
    check_stdout: bytes = b""
    check_stderr: bytes = b""


@dataclass(frozen=True)
class Racer:
    """One of the forks in a race."""

    number: int
    name: str = ""
    stdout: bytes = b""
    stderr: bytes = b""
    status: types.ExitStatus | None = None
    score: float | None = None
    problem: dict[str, Any] | None = None


@dataclass(frozen=True)
class RaceResult:
    """The VM has continued as `winner`, if there is one."""

    winner: int | None
    racers: list[Racer]
    #: What the VM was before; `undo` goes back to it.
    undo: str | None
