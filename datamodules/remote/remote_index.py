"""The index of a data set at an address: fetched when it is opened, its shards when they are first read."""

import hashlib
import json
import warnings
from contextlib import suppress
from functools import cached_property
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldis_lightning.datamodules.index import (
    COLUMNS,
    HEADER,
    MAX_HEADER_BYTES,
    ShardIndex,
    hash_of_header,
    load_columns,
    read_header,
    sha256_of_file,
)
from ldis_lightning.datamodules.remote.address import Address, AddressPath, is_address
from ldis_lightning.datamodules.remote.cache import ShardCache
from ldis_lightning.datamodules.remote.locks import Claim
from ldis_lightning.datamodules.remote.store import write_atomically
from ldis_lightning.datamodules.remote.transport import Unavailable
from ldis_lightning.errors import UserError

_RETRIES_WITH_A_COPY = 2


def open_index(url_or_folder: str | Path, cache: ShardCache | None = None) -> ShardIndex:
    """Open the index of a data set on this machine or at an address.

    The header is always read from the server; if that cannot be reached, the one that it gave last is used, with a
    warning. Columns and shards are in the cache under their hashes, so that those of two versions are never mixed.

    Args:
        url_or_folder: a folder, or an address of http, https, s3, gs or gcs.
        cache: where remote files are kept; None for `ShardCache()`.

    Raises:
        UserError: the address is not allowed or malformed, its server refuses or cannot be reached, the index is
            damaged or of another version, or a shard is larger than the cache. For a folder see `ShardIndex.open`.
    """
    if not is_address(str(url_or_folder)):
        return ShardIndex.open(url_or_folder)
    address, cache = Address.parse(str(url_or_folder)), cache or ShardCache()
    last = cache.store.urls / hashlib.sha256(address.url.encode()).hexdigest()
    known = last.read_text() if last.is_file() else ""
    try:
        index = _open(address, cache, _fetch_header(address, cache, _RETRIES_WITH_A_COPY if known else None))
    except Unavailable as error:
        header = cache.store.sets / known / HEADER
        if not known or not header.is_file():
            raise UserError(f"{address.file(HEADER)} cannot be fetched: {error}.") from error
        warnings.warn(f"{address.file(HEADER)} cannot be fetched ({error}): using the copy in the cache.", stacklevel=2)
        return _open(address, cache, _Header.parse(header.read_bytes()))
    write_atomically(last, index.hash.encode())
    return index


class RemoteShardIndex(ShardIndex):
    """A data set at an address, seen through its index. `open_index` makes one.

    Attributes:
        address: of the data set.
        cache: where its files are kept.
    """

    def __init__(
        self,
        address: Address,
        cache: ShardCache,
        folder: Path,
        header: dict[str, Any],
        columns: dict[str, np.ndarray],
        claim: Claim,
    ) -> None:
        super().__init__(folder, header, columns)
        self.address, self.cache = address, cache
        self._claim = claim  # the columns are not evicted as long as this index lives

    def __repr__(self) -> str:
        """Name, rows, classes and address, for people."""
        return f"RemoteShardIndex({self.name!r}, {len(self)} rows, {len(self.classes)} classes, {str(self.address)!r})"

    def __reduce__(self) -> tuple[Any, tuple[Address, str, ShardCache]]:
        """Pickle as the address: a worker maps the columns in the cache."""
        return _open_again, (self.address, self.hash, self.cache)

    @cached_property
    def shard_paths(self) -> list[Path]:
        """Addresses of the shards as paths, for messages; nothing lies there."""
        return [AddressPath(str(self.address.file(shard.name))) for shard in self.shards]

    def shard_file(self, number: int) -> Path:
        """The local file of a shard, fetched if it is not in the cache.

        It may be evicted at any later time. Who has it open keeps it; who finds it gone calls this again.

        Raises:
            UserError: it cannot be fetched, see `ShardCache.fetch`.
        """
        shard = self.shards[number]
        return self.cache.fetch(self.address.file(shard.name), shard.size, shard.sha256)

    def verify(self) -> None:
        """Fetch what is not in the cache, and compare every column and shard with its SHA-256. What has gone bad in the
        cache is fetched again.

        Raises:
            UserError: one cannot be fetched, or the server has other bytes.
        """
        _renew_columns(self.address, self.cache, self.folder, self._header)
        for number, shard in enumerate(self.shards):
            for _ in range(3):  # another process may evict it while it is read
                with suppress(FileNotFoundError):
                    path = self.shard_file(number)
                    if sha256_of_file(path) == shard.sha256:
                        break
                    path.unlink(missing_ok=True)
            else:
                raise UserError(
                    f"{self.shard_paths[number]} goes bad in the cache, {self.cache.store.folder}: is its disk failing?"
                )

    @property
    def _header(self) -> dict[str, Any]:
        return read_header(self.folder)


