"""A daemon of our own, and VMs in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from offshoot import AsyncClient, Client, Vm


def program() -> str:
    found = os.environ.get("OFFSHOOT_BIN")
    if not found:
        raise pytest.UsageError("OFFSHOOT_BIN has to be the path of the program to test; `cargo xtask sdk` sets it")
    return found


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a daemon that is started by the first request, and ended with all its VMs."""
    program()
    place = tmp_path_factory.mktemp("offshoot")
    yield place
    stop = [program(), "--state-dir", str(place), "daemon", "stop", "--vms"]
    subprocess.run(stop, check=True, timeout=120, capture_output=True)


@pytest.fixture(scope="session")
def client(state_dir: Path) -> Iterator[Client]:
    with Client(state_dir=state_dir) as client:
        yield client


@pytest.fixture
async def async_client(state_dir: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(state_dir=state_dir) as client:
        yield client


@pytest.fixture(scope="session")
def vm(client: Client) -> Iterator[Vm]:
    """Shared: tests leave it as it was."""
    with client.create("shared") as vm:
        yield vm
