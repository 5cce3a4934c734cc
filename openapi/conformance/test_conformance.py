"""`openapi/v1.json` against a daemon with real VMs: no answer that the document does not describe."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from conftest import Daemon
from names import MOVED, STEADY

HERE = Path(__file__).parent
#: What a plain request gets from sockets is one 400; the tests of the SDKs talk to them.
SOCKETS = ("run", "exec_stream", "attach", "try", "race", "run_code", "tcp")
#: They make, own and remove VMs, which the others need.
MAKERS = ("create_vm", "fork", "import_snapshot", "begin_transaction", "destroy_vm")


def conforms(daemon: Daemon, key: str, *options: str) -> None:
    program = Path(sys.executable).parent / "schemathesis"
    command = [str(program), "--config-file", "schemathesis.toml", "run", "../v1.json", *options]
    command += ["--url", f"http://{daemon.address()}", "--header", f"Authorization: Bearer {key}"]
    # Its hooks are found there.
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, cwd=HERE, env=env, timeout=400, check=False)
    assert done.returncode == 0, "what was found is said above"
    assert daemon.running.poll() is None
    assert "panicked" not in daemon.log()


def each(option: str, names: tuple[str, ...]) -> list[str]:
    return [word for name in names for word in (option, name)]


def test_of_vms_that_are_there(daemon: Daemon, key: str) -> None:
    for name in (STEADY, MOVED):
        daemon.verb("create", name, "--start")
    daemon.verb("snapshot", "take", STEADY, "kept")
    conforms(daemon, key, *each("--exclude-operation-id", SOCKETS + MAKERS))
    assert {STEADY, MOVED} <= set(daemon.vms())


def test_a_change_with_a_key_is_carried_out_once(daemon: Daemon, key: str) -> None:
    def ask(path: str, idempotency: str, body: object) -> tuple[int, str | None, bytes]:
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": idempotency}
        headers["Content-Type"] = "application/json"
        url, data = f"http://{daemon.address()}{path}", json.dumps(body).encode()
        try:
            with urlopen(Request(url, data, headers), timeout=120) as answer:
                return answer.status, answer.headers["Idempotency-Replayed"], answer.read()
        except HTTPError as error:
            return error.code, None, error.read()

    daemon.verb("start", STEADY)
    where, what = f"/v1/vms/{STEADY}/exec", {"exec": {"shell": "echo x >> /root/count; wc -l < /root/count"}}
    first, again = (ask(where, "one", what) for _ in range(2))
    assert first[:2] == (200, None) and json.loads(first[2])["stdout"]["data"] == "1\n"
    assert again == (200, "true", first[2])
    assert ask(f"/v1/vms/{STEADY}/stop", "one", {})[0] == 422
    assert json.loads(ask(where, "two", what)[2])["stdout"]["data"] == "2\n"


def test_of_vms_that_come_and_go(daemon: Daemon, key: str) -> None:
    conforms(daemon, key, *each("--include-operation-id", MAKERS))


def test_nothing_is_left(daemon: Daemon) -> None:
    for name in daemon.vms():
        for begun in json.loads(daemon.verb("tx", "list", name, "--json"))["transactions"]:
            if begun["state"] == "open" and "parent" not in begun:
                daemon.verb("tx", "rollback", name, begun["id"])
        daemon.verb("destroy", name, "--snapshots", "--yes")
    assert daemon.vms() == []
