"""Micro-VMs for AI agents: run, snapshot, fork, roll back.

`Client` blocks, `AsyncClient` is for asyncio; both have the same methods.
"""

from . import types
from ._async.client import AsyncClient
from ._async.files import AsyncFiles
from ._async.process import AsyncProcess
from ._async.transaction import AsyncTransaction
from ._async.vm import AsyncVm
from ._sync.client import Client
from ._sync.files import Files
from ._sync.process import Process
from ._sync.transaction import Transaction
from ._sync.vm import Vm
from .errors import CodeFailed, ConnectionFailed, OffshootError, ProcessFailed
from .results import CodeError, CodeResult, ExecResult, Racer, RaceResult, TryResult

__all__ = [
    "AsyncClient",
    "AsyncFiles",
    "AsyncProcess",
    "AsyncTransaction",
    "AsyncVm",
    "Client",
    "CodeError",
    "CodeFailed",
    "CodeResult",
    "ConnectionFailed",
    "ExecResult",
    "Files",
    "OffshootError",
    "Process",
    "ProcessFailed",
    "Racer",
    "RaceResult",
    "Transaction",
    "TryResult",
    "Vm",
    "types",
]
