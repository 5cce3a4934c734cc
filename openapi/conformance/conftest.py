"""A daemon on a port of this host, two VMs in it, and a key that is good for little."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from names import PREFIX

#: All but the end of the daemon, and the removal of images that other tests need.
SCOPES = ("vms:read", "vms:write", "exec", "files", "snapshots")
MAX_VMS = 3


@dataclass
class Daemon:
    program: str
    place: Path
    running: "subprocess.Popen[bytes]"

    def verb(self, *words: str) -> str:
        command = [self.program, "--state-dir", str(self.place), *words]
        done = subprocess.run(command, timeout=300, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def vms(self) -> list[str]:
        return [vm["name"] for vm in json.loads(self.verb("list", "--json"))["vms"]]

    def address(self) -> str:
        """Where it listens, once it does."""
        until = time.monotonic() + 60
        while self.running.poll() is None and time.monotonic() < until:
            status = json.loads(self.verb("daemon", "status", "--json"))
            if status["running"]:
                return str(status["listen"][0])
            time.sleep(0.05)
        raise AssertionError(f"the daemon is not ready; its log: {self.log()}")

    def log(self) -> str:
        return (self.place / "log").read_text(errors="replace")


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    program = os.environ.get("OFFSHOOT_BIN")
    if not program:
        raise pytest.UsageError("OFFSHOOT_BIN has to be the path of the program to test; `cargo xtask sdk` sets it")
    place = tmp_path_factory.mktemp("offshoot")
    serve = [program, "--state-dir", str(place), "serve", "--listen", "127.0.0.1:0"]
    with (place / "log").open("wb") as log:
        running = subprocess.Popen(serve, stdout=log, stderr=log)
    daemon = Daemon(program, place, running)
    try:
        daemon.address()
        yield daemon
        daemon.verb("daemon", "stop", "--vms")
        assert running.wait(60) == 0
    finally:
        running.kill()


@pytest.fixture(scope="session")
def key(daemon: Daemon) -> str:
    scopes = [word for scope in SCOPES for word in ("--scope", scope)]
    made = daemon.verb("key", "create", "--vm-prefix", PREFIX, "--max-vms", str(MAX_VMS), *scopes, "--json")
    return str(json.loads(made)["key"])
