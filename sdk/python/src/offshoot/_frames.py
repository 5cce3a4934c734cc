"""The binary frames of WebSockets: a leading byte says what the rest is."""

from __future__ import annotations

import base64

from . import types
from .errors import OffshootError

STDIN = b"\x00"
STDOUT = 1
#: Frames to the daemon are at most so long.
MAX_FRAME = 256 * 1024


def chunks(data: bytes) -> list[bytes]:
    """`data` as frames for a process's standard input."""
    return [STDIN + data[at : at + MAX_FRAME] for at in range(0, len(data), MAX_FRAME)]


def output(frame: bytes) -> tuple[str, bytes]:
    """`stdout` or `stderr`, and the bytes."""
    if frame[:1] == b"\x01":
        return "stdout", frame[1:]
    if frame[:1] == b"\x02":
        return "stderr", frame[1:]
    raise wrong(frame)


def race_output(frame: bytes) -> tuple[int, str, bytes]:
    """Which racer, which stream, and the bytes."""
    if len(frame) < 3 or frame[0] not in (1, 2):
        raise wrong(frame)
    return int.from_bytes(frame[1:3], "big"), "stdout" if frame[0] == STDOUT else "stderr", frame[3:]


def wrong(frame: bytes) -> OffshootError:
    return OffshootError(f"a frame begins with {frame[:1].hex() or 'nothing'}, which names no stream")


def collected(output: types.Output) -> bytes:
    """What a process printed, from its JSON form."""
    if output["encoding"] == "base64":
        return base64.b64decode(output["data"])
    return output["data"].encode()
