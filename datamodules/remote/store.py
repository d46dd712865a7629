"""The folder of a cache: what lies in it, how full it is, and who fetches what."""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ldis_lightning.datamodules.remote.locks import ELSEWHERE, Claim, LockedFile
from ldis_lightning.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, or of a user's share of it, that is full."""
_POLL = 0.1
"""Seconds between two looks at what another process does."""
IN_USE = "in-use"
"""File of a set whose lock says that a process has the set's columns open."""


class Partial:
    """A file while it is being fetched, at the position where the last attempt, of any process, has ended.

    Args:
        locked: its file, locked.
        size: of the whole file, in bytes.
    """

    def __init__(self, locked: LockedFile, size: int) -> None:
        self._locked, self.size = locked, size
        self.length = os.fstat(locked.descriptor).st_size

    def append(self, data: bytes) -> None:
        """Write the next bytes.

        Raises:
            UserError: the disk is full, in which case the file is removed, or fails.
        """
        assert self.length + len(data) <= self.size, "more bytes than the file has"
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._locked.descriptor, view, self.length)
                self.length, view = self.length + written, view[written:]
        except OSError as error:
            raise self._failed(error) from error

    def sha256(self) -> str:
        """SHA-256 of what is there."""
        with os.fdopen(os.dup(self._locked.descriptor), "rb") as stream:
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def clear(self) -> None:
        """Throw all bytes away."""
        os.ftruncate(self._locked.descriptor, 0)
        self.length = 0

    def settle(self) -> None:
        """Wait until all bytes are on the disk.

        Raises:
            UserError: the disk is full or fails.
        """
        try:
            os.fsync(self._locked.descriptor)
        except OSError as error:
            raise self._failed(error) from error

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._locked.path

    def _failed(self, error: OSError) -> UserError:
        place = self.path.parent.parent
        if error.errno not in _FULL:
            return UserError(f"{place} cannot be written: {error.strerror}.")
        self.path.unlink(missing_ok=True)
        return UserError(
            f"{place}: the disk, or your share of it, is full ({error.strerror}). Make room, lower "
            "data.cache.max_gigabytes, or choose another disk with data.cache.folder."
        )


class _Entry(NamedTuple):
    """Something that may be evicted."""

    used: float  # time of the last use
    size: int  # bytes
    path: Path


