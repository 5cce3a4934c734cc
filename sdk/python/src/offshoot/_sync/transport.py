# Made by scripts/generate.py from `_async/`: change that.
"""Requests and WebSockets to one daemon."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from uuid import uuid4

import httpx
import websockets.sync.client
from websockets.sync.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from .._place import Place, in_place, wait
from .._within import transaction_header
from ..errors import OffshootError

#: Frames from the daemon are at most so long.
MAX_MESSAGE = 8 * 1024 * 1024
#: By it the daemon knows a request that it was sent before, and does nothing twice.
KEY = "Idempotency-Key"
#: How often a request is sent again whose connection broke off.
REPEATS = 2


class Transport:
    def __init__(self, place: Place) -> None:
        self.place = place
        socket = None if place.socket is None else str(place.socket)
        # What is answered late is a long wait that was asked for: time limits are the requests' own.
        self._http = httpx.Client(
            base_url=place.url,
            headers=place.headers,
            timeout=httpx.Timeout(None, connect=10),
            trust_env=socket is None,
            transport=None if socket is None else httpx.HTTPTransport(uds=socket),
        )

    def close(self) -> None:
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        vm: str | None = None,
        body: Any = None,
        query: dict[str, Any] | None = None,
        content: bytes | Iterable[bytes] | None = None,
    ) -> httpx.Response:
        """The whole answer. `vm` names the VM whose open transaction the request belongs to."""
        request = self._request(method, path, vm, body, query, content)
        response = self._answer(request, stream=False)
        if response.is_error:
            raise failure(response)
        return response

    def json(self, method: str, path: str, **more: Any) -> Any:
        response = self.send(method, path, **more)
        return response.json() if response.content else None

    @contextmanager
    def stream(
        self, method: str, path: str, *, vm: str | None = None, query: dict[str, Any] | None = None
    ) -> Iterator[httpx.Response]:
        """The head of the answer; its body is read by whoever asked."""
        response = self._answer(self._request(method, path, vm, None, query, None), stream=True)
        try:
            if response.is_error:
                response.read()
                raise failure(response)
            yield response
        finally:
            response.close()

    def _request(
        self,
        method: str,
        path: str,
        vm: str | None,
        body: Any,
        query: dict[str, Any] | None,
        content: bytes | Iterable[bytes] | None,
    ) -> httpx.Request:
        asked = {key: value for key, value in (query or {}).items() if value is not None}
        headers = transaction_header(vm)
        if method != "GET":
            headers = {**headers, KEY: str(uuid4())}
        return self._http.build_request(method, path, json=body, params=asked, content=content, headers=headers)

    def _answer(self, request: httpx.Request, *, stream: bool) -> httpx.Response:
        """What is answered, in the end: a request whose connection breaks off is repeated if it carries a key."""
        repeats, repeated, started = (REPEATS if repeatable(request) else 0), False, False
        while True:
            try:
                response = self._http.send(request, stream=stream)
            except httpx.ConnectError as error:
                # Nothing was sent, so nothing is done twice.
                if started or not self.place.startable:
                    raise self.place.unreachable(error) from error
                in_place(self.place)
                started = True
            except httpx.TransportError as error:
                if repeats == 0:
                    raise broke_off(error) from error
                repeats, repeated = repeats - 1, True
            else:
                if not (repeated and under_way(response)):
                    return response
                response.close()
                wait(1)

    def pieces(self, response: httpx.Response) -> Iterator[bytes]:
        """The body of an answer, as it comes."""
        try:
            for piece in response.iter_bytes():
                yield piece
        except httpx.TransportError as error:
            raise broke_off(error) from error

    def connect(self, path: str, vm: str) -> Connection:
        """A WebSocket of the API."""
        try:
            return self._open(path, vm)
        except OSError as error:
            if not self.place.startable:
                raise self.place.unreachable(error) from error
        in_place(self.place)
        try:
            return self._open(path, vm)
        except OSError as error:
            raise self.place.unreachable(error) from error

    def _open(self, path: str, vm: str) -> Connection:
        uri = self.place.websocket(path)
        headers = {**self.place.headers, **transaction_header(vm)}
        options: dict[str, Any] = {
            "additional_headers": headers,
            "compression": None,
            "max_size": MAX_MESSAGE,
            "open_timeout": 60,
            # The daemon asks whether we are there. An answer to us would wait behind output that nobody takes yet.
            "ping_interval": None,
            "close_timeout": 5,
        }
        try:
            if self.place.socket is not None:
                where = str(self.place.socket)
                opened = websockets.sync.client.unix_connect(where, uri, **options)
            else:
                opened = websockets.sync.client.connect(uri, **options)
            return Connection(opened, opened.__enter__())
        except InvalidStatus as error:
            raise refused(error.response.status_code, error.response.body) from error
        except InvalidHandshake as error:
            raise OffshootError("the daemon did not open a stream", cause=str(error)) from error


class Connection:
    """A conversation: texts are JSON messages, binary frames are bytes of processes."""

    def __init__(self, opened: Any, socket: ClientConnection) -> None:
        self._opened = opened
        self._socket = socket

    def say(self, message: Any) -> None:
        self.give(json.dumps(message))

    def give(self, frame: str | bytes) -> None:
        try:
            self._socket.send(frame)
        except ConnectionClosed as error:
            raise broken(error) from error

    def hear(self) -> bytes | dict[str, Any]:
        """The next frame. A `failed` message is raised."""
        try:
            frame = self._socket.recv()
        except ConnectionClosed as error:
            raise broken(error) from error
        if isinstance(frame, bytes):
            return frame
        message: dict[str, Any] = json.loads(frame)
        if message.get("event") == "failed":
            raise OffshootError.of(message["error"])
        return message

    def close(self) -> None:
        self._opened.__exit__(None, None, None)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def broke_off(error: httpx.TransportError) -> OffshootError:
    return OffshootError("the connection to the daemon broke off", code="interrupted", cause=str(error) or repr(error))


def broken(error: ConnectionClosed) -> OffshootError:
    return OffshootError("the stream from the daemon broke off", code="interrupted", cause=str(error))


def repeatable(request: httpx.Request) -> bool:
    """Whether it can be sent again: nothing is done twice, and its body is still there."""
    return KEY in request.headers and isinstance(request.stream, httpx.ByteStream)


def under_way(response: httpx.Response) -> bool:
    """Whether the daemon still carries out what it was sent before."""
    return response.status_code == 409 and "retry-after" in response.headers


def failure(response: httpx.Response) -> OffshootError:
    return refused(response.status_code, response.content)


def refused(status: int, body: bytes | bytearray | None) -> OffshootError:
    """The error that an answer without success describes."""
    try:
        document = json.loads(body or b"")
    except ValueError:
        document = None
    if isinstance(document, dict):
        return OffshootError.of(document, status)
    return OffshootError(f"the daemon answered with status {status}")
