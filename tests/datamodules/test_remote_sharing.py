"""One cache, many processes: files come once, room is kept, and whoever dies is succeeded."""

import errno
import fcntl
import multiprocessing
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import local_server as bad
import pytest
from local_server import SIZE, LocalServer, Served, fetch, left_over, quick, serve_file, served

from ldis_lightning.datamodules.remote.cache import ShardCache
from ldis_lightning.datamodules.remote.locks import LockedFile
from ldis_lightning.errors import UserError

pytestmark = pytest.mark.timeout(180)
PATIENT = {"stall_seconds": 30.0}  # on a busy machine the server may be silent for longer than `quick` waits
SLOW = bad.trickle(0.01, 10_000)  # 0.3 s a file


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    (tmp_path / "served").mkdir()
    with served(tmp_path / "served") as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@contextmanager
def processes(number: int, work: Callable[..., None], *arguments: Any) -> Iterator[list[Any]]:
    """Forks that do some work with their number; all must end well unless they were killed."""
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=work, args=(i, *arguments)) for i in range(number)]
    for process in started:
        process.start()
    try:
        yield started
        for process in started:
            process.join(120)
            assert process.exitcode in (0, -signal.SIGKILL)
    finally:
        for process in started:
            process.kill()
            process.join()


def fetch_all(number: int, folder: str, files: list[Served], settings: dict[str, Any]) -> None:
    """Fetch files, each process in an order of its own, and compare them."""
    cache = quick(folder, **settings)
    for file in random.Random(number).sample(files, len(files)):
        assert fetch_again(cache, file) == file.data


def fetch_again(cache: ShardCache, file: Served) -> bytes:
    """As a reader does: who finds the file gone fetches it again."""
    while True:
        try:
            return fetch(cache, file)
        except FileNotFoundError:
            continue


def taken(folder: str) -> int:
    """Bytes in a cache, those reserved for what is on its way included; 0 while it changes under our eyes."""
    sizes = sizes_now(folder)
    return sum(sizes.values()) if sizes == sizes_now(folder) else 0


def sizes_now(folder: str) -> dict[int, int]:
    """Bytes by inode, which a file keeps when it moves from `partial` to `files` while we look."""
    found = {}
    for part in ("partial", "files"):
        for path in (Path(folder) / part).iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found[status.st_ino] = status.st_size
    return found


# ---- Files come once


@pytest.mark.parametrize("number", [2, 4, 8])
def test_processes_fetch_a_file_once(number: int, server: LocalServer, folder: str) -> None:
    files = [serve_file(server, f"shard-{i}.tar", seed=i) for i in range(3)]
    server.always = {f"shard-{i}.tar": SLOW for i in range(3)}
    with processes(number, fetch_all, folder, files, PATIENT):
        pass
    asked = Counter(server.requests)
    assert len(asked) == 9 and set(asked.values()) == {1}
    assert left_over(ShardCache(folder)) == []