class _Header(NamedTuple):
    """A header as it came: its bytes and the hash of what they say."""

    data: bytes
    hash: str

    @classmethod
    def parse(cls, data: bytes) -> "_Header":
        """Check that it is whole.

        Raises:
            ValueError: it is no JSON object.
        """
        try:
            header = json.loads(data.decode())
            if not isinstance(header, dict):
                raise ValueError("it is no JSON object")
            return cls(data, hash_of_header(header))
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def _fetch_header(address: Address, cache: ShardCache, retries: int | None) -> _Header:
    return cache.read(address.file(HEADER), MAX_HEADER_BYTES, _Header.parse, retries)


def _open(address: Address, cache: ShardCache, came: _Header) -> RemoteShardIndex:
    """The index with this header; its columns are fetched unless they are there."""
    name = came.hash
    claim = cache.store.claim(name)
    folder = cache.store.sets / name
    write_atomically(folder / HEADER, came.data)
    try:
        header = read_header(folder)
        _check_sizes(address, cache, header)
        _fetch_columns(address, cache, folder, header)
        try:
            columns = load_columns(folder, header)
        except UserError:
            _renew_columns(address, cache, folder, header)
            columns = load_columns(folder, header)
    except UserError as error:
        text = str(error).replace(str(folder), str(address))
        raise UserError(text if str(address) in text else f"{address}: {text}") from error
    return RemoteShardIndex(address, cache, folder, header, columns, claim)


def _open_again(address: Address, name: str, cache: ShardCache) -> RemoteShardIndex:
    """In another process: the very index that was opened in the first."""
    claim = cache.store.claim(name)
    folder = cache.store.sets / name
    if not (folder / HEADER).is_file():  # the cache was cleared
        try:
            came = _fetch_header(address, cache, None)
        except Unavailable as error:
            raise UserError(f"{address.file(HEADER)} cannot be fetched: {error}.") from error
        if came.hash != name:
            raise UserError(f"{address} was changed while it was in use: start again.")
        return _open(address, cache, came)
    header = read_header(folder)
    _fetch_columns(address, cache, folder, header)
    return RemoteShardIndex(address, cache, folder, header, load_columns(folder, header, check=False), claim)


def _check_sizes(address: Address, cache: ShardCache, header: dict[str, Any]) -> None:
    largest = max((shard["size"] for shard in header["shards"]), default=0)
    if largest > cache.store.capacity:
        raise UserError(
            f"{address} has a shard of {largest / 1e9:.3g} GB, more than the cache may hold "
            f"({cache.max_gigabytes:g} GB): raise data.cache.max_gigabytes."
        )


def _fetch_columns(address: Address, cache: ShardCache, folder: Path, header: dict[str, Any]) -> None:
    for name in COLUMNS:
        described = header["columns"].get(name, {})
        path = (header["column_folder"], f"{name}.npy")
        size = _npy_size(COLUMNS[name][0], described.get("shape"))
        cache.fetch(address.file(*path), size, described["sha256"], folder.joinpath(*path))


def _renew_columns(address: Address, cache: ShardCache, folder: Path, header: dict[str, Any]) -> None:
    """Fetch columns again that are not what they were when they came."""
    for name in COLUMNS:
        path = folder / header["column_folder"] / f"{name}.npy"
        if path.is_file() and sha256_of_file(path) != header["columns"][name]["sha256"]:
            path.unlink()
    _fetch_columns(address, cache, folder, header)


def _npy_size(dtype: str, shape: Any) -> int:
    """Bytes of the file of a column, as `numpy.save` writes it.

    Raises:
        UserError: its shape is none.
    """
    if not isinstance(shape, list) or not all(type(length) is int and 0 <= length < 2**48 for length in shape):
        raise UserError(f"{HEADER} is damaged: a column has the shape {str(shape)[:100]}.")
    stream = BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.tell() + np.dtype(dtype).itemsize * prod(shape)