class Store:
    """The folder of a cache.

    `files/` holds finished files, named by their SHA-256; `sets/HASH/` the index of a data set, named by the hash of
    its header; `partial/` what is being fetched, `SHA256.SIZE`; `urls/` the hash of the header that an address gave
    last. Room is made, and files are put in place, under the lock of `lock`, which is held for moments only; so the
    folder never holds more than it may. A file in `partial/` is locked as long as a process fetches it.

    Args:
        folder: made where it is missing.
        capacity: bytes that files, sets and partial files may have together.
        patience: seconds after which waiting for another process ends in an error if that one makes no progress.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, capacity: int, patience: float) -> None:
        self.folder, self.capacity, self.patience = folder, capacity, patience
        self._files, self._partial = folder / "files", folder / "partial"
        self.sets, self.urls = folder / "sets", folder / "urls"
        try:
            for part in (self._files, self._partial, self.sets, self.urls):
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error.strerror}. {ELSEWHERE}") from error

    def place(self, sha256: str) -> Path:
        """Where the finished file of this content lies."""
        return self._files / sha256

    @contextmanager
    def partial(self, sha256: str, size: int, is_there: Callable[[], bool]) -> Iterator[Partial | None]:
        """The partial file of this content, locked and with room for the whole; None once another process has made
        it (`is_there`).

        Raises:
            UserError: it has more bytes than the cache may have, or another process has the lock and does nothing.
        """
        if size > self.capacity:
            raise UserError(
                f"the file has {_gigabytes(size)}, more than the cache may hold ({_gigabytes(self.capacity)}): "
                "raise data.cache.max_gigabytes."
            )
        locked = self._wait_for(self._partial / f"{sha256}.{size}", size, is_there)
        if locked is None:
            yield None
            return
        with locked:
            partial = Partial(locked, size)
            try:
                yield partial
            finally:
                if partial.length == 0 and not is_there():
                    locked.path.unlink(missing_ok=True)  # nothing to continue with

    def finish(self, partial: Partial, place: Path) -> None:
        """Move a whole, settled file to its place.

        Raises:
            UserError: the disk is full or fails.
        """
        try:
            with self._lock():
                place.parent.mkdir(parents=True, exist_ok=True)
                partial.path.replace(place)
            for folder in {place.parent, partial.path.parent}:
                _sync_folder(folder)
        except OSError as error:
            raise UserError(f"{place} cannot be written: {error.strerror}.") from error

    def claim(self, name: str) -> Claim:
        """Make the folder of a set if it is missing, and keep it from being evicted while the claim lives."""
        with self._lock():
            folder = self.sets / name
            folder.mkdir(exist_ok=True)
            touch(folder)
            return Claim(folder / IN_USE)

    def _wait_for(self, path: Path, size: int, is_there: Callable[[], bool]) -> LockedFile | None:
        patience = _Patience(self.patience)
        while not is_there():
            with self._lock():
                locked = None if is_there() else LockedFile.try_open(path)
                if locked is not None and self._has_room(size, locked):
                    return locked
            if patience.ends_with(self._progress()):
                raise UserError(
                    f"{path} is being fetched by another process, which has done nothing for {self.patience:.0f} s: "
                    "end that process and start again."
                )
            time.sleep(_POLL)
        return None

    def _has_room(self, size: int, locked: LockedFile) -> bool:
        """Whether there is room for the file of this size. If not, its partial file is let go of."""
        fits = False
        try:
            fits = self._make_room(size, locked.path)
        finally:
            if not fits:
                if os.fstat(locked.descriptor).st_size == 0:
                    locked.path.unlink()
                locked.close()
        return fits

    def _progress(self) -> object:
        """Changes whenever some process gets on with what it fetches."""
        return sorted((entry.path, entry.size) for entry in _entries_in(self._partial))

    def _make_room(self, size: int, path: Path) -> bool:
        """Remove what was not used for longest until there is room for the file that will grow at `path`. Only under
        the lock."""
        others = [entry for entry in _entries_in(self._partial) if entry.path != path]
        coming = [entry for entry in others if _is_locked(entry.path)]
        entries = [entry for entry in others if entry not in coming]
        entries += _entries_in(self._files) + _entries_in(self.sets)
        reserved = sum(max(entry.size, _promised(entry.path)) for entry in coming)
        if coming and size + reserved > self.capacity:
            return False  # whatever is removed
        taken = size + reserved + sum(entry.size for entry in entries)
        for entry in sorted(entries):
            if taken <= self.capacity:
                break
            if _remove(entry.path):
                taken -= entry.size
        if taken > self.capacity and not coming:
            raise UserError(
                f"{self.folder} has no room for a file of {_gigabytes(size)} beside the indexes that are in use "
                f"({_gigabytes(taken - size)}): raise data.cache.max_gigabytes."
            )
        return taken <= self.capacity

    @contextmanager
    def _lock(self) -> Iterator[None]:
        patience = _Patience(self.patience)
        while (locked := LockedFile.try_open(self.folder / "lock")) is None:
            if patience.ends_with(None):
                raise UserError(f"{self.folder / 'lock'} is held by another process that does nothing: end it.")
            time.sleep(_POLL / 10)
        with locked:
            yield


class _Patience:
    """Ends when nothing has changed for some seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last, self._since = seconds, object(), time.monotonic()

    def ends_with(self, state: object) -> bool:
        """Whether the state has been this one for too long."""
        if state != self._last:
            self._last, self._since = state, time.monotonic()
        return time.monotonic() - self._since > self._seconds


def touch(path: Path) -> None:
    """Note that something was used now: what was not used for longest is removed first."""
    with suppress(OSError):  # in a cache of someone else's
        os.utime(path)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file, whole or not at all.

    Raises:
        UserError: the disk is full or fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def _remove(path: Path) -> bool:
    """Evict a file, or a set that nobody has open."""
    try:
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return True
        locked = LockedFile.try_open(path / IN_USE)
        if locked is None:
            return False
        with locked:
            shutil.rmtree(path)
        return True
    except OSError:  # someone else's
        return False


def _entries_in(folder: Path) -> list[_Entry]:
    """What may be evicted of a folder: files, or folders with all that is in them."""
    entries = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # it went in this moment
            state = path.stat()
            size = state.st_size
            if path.is_dir():
                size = sum(inside.stat().st_size for inside in path.rglob("*") if inside.is_file())
            entries.append(_Entry(state.st_mtime, size, path))
    return entries


def _promised(path: Path) -> int:
    """The size that a partial file is going to have."""
    size = path.name.rpartition(".")[2]
    return int(size) if size.isdecimal() else 0


def _is_locked(path: Path) -> bool:
    with suppress(FileNotFoundError):
        path.stat()  # opening would make a file that went in this moment
        locked = LockedFile.try_open(path)
        if locked is not None:
            locked.close()
        return locked is None
    return False


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not all file systems can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
