"""Changes whose connection breaks off: sent again with the same key, and no others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from offshoot import Client, OffshootError

ANSWERS = {
    "removed": (200, {"removed": ["a@b"]}),
    "busy": (409, {"code": "busy", "message": "under way", "request_id": "r", "retryable": True}),
}


@contextmanager
def server(*script: str) -> Iterator[tuple[str, list[str | None]]]:
    """One that answers by the script, or breaks off; and the keys it was sent."""
    keys: list[str | None] = []
    left = list(script)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            keys.append(self.headers["Idempotency-Key"])
            word = left.pop(0)
            if word == "break":
                self.close_connection = True
                return
            status, body = ANSWERS[word]
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if word == "busy":
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(data)

        do_DELETE = do_GET = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", keys
    finally:
        running.shutdown()
        running.server_close()


def test_a_change_that_broke_off_is_sent_again_with_its_key_until_it_is_answered() -> None:
    with server("break", "busy", "removed") as (url, keys), Client(url, api_key="x") as client:
        assert client.remove_snapshot("a@b") == ["a@b"]
    assert len(keys) == 3 and len(set(keys)) == 1 and keys[0]


def test_each_change_has_a_key_of_its_own_and_a_refusal_is_final() -> None:
    with server("removed", "busy") as (url, keys), Client(url, api_key="x") as client:
        client.remove_snapshot("a@b")
        with pytest.raises(OffshootError) as refused:
            client.remove_snapshot("a@b")
    assert refused.value.code == "busy"
    assert len(set(keys)) == 2


def test_it_is_given_up_in_the_end_and_what_has_no_key_at_once() -> None:
    with server("break", "break", "break") as (url, keys), Client(url, api_key="x") as client:
        with pytest.raises(OffshootError) as broken:
            client.remove_snapshot("a@b")
    assert broken.value.code == "interrupted" and len(keys) == 3
    with server("break") as (url, keys), Client(url, api_key="x") as client:
        with pytest.raises(OffshootError):
            client.vms()
    assert keys == [None]
