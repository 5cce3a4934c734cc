# Made by scripts/generate.py from `_async/`: change that.
"""Files inside a VM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

from .. import types
from ..errors import OffshootError
from .transport import Transport


class Files:
    """Files inside a VM. Paths are absolute; `user` says whose permissions count, `root`'s unless it is said."""

    def __init__(self, transport: Transport, vm: str) -> None:
        self._transport = transport
        self._vm = vm

    def _path(self, verb: str = "") -> str:
        return f"/v1/vms/{self._vm}/files{verb}"

    def read(self, path: str, *, offset: int = 0, length: int | None = None, user: str | None = None) -> bytes:
        query = {"path": path, "offset": offset, "length": length, "user": user}
        response = self._transport.send("GET", self._path(), vm=self._vm, query=query)
        return response.content

    def read_text(self, path: str, *, user: str | None = None) -> str:
        """As UTF-8."""
        return (self.read(path, user=user)).decode()

    @contextmanager
    def open(self, path: str, *, user: str | None = None) -> Iterator[Iterator[bytes]]:
        """Its bytes in pieces, as they come."""
        query = {"path": path, "user": user}
        with self._transport.stream("GET", self._path(), vm=self._vm, query=query) as response:
            yield self._transport.pieces(response)

    def write(
        self,
        path: str,
        content: bytes | str | Iterable[bytes],
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
        self._transport.send("PUT", self._path(), vm=self._vm, query=query, content=data)

    def list(self, path: str, *, user: str | None = None) -> list[types.DirectoryEntry]:
        listed = self._transport.json("GET", self._path("/list"), vm=self._vm, query={"path": path, "user": user})
        return cast("list[types.DirectoryEntry]", listed["entries"])

    def stat(self, path: str, *, follow: bool = False, user: str | None = None) -> types.FileStat:
        query = {"path": path, "follow": "true" if follow else None, "user": user}
        found = self._transport.json("GET", self._path("/stat"), vm=self._vm, query=query)
        return cast(types.FileStat, found)

    def exists(self, path: str, *, user: str | None = None) -> bool:
        try:
            self.stat(path, user=user)
        except OffshootError as error:
            if error.code != "not_found":
                raise
        else:
            return True
        # The VM and the user could be what was not found.
        self.stat("/", user=user)
        return False

    def mkdir(self, path: str, *, parents: bool = True, mode: int | None = None, user: str | None = None) -> None:
        """With `parents`, a directory that exists is fine."""
        body = {"path": path, "parents": parents, "mode": mode, "user": user}
        self._post("/mkdir", body)

    def remove(self, path: str, *, recursive: bool = False, user: str | None = None) -> None:
        self._post("/remove", {"path": path, "recursive": recursive, "user": user})

    def rename(self, source: str, target: str, *, user: str | None = None) -> None:
        self._post("/rename", {"from": source, "to": target, "user": user})

    def symlink(self, path: str, target: str, *, user: str | None = None) -> None:
        """A link at `path` to `target`."""
        self._post("/symlink", {"path": path, "target": target, "user": user})

    def chmod(self, path: str, mode: int, *, user: str | None = None) -> None:
        self._post("/chmod", {"path": path, "mode": mode, "user": user})

    def _post(self, verb: str, body: dict[str, object]) -> None:
        asked = {key: value for key, value in body.items() if value is not None}
        self._transport.send("POST", self._path(verb), vm=self._vm, body=asked)
