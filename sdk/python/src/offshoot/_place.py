"""Where the daemon is, and how it is started: the rules of the command line."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .errors import ConnectionFailed

#: A longer runtime directory leaves no room for the names of sockets below it.
MAX_RUNTIME_DIR = 64


def segment(name: str) -> str:
    """One segment of a URL's path."""
    return quote(name, safe="")


def socket_of(state_dir: Path) -> Path:
    """The API socket of the daemon that serves `state_dir`; see `ARCHITECTURE.md`, "Storage"."""
    leaf = hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:8]
    xdg = os.environ.get("XDG_RUNTIME_DIR", "")
    if xdg.startswith("/"):
        directory = Path(xdg) / "offshoot" / leaf
        if len(os.fsencode(directory)) <= MAX_RUNTIME_DIR:
            return directory / "offshoot.sock"
    uid = os.getuid()
    base = Path("/run/offshoot") if uid == 0 else Path(f"/tmp/offshoot-{uid}")
    return base / leaf / "offshoot.sock"


def default_state_dir() -> Path:
    home = os.environ.get("OFFSHOOT_HOME")
    return Path(home) if home else Path.home() / ".local" / "share" / "offshoot"


@dataclass(frozen=True)
class Place:
    """A daemon: that of a state directory on this host, or one behind a URL."""

    url: str
    socket: Path | None = None
    state_dir: Path | None = None
    api_key: str | None = None
    program: str | None = None

    @classmethod
    def find(
        cls, url: str | None, api_key: str | None, state_dir: str | os.PathLike[str] | None, autostart: bool
    ) -> Place:
        url = url or (None if state_dir else os.environ.get("OFFSHOOT_URL"))
        if url:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"`{url}` is not a http:// or https:// URL")
            return cls(url.rstrip("/"), api_key=api_key or os.environ.get("OFFSHOOT_API_KEY"))
        where = Path(state_dir) if state_dir else default_state_dir()
        program = (os.environ.get("OFFSHOOT_BIN") or shutil.which("offshoot")) if autostart else None
        return cls("http://offshoot", socket_of(where), where, program=program)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def websocket(self, path: str) -> str:
        return "ws" + self.url.removeprefix("http") + path

    @property
    def startable(self) -> bool:
        return self.program is not None and self.state_dir is not None

    def unreachable(self, why: BaseException) -> ConnectionFailed:
        where = str(self.socket) if self.socket else self.url
        hint = "check the URL"
        if self.socket and not self.program:
            hint = "start one with `offshoot serve`, or put `offshoot` in PATH so that it is started when needed"
        return ConnectionFailed(f"no daemon answers at {where}", cause=str(why) or repr(why), hint=hint)

    def start(self) -> None:
        """Starts the state directory's daemon; it leaves by itself when there is nothing left to do."""
        if self.program is None or self.state_dir is None:
            raise ValueError("there is no daemon of this host to start")
        command = [self.program, "--state-dir", str(self.state_dir), "list", "--json"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise ConnectionFailed("the daemon could not be started", cause=said)


async def in_thread(place: Place) -> None:
    """Starts the daemon while other tasks go on."""
    await asyncio.to_thread(place.start)


def in_place(place: Place) -> None:
    place.start()


async def wait_async(seconds: float) -> None:
    await asyncio.sleep(seconds)


def wait(seconds: float) -> None:
    time.sleep(seconds)
