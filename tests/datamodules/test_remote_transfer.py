"""What servers do wrong: every case is recovered from or reported, and never a wrong byte is given."""

import errno
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any, cast

import local_server as bad
import pytest
from local_server import QUICK, SIZE, LocalServer, fetch, left_over, quick, serve_file, served

from ldis_lightning.datamodules.remote.cache import ShardCache
from ldis_lightning.errors import UserError

pytestmark = pytest.mark.timeout(30)

RECOVERED: dict[str, list[bad.Behaviour]] = {
    "503 once": [bad.status(503)],
    "503 four times": [bad.status(503)] * 4,
    "503 with Retry-After": [bad.status(503, Retry_After="0")],
    "503 that asks for an hour": [bad.status(503, Retry_After="3600")],
    "503 with a date": [bad.status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")],
    "503 with nonsense": [bad.status(503, Retry_After="soon")],
    "429": [bad.status(429, Retry_After="1")],
    "408": [bad.status(408)],
    "500, 502, 504": [bad.status(500), bad.status(502), bad.status(504)],
    "body of 0 bytes": [bad.short(0)],
    "body cut": [bad.short(1000)],
    "every second body cut": [bad.short(60_000), bad.well] * 2,
    "body shorter than asked": [bad.claims_short(1000)],
    "empty part": [bad.claims_short(0)],
    "length too large": [bad.changed({"Content-Length": 10**9})],
    "no length": [bad.changed({"Content-Length": None})] * 3,
    "stall before the first byte": [bad.silent],
    "stall after the headers": [bad.stall(0)],
    "stall in the middle": [bad.stall(50_000)],
    "reset before the body": [bad.reset(0)],
    "reset in the middle": [bad.reset(50_000)],
    "no HTTP": [bad.garbage],
    "wrong byte": [bad.changed(body=bad.flipped)],
    "wrong byte in the middle": [bad.well, bad.changed(body=bad.flipped)],
    "longer body than asked": [bad.changed({"Content-Length": 100_007}, lambda body: body + b"surplus")],
    "part of another place": [bad.changed({"Content-Range": f"bytes 7-100006/{SIZE}"})],
    "part without its place": [bad.changed({"Content-Range": None})],
    "part of a file of another size": [bad.changed({"Content-Range": "bytes 0-99999/12"})],
    "416 once": [bad.status(416)],
    "no ranges": [bad.no_ranges],
    "no ranges, cut": [bad.no_ranges_short(150_000), bad.no_ranges],
    "no ranges from the second part on": [bad.well, bad.no_ranges],
    "no ranges and more than the file": [bad.endless],
    "whole file of another size once": [bad.changed({"Content-Length": 0}, lambda body: b"")],
    "a little of everything": [bad.status(503), bad.short(10), bad.reset(5), bad.changed(body=bad.flipped), bad.silent],
}

REPORTED: dict[str, tuple[bad.Behaviour, str, int]] = {  # what happens each time, message, most requests
    "404": (bad.status(404), "answers 404 Not Found, but the index lists the file", 1),
    "403": (bad.status(403), "answers 403 Forbidden", 1),
    "401": (bad.status(401), "answers 401 Unauthorized", 1),
    "410": (bad.status(410), "answers 410 Gone", 1),
    "304": (bad.status(304), "answers 304", 1),
    "always 503": (bad.status(503), "answers 503 Service Unavailable; given up after 5 attempts", 5),
    "always 429": (bad.status(429), "answers 429 Too Many Requests; given up after 5 attempts", 5),
    "always an empty body": (bad.short(0), "the body ends early; given up after 5 attempts", 5),
    "always an empty part": (bad.claims_short(0), "the body ends early; given up after 5 attempts", 5),
    "always one byte": (bad.short(1), "given up after 5 attempts; 5 of 300000 bytes are kept for the next run", 5),
    "always silence": (bad.silent, "no answer, or none in time; given up after 5 attempts", 5),
    "always a reset": (bad.reset(0), "given up after 5 attempts", 5),
    "always no HTTP": (bad.garbage, "given up after 5 attempts", 5),
    "always a wrong byte": (bad.changed(body=bad.flipped), "its SHA-256 is [0-9a-f]{64}, and the index says", 9),
    "always another place": (bad.changed({"Content-Range": "bytes 1-2/3"}), "bytes from 0 on and sends", 3),
    "always another size": (bad.changed({"Content-Range": "bytes 0-99999/9"}), "has 9 bytes where the index says", 3),
    "always 416": (bad.status(416, Content_Range="bytes */12"), r"shorter than the index says \(12 bytes\)", 3),
    "compressed": (bad.changed({"Content-Encoding": "gzip"}), "compresses what it sends", 1),
    "redirects in a circle": (bad.status(302, Location="/shard.tar"), "TooManyRedirects", 7),
    "redirect to a file": (bad.status(302, Location="file:///etc/passwd"), "InvalidUrl|NonHttpUrl|given up", 5),
    "ten bytes a second": (bad.trickle(0.1), "bytes are kept for the next run", 100),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    (tmp_path / "served").mkdir()
    with served(tmp_path / "served") as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return quick(str(tmp_path / "cache"))


def test_there_are_as_many_cases_as_the_page_says() -> None:
    assert (len(RECOVERED), len(REPORTED)) == (35, 21)


@pytest.mark.parametrize("case", RECOVERED)
def test_recovered(case: str, server: LocalServer, cache: ShardCache) -> None:
    file = serve_file(server)
    server.scripts["shard.tar"].extend(RECOVERED[case])
    assert fetch(cache, file) == file.data
    assert not server.scripts["shard.tar"], "the server did not come to all that it was to do"
    assert left_over(cache) == []
    before = len(server.requests)
    assert fetch(cache, file) == file.data and len(server.requests) == before


@pytest.mark.parametrize("case", REPORTED)
def test_reported(case: str, server: LocalServer, cache: ShardCache) -> None:
    file = serve_file(server)
    behaviour, message, requests = REPORTED[case]
    server.always["shard.tar"] = behaviour
    if case == "ten bytes a second":
        cache = quick(cache.folder, file_minutes=0.02)
    with pytest.raises(UserError, match=message) as raised:
        fetch(cache, file)
    assert f"{server.url}/shard.tar" in str(raised.value) and "\n" not in str(raised.value)
    assert len(server.requests) <= requests
    assert not cache.store.place(file.sha256).exists()
    server.always.clear()
    assert fetch(cache, file) == file.data


def test_wrong_bytes_are_named_with_both_hashes(server: LocalServer, cache: ShardCache) -> None:
    file = serve_file(server)
    (server.folder / "shard.tar").write_bytes(bytes(SIZE))
    with pytest.raises(UserError, match=f"shard.tar .*SHA-256 is [0-9a-f]{{64}}, .*{file.sha256}.*fetched 3 times"):
        fetch(cache, file)
    assert left_over(cache) == []


def test_a_file_that_is_missing(server: LocalServer, cache: ShardCache) -> None:
    file = serve_file(server)
    (server.folder / "shard.tar").unlink()
    with pytest.raises(UserError, match="404"):
        fetch(cache, file)
    assert left_over(cache) == []


def test_an_empty_file_needs_no_request(server: LocalServer, cache: ShardCache) -> None:
    assert fetch(cache, serve_file(server, size=0)) == b""
    assert server.requests == []


def test_another_process_continues_where_one_ended(server: LocalServer, cache: ShardCache) -> None:
    file = serve_file(server)
    server.scripts["shard.tar"].extend([bad.well, bad.short(50_000), *[bad.status(503)] * 4])
    with pytest.raises(UserError, match="150000 of 300000 bytes are kept"):
        fetch(cache, file)
    server.requests.clear()
    again = quick(cache.folder)
    assert fetch(again, file) == file.data
    assert [request.start for request in server.requests] == [150_000, 250_000]


def test_a_server_without_ranges_sends_the_file_once(server: LocalServer, cache: ShardCache) -> None:
    file = serve_file(server)
    server.always["shard.tar"] = bad.no_ranges
    assert fetch(cache, file) == file.data and len(server.requests) == 1


def test_the_server_dies_and_comes_back(tmp_path: Path, server: LocalServer) -> None:
    file = serve_file(server)
    server.scripts["shard.tar"].extend([bad.well, lambda *_: server.stop()])  # dies in the second request
    cache = quick(str(tmp_path / "cache"), retries=100, longest_pause_seconds=0.3)

    def revive() -> None:
        server.awake.wait(20)
        sleep(1.0)
        revived.append(LocalServer(server.folder, server.server_port))

    revived: list[LocalServer] = []
    thread = threading.Thread(target=revive)
    thread.start()
    assert fetch(cache, file) == file.data
    thread.join()
    assert [request.start for request in revived[0].requests] == [100_000, 200_000]
    revived[0].stop()


def test_the_server_stays_dead(server: LocalServer, cache: ShardCache) -> None:
    file = serve_file(server)
    server.stop()
    with pytest.raises(UserError, match=r"cannot connect to 127\.0\.0\.1.*given up after 5 attempts"):
        fetch(cache, file)
    assert left_over(cache) == []


def run(program: str) -> str:
    """Run a program in a process of its own; returns what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_memory_is_bounded_whatever_a_server_sends(server: LocalServer, cache: ShardCache) -> None:
    """A gigabyte where a part, and where a small file was asked for."""
    file = serve_file(server)
    server.always["shard.tar"] = bad.endless
    grown = run(f"""
        import resource, sys
        from ldis_lightning.datamodules.remote.address import Address
        from ldis_lightning.datamodules.remote.cache import ShardCache
        from ldis_lightning.datamodules.remote.connect import transport_for
        from ldis_lightning.errors import UserError

        cache = ShardCache({cache.folder!r}, **{QUICK})
        address = Address.parse({server.url!r}).file("shard.tar")
        transport_for(address, cache.limits(1.0))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cache.fetch(address, {file.size}, {file.sha256!r})
        for ask in (lambda: cache.fetch(address, 9, "0" * 64), lambda: cache.read(address, 10**6, bytes)):
            try:
                ask()
            except UserError as error:
                print("not what its index" in str(error) or "more than 1000000 bytes" in str(error))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(grown * (1 if sys.platform == "darwin" else 1024))
    """).split()
    assert grown[:2] == ["True", "True"] and int(grown[2]) < 50e6


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails(
    number: int, server: LocalServer, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, real = serve_file(server), os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if offset + len(data) > 150_000:
            raise OSError(number, os.strerror(number))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(UserError, match=r"shard.tar: .*cache.*(is full .*Make room|cannot be written: Input/output)"):
        fetch(cache, file)
    assert len(left_over(cache)) == (number == errno.EIO)  # what a full disk holds of it is given back
    monkeypatch.undo()
    assert fetch(cache, file) == file.data


def test_a_disk_that_is_full(server: LocalServer, cache: ShardCache) -> None:
    """The kernel's own error: files of this process may not grow beyond 150 kB."""
    file = serve_file(server)
    message = run(f"""
        import resource
        from ldis_lightning.datamodules.remote.address import Address
        from ldis_lightning.datamodules.remote.cache import ShardCache
        from ldis_lightning.errors import UserError

        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
        try:
            ShardCache({cache.folder!r}, **{QUICK}).fetch(Address.parse({server.url!r}).file("shard.tar"), *{file[1:3]})
        except UserError as error:
            print(error)
    """)
    assert "is full (File too large). Make room" in message and f"{server.url}/shard.tar" in message
    assert left_over(cache) == []


def test_settings_out_of_range() -> None:
    for name in ("max_gigabytes", "stall_seconds", "file_minutes", "chunk_megabytes"):
        with pytest.raises(UserError, match=rf"data.cache.{name} is 0"):
            ShardCache(**cast(Any, {name: 0}))
    with pytest.raises(UserError, match=r"data.cache.retries is -1"):
        ShardCache(retries=-1)
