"""Which transaction of which VM the calling code is in.

It is kept per task and thread: what is started inside a `with vm.transaction():` and runs as a task of its own belongs
to it too, other threads do not, and are told `in_transaction`.
"""

from __future__ import annotations

from contextvars import ContextVar, Token

_open: ContextVar[dict[str, str]] = ContextVar("offshoot_transactions", default={})  # noqa: B039 (never changed)


def enter(vm: str, transaction: str) -> Token[dict[str, str]]:
    return _open.set({**_open.get(), vm: transaction})


def leave(token: Token[dict[str, str]]) -> None:
    _open.reset(token)


def current(vm: str) -> str | None:
    """The innermost transaction of that VM that the calling code is in."""
    return _open.get().get(vm)


def transaction_header(vm: str | None) -> dict[str, str]:
    transaction = current(vm) if vm else None
    return {"offshoot-transaction": transaction} if transaction else {}
