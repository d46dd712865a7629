"""A web server on this machine that serves a folder and misbehaves when it is told to."""

import hashlib
import http.server
import random
import re
import socket
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.remote.address import Address
from ldis_lightning.datamodules.remote.cache import ShardCache


class Request(NamedTuple):
    """What was asked for: a name, and a part, (0, None) for the whole."""

    name: str
    start: int
    stop: int | None


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: "LocalServer"

    def missing(self, *_: object) -> None:
        answer(self, 404)

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path).lstrip("/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), int(asked[2]) + 1) if asked else (0, None)
        with self.server.lock:
            self.server.requests.append(Request(name, start, stop))
            script = self.server.scripts[name] or self.server.scripts["*"]
            behaviour = script.popleft() if script else self.server.always.get(name, well)
        path = self.server.folder / name
        if not path.is_file():
            return self.missing()
        behaviour(self, path.read_bytes(), start, stop)

    def send(self, status: int, headers: dict[str, Any], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class LocalServer(http.server.ThreadingHTTPServer):
    """Serves a folder from a thread.

    Attributes:
        scripts: name of a file, or `*`, -> what happens on the next requests for it.
        always: name of a file -> what happens on every request that no script is for.
        requests: all so far.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, port: int = 0, handler: type[Handler] = Handler) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.folder, self.lock = folder, threading.Lock()
        self.scripts: dict[str, deque[Behaviour]] = defaultdict(deque)
        self.always: dict[str, Behaviour] = {}
        self.requests: list[Request] = []
        self.awake = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, name: str) -> int:
        return sum(request.name == name for request in self.requests)

    def stop(self) -> None:
        self.awake.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that leave


@contextmanager
def served(folder: Path, handler: type[Handler] = Handler) -> Iterator[LocalServer]:
    server = LocalServer(folder, handler=handler)
    try:
        yield server
    finally:
        server.stop()


# ---- What may happen on a request


def part_headers(data: bytes, start: int, stop: int | None) -> tuple[int, dict[str, Any], bytes]:
    if stop is None:
        return 200, {"Content-Length": len(data)}, data
    if start >= len(data):
        return 416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": 0}, b""
    body = data[start:stop]
    place = f"bytes {start}-{start + len(body) - 1}/{len(data)}"
    return 206, {"Content-Length": len(body), "Content-Range": place}, body


def well(handler: Handler, data: bytes, start: int, stop: int | None) -> None:
    handler.send(*part_headers(data, start, stop))


def answer(handler: Handler, status: int, headers: dict[str, Any] | None = None) -> None:
    handler.send(status, {"Content-Length": 0, **(headers or {})})


def status(number: int, **headers: Any) -> "Behaviour":
    """That status, with headers such as Retry_After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, *_: answer(handler, number, named)


def changed(headers: dict[str, Any] | None = None, body: Callable[[bytes], bytes] = bytes) -> "Behaviour":
    """As it should be but for some headers (None leaves one out) and the body; the connection ends after it."""

    def behave(handler: Handler, data: bytes, start: int, stop: int | None) -> None:
        number, usual, whole = part_headers(data, start, stop)
        merged = {name: value for name, value in (usual | (headers or {})).items() if value is not None}
        handler.close_connection = True
        handler.send(number, merged, body(whole))

    return behave


def short(count: int) -> "Behaviour":
    """The connection ends after so many bytes of the body."""
    return changed(body=lambda body: body[:count])


def claims_short(count: int) -> "Behaviour":
    """So many bytes, and a length that fits them."""
    return changed({"Content-Length": count}, lambda body: body[:count])


def reset(count: int) -> "Behaviour":
    """The connection is reset after so many bytes of the body."""

    def behave(handler: Handler, data: bytes, start: int, stop: int | None) -> None:
        number, headers, body = part_headers(data, start, stop)
        handler.send(number, headers, body[:count])
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.rfile.close()  # the last users of the socket, whose end would else be put off
        handler.connection.close()

    return behave


def stall(count: int) -> "Behaviour":
    """Silence after so many bytes of the body, until the server ends."""

    def behave(handler: Handler, data: bytes, start: int, stop: int | None) -> None:
        number, headers, body = part_headers(data, start, stop)
        handler.send(number, headers, body[:count])
        handler.server.awake.wait(60)
        handler.close_connection = True

    return behave


def silent(handler: Handler, data: bytes, start: int, stop: int | None) -> None:
    """Not even a first line."""
    handler.server.awake.wait(60)
    handler.close_connection = True


def trickle(pause: float, count: int = 1) -> "Behaviour":
    """Some bytes at a time."""

    def behave(handler: Handler, data: bytes, start: int, stop: int | None) -> None:
        number, headers, body = part_headers(data, start, stop)
        handler.send(number, headers)
        for i in range(0, len(body), count):
            handler.wfile.write(body[i : i + count])
            sleep(pause)

    return behave


def no_ranges(handler: Handler, data: bytes, start: int, stop: int | None) -> None:
    """Range is not known here."""
    handler.send(*part_headers(data, 0, None))


def no_ranges_short(count: int) -> "Behaviour":
    """Range is not known here, and the connection ends after so many bytes."""

    def behave(handler: Handler, data: bytes, start: int, stop: int | None) -> None:
        number, headers, body = part_headers(data, 0, None)
        handler.close_connection = True
        handler.send(number, headers, body[:count])

    return behave


def endless(handler: Handler, data: bytes, start: int, stop: int | None) -> None:
    """Range is not known here, no length is given, and the body does not end (but for the test's sake after 1 GB)."""
    handler.close_connection = True
    handler.send(200, {}, data)
    block, ends = bytes(2**20), monotonic() + 20
    for _ in range(1000):
        handler.wfile.write(block)
        if monotonic() > ends:
            return


def garbage(handler: Handler, data: bytes, start: int, stop: int | None) -> None:
    """No HTTP."""
    handler.close_connection = True
    handler.wfile.write(b"\x00\xff not HTTP at all \r\n\r\n" * 10)


def flipped(body: bytes) -> bytes:
    """The body with one other byte."""
    return body[:-1] + bytes([body[-1] ^ 1]) if body else body


Behaviour = Callable[[Handler, bytes, int, int | None], None]


# ---- A file to serve, and a cache that does not wait long


SIZE = 300_000
QUICK: dict[str, Any] = {
    "retries": 4,
    "pause_seconds": 0.01,
    "longest_pause_seconds": 0.05,
    "stall_seconds": 0.4,
    "file_minutes": 0.25,
    "chunk_megabytes": 0.1,
}


def quick(folder: str | None, **settings: Any) -> ShardCache:
    """A cache that does not wait long."""
    return ShardCache(folder, **(QUICK | settings))


class Served(NamedTuple):
    """A file on the server, as an index lists it."""

    address: Address
    size: int
    sha256: str
    data: bytes


def serve_file(server: LocalServer, name: str = "shard.tar", size: int = SIZE, seed: int = 0) -> Served:
    data = random.Random(seed).randbytes(size)
    (server.folder / name).write_bytes(data)
    return Served(Address.parse(server.url).file(name), size, hashlib.sha256(data).hexdigest(), data)


def fetch(cache: ShardCache, served_file: Served) -> bytes:
    """The bytes that a cache gives for a file."""
    return cache.fetch(*served_file[:3]).read_bytes()


def left_over(cache: ShardCache) -> list[str]:
    """What lies in a cache's folder of partial files."""
    return sorted(path.name for path in (cache.store.folder / "partial").iterdir())


class Rows:
    """The rows of an index, as a loader's workers read them. Here, because spawned workers import what defines it."""

    def __init__(self, reader: FrameReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader.index)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.reader.read(row)
