"""The asyncio client, whose code the blocking one is made from."""

from __future__ import annotations

import asyncio

import pytest

from offshoot import AsyncClient, OffshootError


async def test_many_things_go_on_at_once(async_client: AsyncClient) -> None:
    async with await async_client.create("busy") as vm:
        answers = await asyncio.gather(*(vm.exec(["echo", str(n)]) for n in range(8)))
        assert [answer.text for answer in answers] == [f"{n}\n" for n in range(8)]
        codes = (vm.run_code(f"{n} * 2", context=f"c{n}") for n in range(2))
        assert [code.text for code in await asyncio.gather(*codes)] == ["0", "2"]
        async with await vm.spawn(["cat"], stdin=True) as process:
            await process.write("hello")
            await process.close_stdin()
            assert (await process.wait()).text == "hello"
        await vm.files.write("/root/a", b"x")
        async with vm.files.open("/root/a") as pieces:
            assert [piece async for piece in pieces] == [b"x"]
        async for event in async_client.events():
            assert event["id"] > 0
            break


async def test_a_transaction_belongs_to_its_task_and_those_it_starts(async_client: AsyncClient) -> None:
    async with await async_client.create() as vm:

        async def outside(begun: asyncio.Event, seen: asyncio.Event) -> str:
            await begun.wait()
            try:
                await vm.exec("true")
                return "let in"
            except OffshootError as error:
                return error.code
            finally:
                seen.set()

        begun, seen = asyncio.Event(), asyncio.Event()
        stranger = asyncio.create_task(outside(begun, seen))
        with pytest.raises(RuntimeError, match="no"):
            async with vm.transaction():
                begun.set()
                done = await asyncio.gather(vm.exec("touch /root/a"), vm.exec("touch /root/b"))
                assert all(one.exit_code == 0 for one in done)
                await seen.wait()
                raise RuntimeError("no")
        assert await stranger == "in_transaction"
        assert not await vm.files.exists("/root/a")
