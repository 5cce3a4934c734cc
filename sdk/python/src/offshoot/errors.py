"""What can go wrong, in the one shape the API gives it."""

from __future__ import annotations

from typing import Any


class OffshootError(Exception):
    """A request that failed.

    `code` is stable (see docs/errors); `hint` says what to do next; `request_id` finds the request in the daemon's log;
    `retryable` says whether the same request may succeed later without anyone changing it.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "internal",
        cause: str | None = None,
        hint: str | None = None,
        request_id: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.cause = cause
        self.hint = hint
        self.request_id = request_id
        self.retryable = retryable

    def __str__(self) -> str:
        parts = [self.message]
        if self.cause:
            parts.append(f"cause: {self.cause}")
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return "; ".join(parts)

    @classmethod
    def of(cls, body: dict[str, Any], status: int | None = None) -> OffshootError:
        """The error an answer's body describes."""
        known = {key: body[key] for key in ("code", "cause", "hint", "request_id", "retryable") if body.get(key)}
        return cls(str(body.get("message") or f"the daemon answered with status {status}"), **known)


class ConnectionFailed(OffshootError):
    """No daemon could be reached."""

    def __init__(self, message: str, **more: Any) -> None:
        super().__init__(message, code="unavailable", **more)


class ProcessFailed(OffshootError):
    """A process did not end with status 0, and `check=True` was asked for. `result` is how it ended."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message, code="exec_failed")
        self.result = result


class CodeFailed(OffshootError):
    """Code in a live context ended with an error, and `check=True` was asked for. `result` is all of it."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message, code="exec_failed")
        self.result = result
