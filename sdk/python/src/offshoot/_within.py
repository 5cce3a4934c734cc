"""Which transaction of which VM the calling code is in.

It is kept per task and thread: what is started inside a `with vm.transaction():` and runs as a task of its own belongs
to it too, other threads do not, and are told `in_transaction`.
"""

from __future__ import annotations

from contextvars import ContextVar

_open: ContextVar[dict[str, str]] = ContextVar("offshoot_transactions", default={})  # noqa: B039 (never changed)


def enter(vm: str, transaction: str) -> str | None:
    """Answers which one of that VM the calling code was in before: for `leave`."""
    outer = current(vm)
    _open.set({**_open.get(), vm: transaction})
    return outer


def leave(vm: str, outer: str | None) -> None:
    """Without a token of `enter`'s: those of other VMs may begin and end in any order, and in other tasks."""
    others = {name: transaction for name, transaction in _open.get().items() if name != vm}
    _open.set(others if outer is None else {**others, vm: outer})


def current(vm: str) -> str | None:
    """The innermost transaction of that VM that the calling code is in."""
    return _open.get().get(vm)


def transaction_header(vm: str | None) -> dict[str, str]:
    transaction = current(vm) if vm else None
    return {"offshoot-transaction": transaction} if transaction else {}
