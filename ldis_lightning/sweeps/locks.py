"""Locks on folders: of a sweep on its own, of a run on its own. They end with whoever holds them, whatever ends it.

They are `flock`s on open files, so none is ever stale. A run's is handed on to its process: as long as that lives, even
when the sweep that started it was killed, nobody else writes there.
"""

import errno
import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ldis_lightning.errors import UserError

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems say that have no locks. Nothing is guarded there."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as it has written it down.

    Attributes:
        pid: of its process on `host`.
        since: seconds since 1970.
    """

    pid: int
    host: str
    since: float

    def __str__(self) -> str:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {begun}"


class Lock:
    """A lock that is held until `release`, or by those that have inherited it until they end.

    Attributes:
        descriptor: of the locked file, for `pass_fds` of a child.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def sign(self, pid: int) -> None:
        """Write down who holds it."""
        text = json.dumps(asdict(Holder(pid, socket.gethostname(), time.time())))
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, text.encode(), 0)

    def release(self) -> None:
        """Let go of this process's hold; a child's stays."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def take(path: Path) -> Lock | None:
    """Lock a file, which is made if need be, with its folder; None if somebody else holds it.

    Raises:
        UserError: it cannot be opened for writing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another folder with `--out`") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            os.close(descriptor)
            return None
    return Lock(descriptor)


def holder(path: Path) -> Holder | None:
    """Who holds a lock now: None if nobody, or if it has not signed yet."""
    if not path.is_file():
        return None
    lock = take(path)
    if lock is not None:
        lock.release()
        return None
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Holder(0, "this machine", time.time())
