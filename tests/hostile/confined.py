"""Runs what reads untrusted data in a process of its own, in which nothing that it does can go unseen."""

import json
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ldis_lightning.errors import UserError

SECONDS, WAITING = 30, 200
"""What takes more of a processor's time hangs, and what takes more by the clock, which is much on a busy machine."""
MEGABYTES = 900
"""What a process may grow by: pictures of up to 2**26 pixels are decoded, in three colours."""
ADDRESSES = 12 * 2**30
"""Bytes of memory that a process may ask for beside those that it has, so that a bomb does not take the machine."""

PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "pty.spawn")
HARMLESS = ("_codecs", "collections", "numpy", "pathlib", "torch")
"""Top-level modules of which pickles may name something, and our readers look at what it is."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Outcome:
    """What became of an action.

    Attributes:
        error: class of what it raised, "" for nothing, `hang` or `crash` where it had to be ended or ended itself.
        message: of what it raised.
        causes: classes of everything that was raised on the way.
        megabytes: by which the process grew at most.
        events: programs that it started, and files that it wrote where it must not.
        trace: where the error came from.
    """

    error: str = ""
    message: str = ""
    causes: tuple[str, ...] = ()
    megabytes: float = 0
    events: tuple[str, ...] = ()
    trace: str = ""


def confined(action: Callable[[], object], may_write: Path | None = None, watched: bool = True) -> Outcome:
    """Run an action in a forked process.

    Args:
        action: what to run.
        may_write: the one folder in which it may write.
        watched: False where it starts processes of its own, which cannot be told from others.
    """
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(action, may_write, watched, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(WAITING):
            return Outcome("hang", f"it took more than {WAITING} s")
        return _outcome(ours, process)
    finally:
        process.kill()
        process.join()


def _outcome(ours: Connection, process: Any) -> Outcome:
    try:
        found = json.loads(ours.recv_bytes())
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return Outcome("hang", f"it took more than {SECONDS} s of a processor")
        return Outcome("crash", f"the process ended with {process.exitcode}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    return Outcome(**values)


def _run(action: Callable[[], object], may_write: Path | None, watched: bool, result: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    _limit_memory()
    events: list[str] = []
    before = _peak()
    if watched:
        sys.addaudithook(lambda event, arguments: _note(event, arguments, may_write, events))
    found: dict[str, Any] = {}
    try:
        action()
    except BaseException as error:
        chain = list(_chain(error))
        found = {"error": type(error).__name__, "message": str(error), "causes": [_described(one) for one in chain]}
        found["trace"] = "".join(traceback.format_exception(error, chain=False)[-3:])[-2000:]
    found |= {"megabytes": _peak() - before, "events": list(events)}
    result.send_bytes(json.dumps(found).encode())
    os._exit(0)


def _limit_memory() -> None:
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _peak() -> float:
    """Megabytes of memory that this process, or one that it started and waited for, has had at most."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(peaks) / unit


def _note(event: str, arguments: tuple[Any, ...], may_write: Path | None, events: list[str]) -> None:
    if event in PROGRAMS:
        events.append(f"{event}{arguments!r}"[:200])
    elif event == "pickle.find_class" and arguments[0].partition(".")[0] not in HARMLESS:
        events.append(f"{event}{arguments!r}")
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        inside = may_write is not None and path.startswith(f"{may_write}{os.sep}")
        if path and not inside and not path.startswith(("/dev/", "/proc/")) and "__pycache__" not in path:
            events.append(f"open {path}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _described(error: BaseException) -> str:
    """Class of an error; torch's own for memory that there is not is not a MemoryError."""
    return "MemoryError" if "can't allocate memory" in str(error) else type(error).__name__


def check_refused(outcome: Outcome, *names: str) -> None:
    """An action was refused as it should be: by one line that names the file, in good time and with little memory.

    Args:
        outcome: of the action.
        names: one of which must be in the message.
    """
    check_bounded(outcome)
    assert outcome.error in (UserError.__name__, "DamagedSample"), f"{outcome.error or 'not refused'}: {outcome}"
    assert len(outcome.message.splitlines()) == 1, f"more than a line: {outcome.message!r}"
    assert any(name in outcome.message for name in names), f"none of {names} is named: {outcome.message}"
    assert len(outcome.message) < 2000, "an endless message"


def check_bounded(outcome: Outcome) -> None:
    """An action, refused or not, has started no program, written nothing that it must not, and come to an end."""
    assert outcome.error not in ("hang", "crash"), outcome
    assert not outcome.events, outcome.events
    assert "MemoryError" not in outcome.causes, f"it asked for more than {ADDRESSES} bytes: {outcome}"
    assert outcome.megabytes < MEGABYTES, f"it took {outcome.megabytes:.0f} MB: {outcome}"


@contextmanager
def nothing_new(folder: Path, canary: Path, besides: Path | None = None) -> Iterator[None]:
    """Nothing is executed, and nothing written into a folder.

    Args:
        folder: what must stay as it is.
        canary: what hostile code would make.
        besides: a folder in it that may change.
    """

    def listing() -> dict[str, tuple[int, int]]:
        paths = [path for path in folder.rglob("*") if besides is None or besides not in (path, *path.parents)]
        return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths if path != besides}

    before = listing()
    yield
    assert not canary.exists(), "code in the data was executed"
    assert listing() == before, "something was written"


def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is made if anything in hostile data runs, or if a decoder starts one of the programs that some do."""
    path = tmp_path / "canary"
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("gs", "gswin64c", "convert", "magick", "unrar", "rsvg-convert"):
        (programs / name).write_text(f"#!/bin/sh\ntouch '{path}'\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return path
