# Made by scripts/generate.py from `_async/`: change that.
"""The daemon: its VMs, images, snapshots and events."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from types import TracebackType
from typing import Any, cast

from .. import types
from .._place import Place, segment
from .transport import Transport
from .vm import Vm


class Client:
    """A daemon.

    Without arguments that of `$OFFSHOOT_URL` (with `$OFFSHOOT_API_KEY`), else that of the state directory on this host
    (`$OFFSHOOT_HOME`, by default `~/.local/share/offshoot`), which is started with `offshoot` from `$OFFSHOOT_BIN` or
    PATH if none runs and `autostart` allows it.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        autostart: bool = True,
    ) -> None:
        self._transport = Transport(Place.find(url, api_key, state_dir, autostart))

    def close(self) -> None:
        """Closes the connections; VMs live on."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create(
        self,
        name: str | None = None,
        *,
        image: str | None = None,
        memory_mib: int | None = None,
        cpus: int | None = None,
        disk_mib: int | None = None,
        provider: str | None = None,
        isolation: str | None = None,
        labels: dict[str, str] | None = None,
        life: types.SetLife | None = None,
        snapshot_policy: types.SetSnapshotPolicy | None = None,
        start: bool = True,
    ) -> Vm:
        """A new VM, running unless `start=False`. Without a name it gets a random one.

        Used as a context manager it is destroyed at the end.
        """
        wanted: dict[str, Any] = {
            "name": name or f"py-{secrets.token_hex(4)}",
            "image": image,
            "memory_mib": memory_mib,
            "cpus": cpus,
            "disk_mib": disk_mib,
            "provider": provider,
            "isolation": isolation,
            "labels": labels,
            "life": life,
            "snapshot_policy": snapshot_policy,
            "start": start,
        }
        body = {key: value for key, value in wanted.items() if value is not None}
        changed = self._transport.json("POST", "/v1/vms", body=body)
        return Vm.of(self._transport, changed["vm"])

    def vm(self, name: str) -> Vm:
        """A VM that is there, by name or id."""
        return Vm.of(self._transport, self._transport.json("GET", f"/v1/vms/{segment(name)}"))

    def vms(self) -> list[types.Vm]:
        """What there is of each VM."""
        listed = self._transport.json("GET", "/v1/vms")
        return cast("list[types.Vm]", listed["vms"])

    def fork(self, source: str, count: int = 1, *, name: str | None = None) -> list[Vm]:
        """New VMs that continue from a VM, a snapshot's id, or `VM@NAME`."""
        body = {"source": source, "count": count, **({"name": name} if name else {})}
        forked = self._transport.json("POST", "/v1/forks", body=body)
        return [Vm(self._transport, fork["vm"], fork["name"], fork) for fork in forked["forks"]]

    def snapshots(self) -> list[types.Snapshot]:
        listed = self._transport.json("GET", "/v1/snapshots")
        return cast("list[types.Snapshot]", listed["snapshots"])

    def snapshot(self, snapshot: str) -> types.Snapshot:
        """By id or `VM@NAME`."""
        return cast(types.Snapshot, self._transport.json("GET", f"/v1/snapshots/{segment(snapshot)}"))

    def remove_snapshot(self, snapshot: str, *, prune: bool = False) -> list[str]:
        """The ids of what was removed. With `prune` it is merged into what depends on it, else that is refused."""
        query = {"prune": "true" if prune else None}
        removed = self._transport.json("DELETE", f"/v1/snapshots/{segment(snapshot)}", query=query)
        return cast("list[str]", removed["removed"])

    def verify_snapshot(self, snapshot: str) -> types.SnapshotVerified:
        """Reads every byte of it."""
        verified = self._transport.json("POST", f"/v1/snapshots/{segment(snapshot)}/verify")
        return cast(types.SnapshotVerified, verified)

    def diff(self, to: str, since: str | None = None, *, kinds: list[types.DiffKind] | None = None) -> types.Diff:
        """What differs between two states, each a VM or a snapshot; without `since`, from the state before `to`."""
        wanted = {"to": to, "from": since, "kinds": kinds}
        body = {key: value for key, value in wanted.items() if value is not None}
        return cast(types.Diff, self._transport.json("POST", "/v1/diff", body=body))

    def images(self) -> list[types.Image]:
        listed = self._transport.json("GET", "/v1/images")
        return cast("list[types.Image]", listed["images"])

    def operations(self) -> list[types.Operation]:
        listed = self._transport.json("GET", "/v1/operations")
        return cast("list[types.Operation]", listed["operations"])

    def daemon(self) -> types.Daemon:
        return cast(types.Daemon, self._transport.json("GET", "/v1/daemon"))

    def events(self, after: int = 0) -> Iterator[types.Event]:
        """Every event with a greater id, then those to come, for ever."""
        while True:
            query = {"after": after, "wait_ms": 30_000}
            page: types.EventPage = self._transport.json("GET", "/v1/events", query=query)
            for event in page["events"]:
                yield event
            after = page["next_after"]
