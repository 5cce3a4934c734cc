"""What an agent does with it, over each transport, in one session for each test."""

import time
from typing import Any

import anyio
import httpx2
import pytest
from conftest import Daemon, speaking
from mcp.shared.exceptions import MCPError

TOOLS = [
    "run_code", "exec", "read_file", "write_file", "list_files", "snapshot", "fork", "rollback", "try", "diff",
    "create_vm", "list_vms", "stop_vm",
]  # fmt: skip
TRANSPORTS = ["stdio", "http"]

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("transport", TRANSPORTS)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def until_state(daemon: Daemon, vm: str, state: str) -> None:
    deadline = time.monotonic() + 30
    while daemon.states().get(vm) != state:
        assert time.monotonic() < deadline, f"{vm} is not {state}: {daemon.states()}"
        await anyio.sleep(0.1)


async def test_snapshot_run_rollback_in_the_vm_of_the_session(daemon: Daemon, transport: str) -> None:
    async with speaking(daemon, transport) as agent:
        tools = (await agent.session.list_tools()).tools
        assert [tool.name for tool in tools] == TOOLS
        assert {tool.name for tool in tools if tool.annotations.read_only_hint} == {
            "read_file", "list_files", "diff", "list_vms",
        }  # fmt: skip
        assert "virtual machine" in agent.session.instructions

        before = set(daemon.states())
        text, data = await agent.call("run_code", code="x = 1\nx + 1")
        assert data["value"] == "2" and "--- value\n2" in text
        vm = data["vm"]
        assert set(daemon.states()) - before == {vm} and vm.startswith("mcp-")
        text, _ = await agent.call("exec", command="whoami; pwd; echo oops >&2; exit 3")
        assert text.startswith("exit code 3") and "--- stdout\nuser\n/home/user\n--- stderr\noops" in text

        await agent.call("write_file", path="/home/user/a/note.txt", content="kept\n", mode="600")
        text, data = await agent.call("snapshot", name="before")
        assert data["snapshot"] == f"{vm}@before"
        await agent.call("run_code", code="x = 2")
        await agent.call("exec", command="rm -r a; touch b")
        text, _ = await agent.call("diff")
        assert "+ /home/user/b" in text and "- /home/user/a/note.txt" in text
        text, data = await agent.call("rollback", snapshot="before")
        assert data["undo"] in text
        assert (await agent.call("run_code", code="x"))[1]["value"] == "1", "the interpreter went back too"
        text, data = await agent.call("read_file", path="/home/user/a/note.txt")
        assert data["content"] == "kept\n"
        text, _ = await agent.call("list_files")
        assert " a/" in text and " b" not in text

        text, data = await agent.call("try", command="touch c", check="test -e d")
        assert not data["kept"] and text.startswith("UNDONE")
        assert " c" not in (await agent.call("list_files"))[0]
        _, data = await agent.call("fork", name=f"{vm}-copy")
        assert (await agent.call("run_code", code="x", vm=data["vms"][0]))[1]["value"] == "1"
        await agent.call("stop_vm", vm=data["vms"][0], how="destroy")
    await until_state(daemon, vm, "suspended")


async def test_a_cancelled_call_is_interrupted_and_the_session_goes_on(daemon: Daemon, transport: str) -> None:
    async with speaking(daemon, transport) as agent:
        _, data = await agent.call("run_code", code="y = 5")
        vm = data["vm"]
        for tool, arguments in [
            ("run_code", {"code": "import time\ny = 6\ntime.sleep(100)\ny = 7"}),
            ("exec", {"command": "trap 'touch /tmp/told; exit 1' INT; while :; do sleep 0.05; done"}),
        ]:
            told = len(agent.logged)
            with anyio.move_on_after(2.0) as scope:
                await agent.session.call_tool(tool, arguments)
            assert scope.cancelled_caught
            with anyio.fail_after(15):
                while len(agent.logged) == told:
                    await anyio.sleep(0.02)
            assert agent.logged[-1]["tool"] == tool and "interrupted" in agent.logged[-1]["message"]
        assert (await agent.call("run_code", code="y"))[1]["value"] == "6", "variables survive"
        text, _ = await agent.call("exec", command="ls /tmp/told; pgrep -c sleep")
        assert "/tmp/told" in text and text.endswith("0"), text
        await agent.call("stop_vm", how="destroy")
        assert vm not in daemon.states()


