"""The cache of remote files: fetched once a machine, checked, and used by all its processes."""

import os
import random
import re
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ldis_lightning.datamodules.remote.address import Address
from ldis_lightning.datamodules.remote.store import Partial, Store, touch
from ldis_lightning.datamodules.remote.transport import Limits, Mismatch, Refused, Transport, Unavailable
from ldis_lightning.errors import UserError

_T = TypeVar("_T")
_DOWNLOADS = 3
"""As often is a file fetched, or a length accepted, that is not what the index says, before it is an error."""
_SLOWEST = 10
"""A request for a chunk may take so many times the seconds after which silence ends it."""


class ShardCache:
    """Where files of remote data sets are kept, and how they are fetched.

    A file is named by the SHA-256 that its index gives, so that equal names of different sets never meet, and gets this
    name only after all its bytes were compared with it. A file that is there is used after a look at its size: it was
    compared when it came, every sample has a checksum of its own, and `ldis data verify` compares all again. Processes
    that share the folder fetch a file once; if the one that fetches dies, another continues where it ended.

    Args:
        folder: on a disk of this machine; null for `$LDIS_CACHE`, or the folder `ldis/data` in `$XDG_CACHE_HOME` or
            `~/.cache`.
        max_gigabytes: what it may hold, in 10^9 bytes; what was not used for longest is removed first.
        retries: failures in a row after which the server is given up.
        pause_seconds: pause after the first failure, doubled after each.
        longest_pause_seconds: the longest pause, also where the server asks for a longer one.
        stall_seconds: a connection is given up if it is silent for so long.
        file_minutes: a file that has not come after so long is given up. What has come is kept.
        chunk_megabytes: size of a request, in 10^6 bytes.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        folder: str | None = None,
        max_gigabytes: float = 100.0,
        retries: int = 10,
        pause_seconds: float = 0.5,
        longest_pause_seconds: float = 30.0,
        stall_seconds: float = 30.0,
        file_minutes: float = 60.0,
        chunk_megabytes: float = 8.0,
    ) -> None:
        positive = {"max_gigabytes": max_gigabytes, "stall_seconds": stall_seconds, "file_minutes": file_minutes}
        for name, value in (positive | {"chunk_megabytes": chunk_megabytes}).items():
            if not value > 0:
                raise UserError(f"data.cache.{name} is {value}, and must be more than 0.")
        pauses = {"pause_seconds": pause_seconds, "longest_pause_seconds": longest_pause_seconds}
        for name, value in ({"retries": retries} | pauses).items():
            if not value >= 0:
                raise UserError(f"data.cache.{name} is {value}, and must not be negative.")
        self.folder, self.max_gigabytes, self.retries = folder, max_gigabytes, retries
        self.pause_seconds, self.longest_pause_seconds = pause_seconds, longest_pause_seconds
        self.stall_seconds, self.file_minutes, self.chunk_megabytes = stall_seconds, file_minutes, chunk_megabytes

    def __getstate__(self) -> dict[str, Any]:
        """Pickle as the settings alone."""
        return {name: value for name, value in self.__dict__.items() if name != "store"}

    @cached_property
    def store(self) -> Store:
        """The folder, made where it is missing."""
        silence = (self.retries + 1) * (self.stall_seconds + self.longest_pause_seconds) + _SLOWEST * self.stall_seconds
        return Store(self._folder(), min(int(self.max_gigabytes * 1e9), 2**62), patience=silence)

    def fetch(self, address: Address, size: int, sha256: str, place: Path | None = None) -> Path:
        """The local file of an address, fetched if it is not there.

        Args:
            address: of the file.
            size: in bytes.
            sha256: of its bytes, in hexadecimal digits.
            place: where it is to lie in the cache's folder; None for its place among the shards.

        Raises:
            UserError: the server does not have it, or cannot be reached for too long, or has other bytes; the disk is
                full; the cache is too small. The message names the address.
        """
        if not re.fullmatch("[0-9a-f]{64}", str(sha256)):
            raise UserError(f"{address}: its index is damaged ({str(sha256)[:70]!r} is no SHA-256).")
        place = place or self.store.place(sha256)
        if _has_size(place, size):
            touch(place)
            return place
        try:
            with self.store.partial(sha256, size, lambda: _has_size(place, size)) as partial:
                if partial is not None:
                    _Download(self, address, partial, sha256).run()
                    partial.settle()
                    self.store.finish(partial, place)
        except UserError as error:
            raise error if address.shown in str(error) else UserError(f"{address}: {error}") from error
        touch(place)
        return place

    def read(self, address: Address, most: int, parse: Callable[[bytes], _T], retries: int | None = None) -> _T:
        """What a small file of unknown size and hash holds, fresh from the server.

        Args:
            address: of the file.
            most: bytes that it may have.
            parse: makes something of its bytes; raises ValueError where they are not whole.
            retries: instead of the cache's own.

        Raises:
            Unavailable: the server cannot be reached.
            UserError: it does not have the file, or has a broken one.
        """
        attempts = Attempts(self, self.retries if retries is None else retries)
        limits = self.limits(attempts.seconds_left())
        transport = _transport(address, limits)
        while True:
            try:
                return parse(transport.read_whole(address, most, limits))
            except Unavailable as error:
                attempts.failed(error)
            except ValueError as error:
                try:
                    attempts.mismatched(Mismatch(str(error)))
                except Mismatch:
                    raise UserError(f"{address} is damaged ({error}): put the data set there again.") from error
            except Refused as error:
                raise UserError(f"{address}: {error}. Is the address right?") from error

    def limits(self, seconds_left: float) -> Limits:
        """Bounds of a request of a file that has so much time left."""
        seconds_left = max(seconds_left, 1.0)
        return Limits(self.stall_seconds, min(_SLOWEST * self.stall_seconds, seconds_left), seconds_left)

    def _folder(self) -> Path:
        if self.folder:
            return Path(self.folder).expanduser().absolute()
        if own := os.environ.get("LDIS_CACHE"):
            return Path(own).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "ldis" / "data"


class Attempts:
    """Counts what goes wrong with a file, and waits in between.

    Args:
        cache: says how often and for how long.
        retries: failures in a row that are borne.
    """

    def __init__(self, cache: ShardCache, retries: int) -> None:
        self._cache, self._retries = cache, retries
        self._failures = self._mismatches = 0
        self._deadline = time.monotonic() + 60 * cache.file_minutes

    def seconds_left(self) -> float:
        """Time until the file is given up."""
        return self._deadline - time.monotonic()

    def succeeded(self) -> None:
        """The server is well: failures are counted anew."""
        self._failures = 0

    def failed(self, error: Unavailable) -> None:
        """Wait before the next attempt.

        Raises:
            Unavailable: there is none.
        """
        self._failures += 1
        if self._failures > self._retries:
            raise Unavailable(f"{error}; given up after {self._failures} attempts") from error
        if self.seconds_left() <= 0:
            raise Unavailable(f"{error}; given up after {self._cache.file_minutes:g} minutes") from error
        longest = self._cache.longest_pause_seconds
        backoff = min(longest, self._cache.pause_seconds * 2.0 ** min(self._failures - 1, 60))
        # Jitter: what was refused together must not come back together.
        time.sleep(min(max(backoff * random.uniform(0.5, 1.0), min(error.pause, longest)), max(self.seconds_left(), 0)))

    def mismatched(self, error: Mismatch) -> None:
        """Wait before what was wrong is fetched again.

        Raises:
            Mismatch: it was wrong too often.
        """
        self._mismatches += 1
        if self._mismatches >= _DOWNLOADS:
            raise error
        time.sleep(min(self._cache.pause_seconds, self._cache.longest_pause_seconds) * random.uniform(0.5, 1.0))


class _Download:
    """Fetching of one file into its partial file."""

    def __init__(self, cache: ShardCache, address: Address, partial: Partial, sha256: str) -> None:
        self._cache, self._address, self._partial, self._sha256 = cache, address, partial, sha256
        self._attempts = Attempts(cache, cache.retries)
        self._chunk = max(1, int(cache.chunk_megabytes * 1e6))

    def run(self) -> None:
        """Fetch all of it.

        Raises:
            UserError: see `ShardCache.fetch`.
        """
        transport = _transport(self._address, self._cache.limits(self._attempts.seconds_left()))
        partial = self._partial
        while True:
            try:
                while partial.length < partial.size:
                    self._read_some(transport)
                if (found := partial.sha256()) == self._sha256:
                    return
                raise Mismatch(f"its SHA-256 is {found}, and the index says {self._sha256}")
            except Mismatch as error:
                partial.clear()
                self._again(error)
            except Refused as error:
                raise UserError(f"{self._address}: {error}, but the index lists the file.") from error
            except Unavailable as error:
                kept = f"; {partial.length} of {partial.size} bytes are kept for the next run" if partial.length else ""
                raise UserError(f"{self._address} cannot be fetched: {error}{kept}.") from error

    def _read_some(self, transport: Transport) -> None:
        """Read a chunk, or what comes of it.

        Raises:
            TransferError: there is no use in trying again.
        """
        if self._attempts.seconds_left() <= 0:
            raise Unavailable(f"it has not come in {self._cache.file_minutes:g} minutes")
        partial, start = self._partial, self._partial.length
        stop = min(start + self._chunk, partial.size)
        limits = self._cache.limits(self._attempts.seconds_left())
        try:
            transport.read(self._address, start, stop, partial.size, partial.append, limits)
            failure = Unavailable("the body ends early")
        except Unavailable as error:
            failure = error
        if partial.length >= stop:
            self._attempts.succeeded()
        else:
            self._attempts.failed(failure)

    def _again(self, error: Mismatch) -> None:
        try:
            self._attempts.mismatched(error)
        except Mismatch:
            raise UserError(
                f"{self._address} is not what its index lists: {error}; fetched {_DOWNLOADS} times. Was the data set "
                "changed while it was in use? Start again; if it stays so, put the data set there again."
            ) from error


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _transport(address: Address, limits: Limits) -> Transport:
    """Imported here: network libraries take a second, and most runs read local data."""
    from ldis_lightning.datamodules.remote.connect import transport_for

    return transport_for(address, limits)
