"""A data set at an address is read as one in a folder is, whatever happens to either."""

import json
import logging
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import local_server as bad
import numpy as np
import pytest
import torch
from local_server import LocalServer, Rows, quick, served
from remote_sets import opened, write_packed
from tiny_sets import mixed_contents, write_images
from torch.utils.data import DataLoader

from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.fetch import Collate, Fetch
from ldis_lightning.datamodules.geometry import RandomCrop
from ldis_lightning.datamodules.index import HEADER, ShardIndex
from ldis_lightning.datamodules.plan import TrainingPlan
from ldis_lightning.datamodules.remote import ShardCache, open_index
from ldis_lightning.datamodules.remote.address import PROTOCOLS, Address
from ldis_lightning.datamodules.source import EpisodeSource
from ldis_lightning.datamodules.stream import TrainingSteps
from ldis_lightning.datamodules.treatment import Intact
from ldis_lightning.errors import UserError

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packed(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def server(packed: Path, tmp_path: Path) -> Iterator[LocalServer]:
    shutil.copytree(packed, tmp_path / "served")
    with served(tmp_path / "served") as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return quick(str(tmp_path / "cache"))


def check_equal(index: ShardIndex, local: ShardIndex) -> None:
    """Every row of two indexes is equal, pixel for pixel."""
    assert (index.hash, len(index)) == (local.hash, len(local))
    reader, local_reader = FrameReader(index), FrameReader(local)
    for row in range(len(local)):
        assert index.key(row) == local.key(row)
        for array, expected in zip(reader.read(row), local_reader.read(row), strict=True):
            np.testing.assert_array_equal(array, expected)


# ---- Addresses


def test_a_folder_opens_as_before(packed: Path) -> None:
    assert type(open_index(packed / "images")) is ShardIndex
    assert open_index(str(packed / "images")).hash == ShardIndex.open(packed / "images").hash


REFUSED = [
    "pipe:curl http://host/set",
    "pipe:cat /etc/passwd",
    "PIPE:cat://x",
    "file:///data/set",
    "FILE:///data/set",
    "local:///data/set",
    "memory://set",
    "ssh://host/set",
    "sftp://host/set",
    "ftp://host/set",
    "github://owner:repository@main/set",
    "hf://datasets/owner/set",
    "reference://set",
    "data://text/plain,x",
    "dbfs://set",
    "simplecache::https://host/set",
    "filecache::s3://bucket/set",
    "zip://set::https://host/set.zip",
    "https://host/set::file:///etc",
    "https::https://host/set",
    "s3://key:secret@bucket/set",
    "s3://bucket/set?versionId=1",
    "https:///set",
    "https://",
    "https://host:99999/set",
    "https://[::1/set",
    "https://host/../set",
    "https://host/a/./set",
    "https://host/set#part",
    "https://host/a set",
    "https://host/set\r\nHost: other",
    "https://host/set\\other",
    "://host/set",
    "gs+https://host/set",
]


def test_as_many_addresses_are_refused_as_the_page_says() -> None:
    assert len(REFUSED) == len(set(REFUSED)) == 34
    assert PROTOCOLS == ("http", "https", "s3", "gs", "gcs")


@pytest.mark.parametrize("text", REFUSED)
def test_refused_addresses(text: str, cache: ShardCache, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        open_index(text, cache)
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value) and "\r" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_addresses_are_shown_without_credentials() -> None:
    address = Address.parse("HTTPS://user:secret@host:8443/a/set/?token=secret").file("index-1", "a b#.npy")
    assert address.url == "https://user:secret@host:8443/a/set/index-1/a%20b%23.npy?token=secret"
    assert str(address) == "https://host:8443/a/set/index-1/a%20b%23.npy?..."
    assert "secret" not in repr(address)
    assert Address.parse("s3://bucket/set/").file("a b").url == "s3://bucket/set/a b"


def test_a_package_that_is_missing_is_named(cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs:// needs a package that is not installed: pip install gcsfs"):
        open_index("gs://bucket/set", cache)


def test_credentials_are_used_and_never_printed(
    server: LocalServer, cache: ShardCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="ldis_lightning")
    url = server.url.replace("//", "//user:secret@") + "/images?token=secret"
    index = open_index(url, cache)
    printed = [repr(index), str(index.shard_paths)]
    index.shard_file(0)
    for behaviour in (bad.status(404), bad.status(503), bad.status(302, Location="x:/?secret"), bad.garbage):
        server.always["images/shard-00001.tar"] = behaviour
        with pytest.raises(UserError) as raised:
            index.shard_file(1)
        printed.append(str(raised.value))
    server.stop()
    with pytest.warns(UserWarning, match="using the copy in the cache") as warned:
        open_index(url, cache)
    printed += [str(warning.message) for warning in warned] + [caplog.text]
    assert not any("secret" in text for text in printed), printed


# ---- Reading


@pytest.mark.parametrize("name", ["images", "clips"])
def test_every_row_equals_that_of_the_folder(name: str, packed: Path, server: LocalServer, cache: ShardCache) -> None:
    index = opened(server, cache, name)
    assert server.count(f"{name}/shard-00000.tar") == 0  # not before it is read
    check_equal(index, ShardIndex.open(packed / name))
    assert all(server.count(f"{name}/{shard.name}") == 1 for shard in index.shards)
    assert index.clip_names == ShardIndex.open(packed / name).clip_names
    index.verify()
    before = len(server.requests)
    check_equal(opened(server, cache, name), ShardIndex.open(packed / name))
    assert len(server.requests) == before + 1  # the header


def test_training_batches_equal_those_of_the_folder(packed: Path, server: LocalServer, cache: ShardCache) -> None:
    def batches(index: ShardIndex) -> list[Any]:
        plan = TrainingPlan(index, EpisodeSource(""), seed=3, batch_size=4, references=2, window_shards=3)
        fetch = Fetch([FrameReader(index)], [Intact()], 16, RandomCrop())
        stream = Collate(evaluation=False)(fetch(TrainingSteps(plan, start=5)()))
        return [next(stream) for _ in range(15)]

    for batch, expected in zip(
        batches(opened(server, cache)), batches(ShardIndex.open(packed / "images")), strict=True
    ):
        assert batch["meta"] == expected["meta"]
        assert all(torch.equal(batch[name], expected[name]) for name in expected if torch.is_tensor(expected[name]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers(method: str, packed: Path, server: LocalServer, cache: ShardCache) -> None:
    """Workers of either kind fetch through connections of their own, beside a parent that has used its own."""
    index, local = opened(server, cache), ShardIndex.open(packed / "images")
    index.shard_file(0)
    loader = DataLoader(
        cast(Any, Rows(FrameReader(index))),
        batch_size=None,
        num_workers=2 if method == "fork" else 1,
        multiprocessing_context=method,
        collate_fn=tuple,
    )
    for row, (image, labels) in enumerate(loader):
        expected = FrameReader(local).read(row)
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
    index.shard_file(0)
    assert all(server.count(f"images/{shard.name}") == 1 for shard in index.shards)
    assert server.count("images/index.json") == 1  # a worker opens the very index that its parent has


def test_messages_name_the_address(server: LocalServer, cache: ShardCache) -> None:
    index = opened(server, cache)
    path = index.shard_file(0)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=f"in {server.url}/images/shard-00000.tar"):
        FrameReader(index).read(0)
    assert pickle.loads(pickle.dumps(index.shard_paths[0])) == index.shard_paths[0]


def test_shards_go_and_come_back(packed: Path, server: LocalServer, cache: ShardCache, tmp_path: Path) -> None:
    size = opened(server, cache).shards[0].size
    held = sum(path.stat().st_size for path in (tmp_path / "cache" / "sets").rglob("*") if path.is_file())
    small = quick(cache.folder, max_gigabytes=(held + 2.5 * size) / 1e9)
    index = opened(server, small)
    for _ in range(2):
        check_equal(index, ShardIndex.open(packed / "images"))
    assert len(list((tmp_path / "cache" / "files").iterdir())) <= 3
    assert sum(server.count(f"images/{shard.name}") for shard in index.shards) == 2 * len(index.shards)


def test_verify_mends_what_has_gone_bad_in_the_cache(packed: Path, server: LocalServer, cache: ShardCache) -> None:
    index = opened(server, cache)
    for number in range(len(index.shards)):
        index.shard_file(number)
    damage(index.shard_file(2))
    damage(next(cache.store.sets.rglob("row_pixels.npy")))
    index.verify()
    check_equal(opened(server, cache), ShardIndex.open(packed / "images"))


def test_verify_reports_what_is_bad_on_the_server(server: LocalServer, cache: ShardCache) -> None:
    index = opened(server, cache)
    damage(server.folder / "images/shard-00003.tar")
    with pytest.raises(UserError, match=r"shard-00003\.tar is not what its index lists"):
        index.verify()


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# ---- The header


def test_a_damaged_column_in_the_cache_is_fetched_again(packed: Path, server: LocalServer, cache: ShardCache) -> None:
    opened(server, cache)
    damage(next(cache.store.sets.rglob("class_row.npy")))
    check_equal(opened(server, cache), ShardIndex.open(packed / "images"))


def test_the_header_is_always_fresh(server: LocalServer, cache: ShardCache) -> None:
    first = opened(server, cache)
    replace_data_set(server)
    second = opened(server, cache)
    assert len(first) == 40 and len(second) == 24
    second.verify()


@pytest.mark.parametrize("how", ["dead", "503"])
def test_without_a_server_the_last_header_serves(how: str, server: LocalServer, cache: ShardCache) -> None:
    index = opened(server, cache)
    index.shard_file(0)
    server.always["images/index.json"] = bad.status(503)
    if how == "dead":
        server.stop()
    with pytest.warns(UserWarning, match="index.json cannot be fetched.*: using the copy in the cache"):
        again = opened(server, cache)
    assert again.hash == index.hash
    FrameReader(again).read(0)


def test_without_a_server_or_a_copy(server: LocalServer, cache: ShardCache) -> None:
    server.stop()
    with pytest.raises(UserError, match=r"images/index\.json cannot be fetched: cannot connect"):
        opened(server, cache)


def test_a_server_that_says_no_is_heard_although_there_is_a_copy(server: LocalServer, cache: ShardCache) -> None:
    opened(server, cache)
    (server.folder / "images/index.json").unlink()
    with pytest.raises(UserError, match=r"images/index\.json: the server answers 404 Not Found. Is the address right"):
        opened(server, cache)


HEADER_RECOVERED: dict[str, list[bad.Behaviour]] = {
    "503": [bad.status(503)] * 3,
    "cut": [bad.short(100)],
    "cut, with a length that fits": [bad.claims_short(100)] * 2,
    "reset": [bad.reset(100)],
    "silence": [bad.silent],
    "no HTTP": [bad.garbage],
}


@pytest.mark.parametrize("case", HEADER_RECOVERED)
def test_header_recovered(case: str, server: LocalServer, cache: ShardCache) -> None:
    server.scripts["images/index.json"].extend(HEADER_RECOVERED[case])
    assert len(opened(server, cache)) == 40
    assert not server.scripts["images/index.json"]


HEADER_REPORTED: dict[str, tuple[bad.Behaviour, str]] = {
    "cut": (bad.claims_short(100), "images/index.json is damaged"),
    "no JSON": (bad.changed({"Content-Length": 4}, lambda _: b"<htm"), "images/index.json is damaged"),
    "no object": (bad.changed({"Content-Length": 2}, lambda _: b"[]"), "it is no JSON object"),
    "deep": (bad.changed({"Content-Length": 10**6}, lambda _: b"[" * 10**6), "nested too deeply"),
    "another's": (bad.changed({"Content-Length": 2}, lambda _: b"{}"), "is not an index of ldis"),
    "endless": (bad.endless, "the file has more than 67108864 bytes"),
    "403": (bad.status(403), "answers 403 Forbidden"),
    "503": (bad.status(503), "answers 503 Service Unavailable; given up after 5 attempts"),
}


@pytest.mark.parametrize("case", HEADER_REPORTED)
def test_header_reported(case: str, server: LocalServer, cache: ShardCache) -> None:
    server.always["images/index.json"], message = HEADER_REPORTED[case]
    with pytest.raises(UserError, match=message) as raised:
        opened(server, cache)
    assert f"{server.url}/images" in str(raised.value) and "\n" not in str(raised.value)


def edited(*path: Any, value: Any) -> Any:
    def edit(header: Any) -> None:
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = value

    return edit


HOSTILE = {
    "hash of a shard leads outside": edited("shards", 0, "sha256", value="../../../outside"),
    "hash of a shard is a number": edited("shards", 0, "sha256", value=3),
    "hash of a column leads outside": edited("columns", "clip", "sha256", value="/" + "a" * 63),
    "hash of a column is another's": edited("columns", "clip", "sha256", value="0" * 64),
    "hash of a column is a list": edited("columns", "clip", "sha256", value=["a"]),
    "name of a shard leads outside": edited("shards", 0, "name", value="../outside.tar"),
    "name of a shard is the folder above": edited("shards", 0, "name", value=".."),
    "name of a shard is an address": edited("shards", 0, "name", value="file:///etc/passwd"),
    "folder of columns leads outside": edited("column_folder", value="../../outside"),
    "folder of columns is the one above": edited("column_folder", value=".."),
    "size of a shard is negative": edited("shards", 0, "size", value=-1),
    "size of a shard is a fraction": edited("shards", 0, "size", value=1.5),
    "size of a shard is huge": edited("shards", 0, "size", value=10**18),
    "shape of a column is huge": edited("columns", "key_text", "shape", value=[2**40]),
    "shape of a column is beyond all": edited("columns", "key_text", "shape", value=[2**80]),
    "shape of a column is negative": edited("columns", "clip", "shape", value=[-1]),
    "shape of a column is a word": edited("columns", "clip", "shape", value="all"),
    "column is missing": lambda header: header["columns"].pop("clip"),
    "column is a list": edited("columns", "clip", value=[]),
    "no columns": edited("columns", value=None),
    "no shards": edited("shards", value="all"),
    "newer version": edited("version", value=99),
    "older version": edited("version", value=1),
    "version is a word": edited("version", value="3"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(case: str, server: LocalServer, cache: ShardCache, tmp_path: Path) -> None:
    path = server.folder / "images" / HEADER
    header = json.loads(path.read_text())
    HOSTILE[case](header)
    path.write_text(json.dumps(header))
    before = {entry.name for entry in tmp_path.parent.rglob("*")}
    with pytest.raises(UserError, match=f"{server.url}/images") as raised:
        opened(server, cache).verify()
    assert "\n" not in str(raised.value)
    written = {entry for entry in tmp_path.parent.rglob("*") if entry.name not in before}
    assert all(entry.is_relative_to(tmp_path / "cache") for entry in written)


# ---- A data set that changes on the server under a running job


def replace_data_set(server: LocalServer) -> None:
    """Another data set takes the place of `images`: the same names, other bytes."""
    folder = server.folder / "images"
    shutil.rmtree(folder)
    write_images(folder, mixed_contents(24, seed=9))


def test_a_running_job_never_mixes_versions(packed: Path, server: LocalServer, cache: ShardCache) -> None:
    index, local = opened(server, cache), ShardIndex.open(packed / "images")
    index.shard_file(0)
    replace_data_set(server)
    worker: ShardIndex = pickle.loads(pickle.dumps(index))  # needs no server
    assert worker.hash == local.hash
    reader, expected = FrameReader(worker), FrameReader(local)
    for row in np.flatnonzero(local.shard == 0).tolist():
        np.testing.assert_array_equal(reader.read(row)[0], expected.read(row)[0])
    with pytest.raises(UserError, match=r"shard-00001\.tar is not what its index lists.*Was the data set changed"):
        worker.shard_file(1)


def test_a_worker_never_opens_another_version(server: LocalServer, cache: ShardCache) -> None:
    data = pickle.dumps(opened(server, cache))
    shutil.rmtree(cache.store.folder)
    replace_data_set(server)
    with pytest.raises(UserError, match=r"images was changed while it was in use"):
        pickle.loads(data)


def test_columns_of_another_version_are_never_used(server: LocalServer, cache: ShardCache) -> None:
    """The header comes, and then the data set changes before the columns are fetched."""
    header = (server.folder / "images" / HEADER).read_bytes()
    columns = json.loads(header)["column_folder"]
    replace_data_set(server)
    new = json.loads((server.folder / "images" / HEADER).read_text())["column_folder"]
    (server.folder / "images" / new).rename(server.folder / "images" / columns)
    (server.folder / "images" / HEADER).write_bytes(header)
    with pytest.raises(UserError, match=r"images/.*\.npy is not what its index lists"):
        opened(server, cache)


# ---- The cache's folder


def test_the_folder_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LDIS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ShardCache().store.folder == tmp_path / ".cache/ldis/data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ShardCache().store.folder == tmp_path / "xdg/ldis/data"
    monkeypatch.setenv("LDIS_CACHE", str(tmp_path / "own"))
    assert ShardCache().store.folder == tmp_path / "own"
    assert ShardCache(str(tmp_path / "named")).store.folder == tmp_path / "named"
    assert pickle.loads(pickle.dumps(ShardCache("~/x"))).store.folder == tmp_path / "x"


def test_a_folder_that_cannot_be_made(tmp_path: Path, server: LocalServer) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/cache cannot be made: Not a directory. Choose .* data\.cache\.folder"):
        opened(server, ShardCache(str(tmp_path / "file/cache")))


def test_indexes_in_use_are_not_evicted(server: LocalServer, cache: ShardCache, tmp_path: Path) -> None:
    first = opened(server, cache)
    held = sum(path.stat().st_size for path in (tmp_path / "cache" / "sets").rglob("*") if path.is_file())
    small = quick(cache.folder, max_gigabytes=1.1 * held / 1e9)
    with pytest.raises(UserError, match=r"no room for a file of .* beside the indexes that are in use"):
        opened(server, small, "clips")
    assert len(pickle.loads(pickle.dumps(first))) == 40
    del first
    assert len(opened(server, small, "clips")) == 10
    assert len(list((tmp_path / "cache" / "sets").iterdir())) == 1