async def test_progress_truncation_pictures_errors_and_many_at_once(daemon: Daemon, transport: str) -> None:
    async with speaking(daemon, transport) as agent:
        heard: list[tuple[float, str | None]] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            heard.append((done, message))

        call = {"command": "for i in 1 2 3; do echo step $i; sleep 0.4; done"}
        await agent.session.call_tool("exec", call, progress_callback=progress)
        messages = [message for _, message in heard]
        assert "starting the VM of this session" in messages and "step 2" in messages, messages
        assert [done for done, _ in heard] == sorted({done for done, _ in heard}), "it grows"

        text, data = await agent.call("exec", command="echo first; yes | head -c 3000000; echo last")
        assert "first" in text and "last" in text and len(text) < 100_000
        left_out = data["output"]["bytes_left_out"]
        assert left_out > 2_900_000 and f"{left_out} bytes left out here" in text and "read_file" in text

        await agent.call("exec", command="seq 1 100000 > big")
        text, data = await agent.call("read_file", path="/home/user/big", length=1000)
        assert "go on with `offset` 1000" in text and data["next_offset"] == 1000
        await agent.call("write_file", path="/home/user/p.png", content="iVBORw0KGgo=", encoding="base64")
        result = await agent.session.call_tool("read_file", {"path": "/home/user/p.png"})
        assert (result.content[1].type, result.content[1].mime_type) == ("image", "image/png")

        async def refused(tool: str, **arguments: Any) -> str:
            result = await agent.session.call_tool(tool, arguments)
            assert result.is_error
            return result.content[0].text

        assert "hint:" in await refused("exec", command="true", vm="nobody")
        assert "not_found" in await refused("read_file", path="/home/user/absent")
        assert "no arguments" in await refused("exec", cmd="true")
        assert "time was up" in await refused("exec", command="sleep 60", timeout_seconds=1)
        text, data = await agent.call("run_code", code="1/0")
        assert data["error"]["name"] == "ZeroDivisionError" and "Traceback" in text
        with pytest.raises(MCPError):
            await agent.session.call_tool("format_disk", {})

        answers: dict[int, str] = {}

        async def one(number: int) -> None:
            text, _ = await agent.call("exec", command=f"sleep 2; echo {number}")
            answers[number] = text

        begun = time.monotonic()
        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(one, number)
        assert all(answers[number].endswith(f"\n{number}") for number in range(6))
        assert time.monotonic() - begun < 9, "they ran at once"

        vm = data["vm"]
        await agent.call("snapshot", name="one")
        templates = (await agent.session.list_resource_templates()).resource_templates
        assert {template.uri_template for template in templates} == {
            "offshoot://vm/{vm}/console", "offshoot://vm/{vm}/snapshots",
        }  # fmt: skip
        listed = {str(resource.uri) for resource in (await agent.session.list_resources()).resources}
        assert {f"offshoot://vm/{vm}/console", f"offshoot://vm/{vm}/snapshots"} <= listed
        snapshots = (await agent.session.read_resource(f"offshoot://vm/{vm}/snapshots")).contents[0].text
        assert '"one"' in snapshots
        console = (await agent.session.read_resource(f"offshoot://vm/{vm}/console")).contents[0]
        assert console.mime_type == "text/plain"
        await agent.call("stop_vm", how="destroy")


async def test_who_may_speak_and_what_a_session_is_told_to_do(daemon: Daemon, transport: str) -> None:
    if transport == "http":
        body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        accept = {"Accept": "application/json, text/event-stream"}
        async with httpx2.AsyncClient(headers=accept) as client:
            assert (await client.post(daemon.url, json=body)).status_code == 401
            key = {"Authorization": f"Bearer {daemon.key}"}
            page = {**key, "Origin": "http://evil.example"}
            assert (await client.post(daemon.url, json=body, headers=page)).status_code == 403
            stranger = {**key, "Mcp-Session-Id": "somebody-elses"}
            assert (await client.post(daemon.url, json=body, headers=stranger)).status_code == 404
            assert (await client.post(f"{daemon.url}?at_end=explode", json=body, headers=key)).status_code == 400
        return
    async with speaking(daemon, transport, "--at-end", "destroy", "--label", "team=core") as agent:
        _, data = await agent.call("run_code", code="7", language="javascript")
        vm = data["vm"]
        text, _ = await agent.call("list_vms")
        assert f"{vm}: running" in text and "[this session's]" in text
        # It is started anew by whatever needs it.
        await agent.call("stop_vm")
        text, _ = await agent.call("exec", command="echo again")
        assert "again" in text
    await until_state(daemon, vm, None)
    async with speaking(daemon, transport, "--vm", "nobody") as agent:
        result = await agent.session.call_tool("exec", {"command": "true"})
        assert result.is_error and "nobody" in result.content[0].text
