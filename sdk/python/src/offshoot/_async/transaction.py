"""Transactions: what is done in one is kept as a whole or not at all."""

from __future__ import annotations

from types import TracebackType

from .. import _within, types
from ..errors import OffshootError
from .transport import AsyncTransport


class AsyncTransaction:
    """A transaction on a VM, as a context manager: committed at its end, rolled back if an exception leaves it.

    All calls on the VM made inside belong to it, whatever handle they use; within another one it is a savepoint.
    Nobody else can change the VM meanwhile.
    """

    def __init__(self, transport: AsyncTransport, vm: str, deadline: float | None) -> None:
        self._transport = transport
        self._vm = vm
        self._deadline = deadline
        self._within = False
        self._outer: str | None = None
        #: Once it is open.
        self.id: str | None = None
        #: The snapshot of its beginning.
        self.snapshot: str | None = None
        #: How it ended, once it has.
        self.end: types.TransactionEnd | None = None

    async def begin(self) -> AsyncTransaction:
        body = {} if self._deadline is None else {"deadline_ms": int(self._deadline * 1000)}
        begun: types.Transaction = await self._transport.json(
            "POST", f"/v1/vms/{self._vm}/transactions", vm=self._vm, body=body
        )
        self.id, self.snapshot = begun["id"], begun["snapshot"]
        self._outer, self._within = _within.enter(self._vm, begun["id"]), True
        return self

    async def commit(self) -> None:
        """Keeps what was done; `vm.undo()` can still take it back."""
        await self._end("commit")

    async def rollback(self) -> None:
        """Takes back what was done."""
        await self._end("rollback")

    async def _end(self, verb: str) -> None:
        path = f"/v1/vms/{self._vm}/transactions/{self.id}/{verb}"
        ended: types.Transaction = await self._transport.json("POST", path, vm=self._vm)
        self.end = ended.get("end")
        self._leave()

    def _leave(self) -> None:
        if self._within:
            _within.leave(self._vm, self._outer)
            self._within = False

    async def __aenter__(self) -> AsyncTransaction:
        return await self.begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.end is not None:
            return
        try:
            if kind is None:
                await self.commit()
            else:
                await self.rollback()
        except OffshootError as failed:
            if error is None:
                raise
            # What went wrong inside matters more; the daemon rolls back by itself at the deadline.
            if hasattr(error, "add_note"):
                error.add_note(f"the transaction was not rolled back: {failed}")
        finally:
            self._leave()
