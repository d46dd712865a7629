"""Locks between processes that end with their holder, whatever ends it: flock on open files."""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from ldis_lightning.errors import UserError


class LockedFile:
    """An open file with a lock that excludes all other processes and threads. Not inherited by forks.

    Attributes:
        path: where it is, as long as nobody moves it.
        descriptor: of the open file; -1 once it is closed.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        _HELD.add(self)

    @classmethod
    def try_open(cls, path: Path) -> "LockedFile | None":
        """Open, or make, and lock a file; None if another holds the lock, or moved the file in this moment.

        Raises:
            UserError: it cannot be opened, or the file system has no locks.
        """
        descriptor = _open(path)
        if _lock(path, descriptor, fcntl.LOCK_EX) and _is_at(path, descriptor):
            return cls(path, descriptor)
        os.close(descriptor)
        return None

    def close(self) -> None:
        """Let go of the lock and the file."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # for copies in processes that forked in this moment, too
            os.close(descriptor)

    def __enter__(self) -> "LockedFile":
        """Nothing more."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class Claim:
    """A shared lock, held as long as this object lives, by forks too: what it is on is in use.

    Raises:
        UserError: the file cannot be opened, or the file system has no locks, or the file is locked for removal.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = _open(path)
        if not _lock(path, self._descriptor, fcntl.LOCK_SH):
            raise UserError(f"{path} is about to be removed by another process: start again.")

    def __del__(self) -> None:
        """Let go."""
        with suppress(OSError, AttributeError):  # where opening has failed
            os.close(self._descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise UserError(f"{path} cannot be opened for writing: {error.strerror}. {ELSEWHERE}") from error


def _lock(path: Path, descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
            return False
        raise UserError(f"{path} cannot be locked: {error.strerror}. {ELSEWHERE}") from error


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


ELSEWHERE = "Choose a folder on a disk of this machine with data.cache.folder."
_HELD = WeakSet[LockedFile]()


def _after_fork() -> None:
    """A forked process must not keep its parent's locks alive."""
    for locked in _HELD:
        if locked.descriptor >= 0:
            os.close(locked.descriptor)
            locked.descriptor = -1


os.register_at_fork(after_in_child=_after_fork)
