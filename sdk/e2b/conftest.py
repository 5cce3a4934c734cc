"""A daemon that speaks E2B's wire, and sandboxes in it, made by E2B's own SDK."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMES = ("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_API_KEY")


@pytest.fixture(scope="session", autouse=True)
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its state directory. What it prints is what a user would paste."""
    program = os.environ.get("OFFSHOOT_BIN")
    if not program:
        raise pytest.UsageError("OFFSHOOT_BIN has to be the path of the program to test; `cargo xtask sdk` sets it")
    place = tmp_path_factory.mktemp("offshoot")
    serve = [program, "--state-dir", str(place), "serve", "--e2b", "--listen", "127.0.0.1:0"]
    provider = os.environ.get("OFFSHOOT_E2B_PROVIDER")
    if provider:
        serve += ["--provider", provider]
    with (place / "log").open("wb") as log:
        running = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        announced(running, place)
        yield place
        stop = [program, "--state-dir", str(place), "daemon", "stop", "--vms"]
        subprocess.run(stop, check=True, timeout=120, capture_output=True)
        assert running.wait(60) == 0
    finally:
        running.kill()


def announced(running: "subprocess.Popen[str]", place: Path) -> None:
    """Puts what the daemon says once it is ready into our environment."""
    assert running.stdout is not None
    lines = [running.stdout.readline().strip().partition("=") for _ in NAMES]
    if {name for name, _, _ in lines} != set(NAMES):
        running.wait(10)
        raise RuntimeError(f"the daemon printed {lines}; its log: {(place / 'log').read_text()}")
    for name, _, value in lines:
        os.environ[name] = value


@pytest.fixture(scope="module")
def sandbox() -> Iterator["Sandbox"]:
    """Shared by the tests of a file."""
    from e2b_code_interpreter import Sandbox

    with Sandbox.create("base", timeout=600) as sandbox:
        yield sandbox
