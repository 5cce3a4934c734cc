"""Files inside a VM."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from .. import types
from ..errors import OffshootError
from .transport import AsyncTransport


class AsyncFiles:
    """Files inside a VM. Paths are absolute; `user` says whose permissions count, `root`'s unless it is said."""

    def __init__(self, transport: AsyncTransport, vm: str) -> None:
        self._transport = transport
        self._vm = vm

    def _path(self, verb: str = "") -> str:
        return f"/v1/vms/{self._vm}/files{verb}"

    async def read(self, path: str, *, offset: int = 0, length: int | None = None, user: str | None = None) -> bytes:
        query = {"path": path, "offset": offset, "length": length, "user": user}
        response = await self._transport.send("GET", self._path(), vm=self._vm, query=query)
        return response.content

    async def read_text(self, path: str, *, user: str | None = None) -> str:
        """As UTF-8."""
        return (await self.read(path, user=user)).decode()

    @asynccontextmanager
    async def open(self, path: str, *, user: str | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """Its bytes in pieces, as they come."""
        query = {"path": path, "user": user}
        async with self._transport.stream("GET", self._path(), vm=self._vm, query=query) as response:
            yield self._transport.pieces(response)

    async def write(
        self,
        path: str,
        content: bytes | str | AsyncIterable[bytes],
        *,
        mode: int | None = None,
        make_parents: bool = True,
        exclusive: bool = False,
        user: str | None = None,
    ) -> None:
        """All or nothing: it is renamed into place once it has arrived in full. Directories are made as needed;
        `exclusive` fails if the file exists."""
        query = {
            "path": path,
            "mode": mode,
            "make_parents": "true" if make_parents else None,
            "exclusive": "true" if exclusive else None,
            "user": user,
        }
        data = content.encode() if isinstance(content, str) else content
        await self._transport.send("PUT", self._path(), vm=self._vm, query=query, content=data)

    async def list(self, path: str, *, user: str | None = None) -> list[types.DirectoryEntry]:
        listed = await self._transport.json("GET", self._path("/list"), vm=self._vm, query={"path": path, "user": user})
        return cast("list[types.DirectoryEntry]", listed["entries"])

    async def stat(self, path: str, *, follow: bool = False, user: str | None = None) -> types.FileStat:
        query = {"path": path, "follow": "true" if follow else None, "user": user}
        found = await self._transport.json("GET", self._path("/stat"), vm=self._vm, query=query)
        return cast(types.FileStat, found)

    async def exists(self, path: str, *, user: str | None = None) -> bool:
        try:
            await self.stat(path, user=user)
        except OffshootError as error:
            if error.code != "not_found":
                raise
        else:
            return True
        # The VM and the user could be what was not found.
        await self.stat("/", user=user)
        return False

    async def mkdir(self, path: str, *, parents: bool = True, mode: int | None = None, user: str | None = None) -> None:
        """With `parents`, a directory that exists is fine."""
        body = {"path": path, "parents": parents, "mode": mode, "user": user}
        await self._post("/mkdir", body)

    async def remove(self, path: str, *, recursive: bool = False, user: str | None = None) -> None:
        await self._post("/remove", {"path": path, "recursive": recursive, "user": user})

    async def rename(self, source: str, target: str, *, user: str | None = None) -> None:
        await self._post("/rename", {"from": source, "to": target, "user": user})

    async def symlink(self, path: str, target: str, *, user: str | None = None) -> None:
        """A link at `path` to `target`."""
        await self._post("/symlink", {"path": path, "target": target, "user": user})

    async def chmod(self, path: str, mode: int, *, user: str | None = None) -> None:
        await self._post("/chmod", {"path": path, "mode": mode, "user": user})

    async def _post(self, verb: str, body: dict[str, object]) -> None:
        asked = {key: value for key, value in body.items() if value is not None}
        await self._transport.send("POST", self._path(verb), vm=self._vm, body=asked)