def test_threads_fetch_a_file_once(server: LocalServer, folder: str) -> None:
    file = serve_file(server)
    server.always["shard.tar"] = SLOW
    got: list[bytes] = []
    cache = quick(folder, **PATIENT)
    threads = [threading.Thread(target=lambda: got.append(fetch(cache, file))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [file.data] * 4 and len(server.requests) == 3


def test_equal_names_of_two_sets_never_meet(tmp_path: Path, folder: str) -> None:
    cache = quick(folder)
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        with served(tmp_path / str(seed)) as server:
            file = serve_file(server, seed=seed)
            assert fetch(cache, file) == file.data
    assert len(list((Path(folder) / "files").iterdir())) == 2


# ---- Whoever dies is succeeded


def test_when_the_one_that_fetches_is_killed_another_continues(server: LocalServer, folder: str) -> None:
    file = serve_file(server)
    server.scripts["shard.tar"].extend([bad.well, bad.stall(50_000)])
    patient = {"stall_seconds": 30}
    with processes(1, fetch_all, folder, [file], patient) as (first,):
        wait_until(lambda: [path.stat().st_size for path in Path(folder).glob("partial/*")] == [150_000])
        with processes(3, fetch_all, folder, [file], patient) as waiting:
            sleep(0.5)
            assert len(server.requests) == 2 and all(process.is_alive() for process in waiting)
            os.kill(first.pid, signal.SIGKILL)
    assert [request.start for request in server.requests[2:]] == [150_000, 250_000]


def test_kills_at_random_moments(server: LocalServer, folder: str) -> None:
    """20 kills: no finished file is ever wrong, and in the end all is there."""
    files = [serve_file(server, f"shard-{i}.tar", seed=i) for i in range(4)]
    server.always = {f"shard-{i}.tar": bad.trickle(0.002, 10_000) for i in range(4)}
    generator = random.Random(0)
    for _ in range(20):
        with processes(1, fetch_all, folder, files, {"max_gigabytes": 2.2 * SIZE / 1e9}) as (process,):
            sleep(generator.uniform(0, 0.25))
            process.kill()
        contents = {file.sha256: file.data for file in files}
        for path in (Path(folder) / "files").glob("*"):
            assert path.read_bytes() == contents[path.name]
    with processes(2, fetch_all, folder, files, {}):
        pass
    assert left_over(ShardCache(folder)) == []


def test_a_process_that_does_nothing_is_not_waited_for(server: LocalServer, folder: str) -> None:
    file = serve_file(server)
    server.scripts["shard.tar"].append(bad.stall(50_000))
    with processes(1, fetch_all, folder, [file], {"stall_seconds": 30}) as (first,):
        wait_until(lambda: server.requests)
        os.kill(first.pid, signal.SIGSTOP)
        impatient = quick(folder, retries=0, longest_pause_seconds=0, stall_seconds=0.1)
        with pytest.raises(UserError, match=r"shard\.tar: .* another process, which has done nothing for 1 s"):
            fetch(impatient, file)
        os.kill(first.pid, signal.SIGCONT)
        first.kill()


def test_a_fork_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    locked = LockedFile.try_open(tmp_path / "file")
    assert locked is not None and LockedFile.try_open(tmp_path / "file") is None
    ready, end = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(end[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        os.close(locked.descriptor)  # without unlocking: as if the parent had died
        locked.descriptor = -1
        again = LockedFile.try_open(tmp_path / "file")
        assert again is not None
        again.close()
    finally:
        os.write(end[1], b"x")
        os.waitpid(child, 0)


def test_a_file_that_goes_while_it_is_being_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "file", fcntl.flock

    def flock(descriptor: int, kind: int) -> None:
        path.unlink(missing_ok=True)
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert LockedFile.try_open(path) is None
    monkeypatch.undo()
    locked = LockedFile.try_open(path)
    assert locked is not None
    locked.close()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"cannot be locked: No locks available. Choose .* data\.cache\.folder"):
        LockedFile.try_open(tmp_path / "file")


def test_a_fork_has_connections_of_its_own(server: LocalServer, folder: str) -> None:
    files = [serve_file(server, f"shard-{i}.tar", seed=i) for i in range(4)]
    cache = quick(folder)
    assert fetch(cache, files[0]) == files[0].data
    for _ in range(2):  # the second time, the child finds what the first child has fetched
        with processes(2, fetch_all, folder, files[:3], {}):
            pass
    assert fetch(cache, files[3]) == files[3].data
    assert len(server.requests) == 12


# ---- Room is kept


def test_what_was_not_used_for_longest_goes(server: LocalServer, folder: str) -> None:
    files = [serve_file(server, f"shard-{i}.tar", seed=i) for i in range(4)]
    cache = quick(folder, max_gigabytes=3.5 * SIZE / 1e9)
    for file in files[:3]:
        fetch(cache, file)
        sleep(0.01)
    opened = os.open(cache.fetch(*files[1][:3]), os.O_RDONLY)  # 1 and 0 are used again, in this order
    sleep(0.01)
    fetch(cache, files[0])
    fetch(cache, files[3])
    names = [file.sha256 for file in files]
    assert {path.name for path in (Path(folder) / "files").iterdir()} == {names[0], names[1], names[3]}
    fetch(cache, files[2])
    assert not cache.store.place(names[1]).exists()
    assert os.pread(opened, SIZE, 0) == files[1].data  # who has it open keeps it
    os.close(opened)
    assert fetch(cache, files[1]) == files[1].data  # who finds it gone fetches it again
    assert server.count("shard-1.tar") == 6


def test_a_file_larger_than_the_cache(server: LocalServer, folder: str) -> None:
    cache = quick(folder, max_gigabytes=0.5 * SIZE / 1e9)
    with pytest.raises(UserError, match=r"shard\.tar: .* 0\.0003 GB, more than the cache may hold \(0\.00015 GB\)"):
        fetch(cache, serve_file(server))
    assert server.requests == []


def test_what_a_dead_process_left_makes_room(server: LocalServer, folder: str) -> None:
    files = [serve_file(server, f"shard-{i}.tar", seed=i) for i in range(2)]
    server.scripts["shard-0.tar"].extend([bad.well, *[bad.status(503)] * 5])
    cache = quick(folder, max_gigabytes=1.2 * SIZE / 1e9)
    with pytest.raises(UserError, match="100000 of 300000 bytes are kept"):
        fetch(cache, files[0])
    assert fetch(cache, files[1]) == files[1].data
    assert left_over(cache) == []


@pytest.mark.parametrize("room", [1.5, 3.5])
def test_processes_never_take_more_than_there_is(room: float, server: LocalServer, folder: str) -> None:
    """4 processes that read 6 files in different orders through a cache for 1 or 3; the most it holds is watched."""
    files = [serve_file(server, f"shard-{i}.tar", seed=i) for i in range(6)]
    server.always = {f"shard-{i}.tar": bad.trickle(0.001, 10_000) for i in range(6)}
    most = 0
    with processes(4, fetch_all, folder, files, {"max_gigabytes": room * SIZE / 1e9}) as started:
        while any(process.is_alive() for process in started):
            if (Path(folder) / "files").is_dir():
                most = max(most, taken(folder))
            sleep(0.002)
    assert SIZE <= most <= room * SIZE


def wait_until(condition: Callable[[], Any]) -> None:
    ends = monotonic() + 20
    while not condition():
        assert monotonic() < ends
        sleep(0.02)
