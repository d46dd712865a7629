"""How bytes come from an address: what all protocols share."""

from collections.abc import Callable
from dataclasses import dataclass

from ldis_lightning.datamodules.remote.address import Address


class TransferError(Exception):
    """A transfer has failed; the message says why, without credentials."""


class Unavailable(TransferError):
    """The server cannot be reached or is not well now: trying again may help.

    Args:
        reason: why.
        pause: seconds that the server asks to wait, if it does.
    """

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class Refused(TransferError):
    """The server says no: trying again does not help."""


class Mismatch(TransferError):
    """What the server has, or says it has, is not what the index lists."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a request.

    Args:
        stall_seconds: the connection is given up if it stays silent for so long.
        request_seconds: a request for one chunk is given up after so long.
        total_seconds: any request is.
    """

    stall_seconds: float
    request_seconds: float
    total_seconds: float


Sink = Callable[[bytes], None]
"""Takes the next bytes of a file."""


class Transport:
    """Reads files of one protocol. Each method blocks, within the limits."""

    def read(self, address: Address, start: int, stop: int, size: int, sink: Sink, limits: Limits) -> None:
        """Hand the bytes from `start` on to `sink`, in order, until `stop`, or until `size` where the server does not
        serve parts. May end early.

        Args:
            address: of the file.
            start: first byte.
            stop: one behind the last byte.
            size: of the whole file, in bytes.
            sink: takes the bytes.
            limits: of the request.

        Raises:
            TransferError: a `Unavailable`, `Refused` or `Mismatch`; the bytes handed on before count.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement read(...)")

    def read_whole(self, address: Address, most: int, limits: Limits) -> bytes:
        """A file of unknown size.

        Raises:
            TransferError: a `Unavailable` or `Refused`; also if it has more than `most` bytes.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement read_whole(...)")
