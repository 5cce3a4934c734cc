"""A daemon that listens on a port, and sessions of MCP with it over both transports."""

import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client


@dataclass
class Daemon:
    program: str
    place: Path
    url: str = ""
    key: str = ""

    def offshoot(self, *words: str) -> str:
        command = [self.program, "--state-dir", str(self.place), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(self) -> dict[str, str]:
        """State of each VM, by name."""
        return {vm["name"]: vm["state"] for vm in json.loads(self.offshoot("list", "--json"))["vms"]}


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    program = os.environ.get("OFFSHOOT_BIN")
    if not program:
        raise pytest.UsageError("OFFSHOOT_BIN has to be the path of the program to test; `cargo xtask sdk` sets it")
    daemon = Daemon(program, tmp_path_factory.mktemp("offshoot"))
    serve = [program, "--state-dir", str(daemon.place), "serve", "--listen", "127.0.0.1:0"]
    with (daemon.place / "log").open("wb") as log:
        running = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=log)
    try:
        record = daemon.place / "daemon.json"
        deadline = time.monotonic() + 60
        while not (record.exists() and answers(daemon)):
            assert running.poll() is None and time.monotonic() < deadline, (daemon.place / "log").read_text()
            time.sleep(0.05)
        daemon.url = f"http://{json.loads(record.read_text())['listen'][0]}/mcp"
        daemon.key = json.loads(daemon.offshoot("key", "create", "--json"))["key"]
        yield daemon
        daemon.offshoot("daemon", "stop", "--vms")
        assert running.wait(60) == 0
    finally:
        running.kill()


def answers(daemon: Daemon) -> bool:
    command = [daemon.program, "--state-dir", str(daemon.place), "--no-autostart", "list"]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


@dataclass
class Speaking:
    """One session, and what it was told besides answers."""

    session: ClientSession
    logged: list[Any] = field(default_factory=list)

    async def call(self, tool: str, **arguments: Any) -> tuple[str, Any]:
        """The text and the data of an answer that is no error."""
        result = await self.session.call_tool(tool, arguments)
        assert not result.is_error, result.content[0].text
        return result.content[0].text, result.structured_content


@asynccontextmanager
async def speaking(daemon: Daemon, transport: str, *words: str) -> AsyncIterator[Speaking]:
    """A session over `stdio`, with `words` for `offshoot mcp`, or over `http`."""
    logged: list[Any] = []

    async def log(message: Any) -> None:
        logged.append(message.data)

    async with channel(daemon, transport, *words) as (read, write, *_):
        async with ClientSession(read, write, logging_callback=log) as session:
            await session.initialize()
            yield Speaking(session, logged)


@asynccontextmanager
async def channel(daemon: Daemon, transport: str, *words: str) -> AsyncIterator[Any]:
    if transport == "stdio":
        arguments = ["--state-dir", str(daemon.place), "mcp", *words]
        # Where the daemon's socket is depends on it.
        env = {name: os.environ[name] for name in ["XDG_RUNTIME_DIR", "OFFSHOOT_IMAGES"] if name in os.environ}
        async with stdio_client(StdioServerParameters(command=daemon.program, args=arguments, env=env)) as streams:
            yield streams
    else:
        headers = {"Authorization": f"Bearer {daemon.key}"}
        async with create_mcp_http_client(headers=headers) as client:
            async with streamable_http_client(daemon.url, http_client=client) as streams:
                yield streams
