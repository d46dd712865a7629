"""Files by HTTP, in parts where the server serves parts, with memory that does not depend on what it sends."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import aiohttp
from fsspec.asyn import sync

from ldis_lightning.datamodules.remote.address import Address
from ldis_lightning.datamodules.remote.transport import Limits, Mismatch, Refused, Sink, Transport, Unavailable

_BUSY = (408, 425, 429)  # and all from 500 on
_IDENTITY = {"Accept-Encoding": "identity"}  # spans and hashes are those of the bytes as stored
_MAX_REDIRECTS = 5


class Web(Transport):
    """`http` and `https`, over the session of fsspec's file system, so that its configuration holds."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    def read(self, address: Address, start: int, stop: int, size: int, sink: Sink, limits: Limits) -> None:
        """See `Transport`."""
        sync(self._filesystem.loop, self._read, address, start, stop, size, sink, limits)

    def read_whole(self, address: Address, most: int, limits: Limits) -> bytes:
        """See `Transport`."""
        data: Any = sync(self._filesystem.loop, self._read_whole, address, most, limits)
        return bytes(data)

    async def _read(self, address: Address, start: int, stop: int, size: int, sink: Sink, limits: Limits) -> None:
        headers = {**_IDENTITY, "Range": f"bytes={start}-{stop - 1}"}
        async with self._request(address, headers, limits) as (response, bound):
            if response.status == 206:
                _check_part(response, start, size)
                skip, left = 0, stop - start
            else:  # the whole file, from its first byte
                if response.content_length not in (None, size):
                    raise Mismatch(f"the server has {response.content_length} bytes where the index says {size}")
                skip, left = start, size - start
                bound.reschedule(asyncio.get_running_loop().time() + limits.total_seconds)
            async for block in response.content.iter_any():
                skipped = min(skip, len(block))
                part = block[skipped : skipped + left]
                skip, left = skip - skipped, left - len(part)
                if part:
                    sink(part)
                if not left:
                    break

    async def _read_whole(self, address: Address, most: int, limits: Limits) -> bytearray:
        data = bytearray()
        async with self._request(address, _IDENTITY, limits) as (response, _):
            async for block in response.content.iter_any():
                data += block
                if len(data) > most:
                    raise Refused(f"the file has more than {most} bytes")
        return data

    @asynccontextmanager
    async def _request(
        self, address: Address, headers: dict[str, str], limits: Limits
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, asyncio.Timeout]]:
        """An answer with a body that may be read, and the timer that bounds all of it."""
        filesystem, stall = self._filesystem, limits.stall_seconds
        silence = aiohttp.ClientTimeout(total=None, connect=stall, sock_connect=stall, sock_read=stall)
        options = filesystem.kwargs | {"headers": {**filesystem.kwargs.get("headers", {}), **headers}}
        options |= {"timeout": silence, "max_redirects": _MAX_REDIRECTS}
        try:
            async with asyncio.timeout(limits.request_seconds) as bound:
                session = await filesystem.set_session()
                async with session.get(filesystem.encode_url(address.url), **options) as response:
                    _check_answer(response, address)
                    yield response, bound
        except TimeoutError:
            raise Unavailable("no answer, or none in time") from None
        except (aiohttp.ClientSSLError, aiohttp.InvalidURL, aiohttp.TooManyRedirects) as error:
            raise Refused(_reason(error)) from None
        except aiohttp.ClientError as error:
            raise Unavailable(_reason(error)) from None


def _check_answer(response: aiohttp.ClientResponse, address: Address) -> None:
    status = response.status
    if address.protocol == "https" and response.url.scheme != "https":
        raise Refused("the server sends us on to an address without encryption")
    if status == 416:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        raise Mismatch(f"the server's file is shorter than the index says{f' ({total} bytes)' if total else ''}")
    if status >= 500 or status in _BUSY:
        raise Unavailable(_answer(response), _retry_after(response))
    if status not in (200, 206):
        raise Refused(_answer(response))
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused(f"the server compresses what it sends ({response.headers['Content-Encoding'][:20]!r})")


def _check_part(response: aiohttp.ClientResponse, start: int, size: int) -> None:
    text = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text.strip())
    if found is None or int(found[1]) != start:
        raise Mismatch(f"the server was asked for bytes from {start} on and sends {text[:60]!r}")
    if found[3] not in ("*", str(size)):
        raise Mismatch(f"the server has {found[3]} bytes where the index says {size}")


def _answer(response: aiohttp.ClientResponse) -> str:
    reason = "".join(character for character in response.reason or "" if character.isprintable())
    return f"the server answers {response.status} {reason[:60]}".rstrip()


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Seconds that the server asks to wait, 0 if it does not say so."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,6}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _reason(error: aiohttp.ClientError | aiohttp.InvalidURL) -> str:
    """What to say of an error. Not its own text where that may hold the address with its token."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect to {error.host}:{error.port} ({error.os_error.strerror or type(error).__name__})"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the body ends early"
    if isinstance(error, aiohttp.ClientConnectionError):
        return "the connection was closed"
    return f"{type(error).__name__}"
