"""Files of object stores (`s3`, `gs`), through fsspec's file system for them."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from fsspec.asyn import sync

from ldis_lightning.datamodules.remote.address import Address
from ldis_lightning.datamodules.remote.transport import Limits, Mismatch, Refused, Sink, Transport, Unavailable
from ldis_lightning.errors import first_line

_WRONG = (TypeError, AttributeError, ValueError)  # what wrong settings end in
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoAuthTokenError")


class ObjectStore(Transport):
    """Any asynchronous file system of fsspec whose servers serve parts, as those of object stores do.

    A chunk is held in memory.
    """

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    def read(self, address: Address, start: int, stop: int, size: int, sink: Sink, limits: Limits) -> None:
        """See `Transport`."""
        data = self._call(self._filesystem._cat_file(address.url, start=start, end=stop), limits)
        if len(data) > stop - start:
            raise Mismatch(f"the server was asked for {stop - start} bytes and sends {len(data)}")
        sink(data)

    def read_whole(self, address: Address, most: int, limits: Limits) -> bytes:
        """See `Transport`."""
        size = self._call(self._filesystem._info(address.url), limits).get("size")
        if not isinstance(size, int) or size > most:
            raise Refused(f"the file has more than {most} bytes")
        return self._call(self._filesystem._cat_file(address.url, start=0, end=size), limits) if size else b""

    def _call(self, request: Awaitable[Any], limits: Limits) -> Any:
        return sync(self._filesystem.loop, _answer_of, request, limits.request_seconds)


async def _answer_of(request: Awaitable[Any], seconds: float) -> Any:
    """What a request gives. Libraries of object stores raise errors of many kinds, most of which may pass."""
    try:
        async with asyncio.timeout(seconds):
            return await request
    except TimeoutError:
        raise Unavailable("no answer in time") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError) as error:
        raise Refused(f"{_KINDS.get(type(error), type(error).__name__)} ({first_line(error)})") from error
    except _WRONG as error:
        raise Refused(f"{type(error).__name__}: {first_line(error)}") from error
    except Exception as error:
        if type(error).__name__ in _NO_CREDENTIALS:
            raise Refused(f"{first_line(error)}; see the section on remote data in docs/data.md") from error
        raise Unavailable(f"{type(error).__name__}: {first_line(error)}") from error


_KINDS: dict[type, str] = {FileNotFoundError: "there is no such file", PermissionError: "access is denied"}
