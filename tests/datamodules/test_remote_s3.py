"""Data sets in buckets, with the real s3fs against a small server that speaks as much S3 as reading takes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.client import responses
from pathlib import Path

import fsspec.config
import local_server as bad
import numpy as np
import pytest
from local_server import Handler, LocalServer, quick, served
from tiny_sets import mixed_contents, write_images

from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.remote import RemoteShardIndex, ShardCache, connect, open_index
from ldis_lightning.errors import UserError

pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
pytestmark = pytest.mark.timeout(120)
URL = "s3://bucket/sets/images"
SHARD = "bucket/sets/images/shard-00002.tar"


def error(status: int, code: str) -> bad.Behaviour:
    """An error as S3 words it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{responses[status]}</Message></Error>".encode()
    headers = {"Content-Type": "application/xml", "Content-Length": len(body)}
    return lambda handler, *_: handler.send(status, headers, body)


class Bucket(Handler):
    """GetObject and HeadObject."""

    def missing(self, *_: object) -> None:
        error(404, "NoSuchKey")(self, b"", 0, None)

    def do_HEAD(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        known = path.is_file()
        self.send(200 if known else 404, {"Content-Length": path.stat().st_size if known else 0, "ETag": '"x"'})


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    write_images(folder / "bucket/sets/images", mixed_contents(20))
    return folder


@pytest.fixture
def server(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))  # no configuration of whoever runs the tests
    monkeypatch.setattr(connect, "_filesystems", {})
    shutil.copytree(packed, tmp_path / "served")
    with served(tmp_path / "served", handler=Bucket) as server:
        monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True, "endpoint_url": server.url})
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return quick(str(tmp_path / "cache"), stall_seconds=1.0)


def opened(cache: ShardCache) -> RemoteShardIndex:
    index = open_index(URL, cache)
    assert isinstance(index, RemoteShardIndex)
    return index


def check_equal(index: ShardIndex, local: ShardIndex) -> None:
    assert index.hash == local.hash
    for row in range(len(local)):
        for array, expected in zip(FrameReader(index).read(row), FrameReader(local).read(row), strict=True):
            np.testing.assert_array_equal(array, expected)


def test_every_row_equals_that_of_the_folder(packed: Path, server: LocalServer, cache: ShardCache) -> None:
    index = opened(cache)
    check_equal(index, ShardIndex.open(packed / "bucket/sets/images"))
    assert server.count(SHARD) == 1
    assert str(index.shard_paths[2]) == f"{URL}/shard-00002.tar"


RECOVERED: dict[str, list[bad.Behaviour]] = {
    "SlowDown": [error(503, "SlowDown")] * 2,
    "InternalError": [error(500, "InternalError")],
    "body cut": [bad.short(1000)],
    "body shorter than asked": [bad.claims_short(1000)],
    "reset": [bad.reset(1000)],
    "silence": [bad.silent],
    "stall": [bad.stall(1000)],
    "wrong byte": [bad.changed(body=bad.flipped)],
    "no HTTP": [bad.garbage],
}
REPORTED: dict[str, tuple[bad.Behaviour, str]] = {
    "NoSuchKey": (error(404, "NoSuchKey"), "there is no such file .*but the index lists"),
    "AccessDenied": (error(403, "AccessDenied"), "access is denied"),
    "ExpiredToken": (error(400, "ExpiredToken"), "access is denied"),
    "SlowDown": (error(503, "SlowDown"), "given up after 5 attempts"),
    "wrong byte": (bad.changed(body=bad.flipped), "its SHA-256 is [0-9a-f]{64}, and the index says"),
    "body cut": (bad.short(0), "given up after 5 attempts"),
    "more than asked": (bad.no_ranges, "asked for 100000 bytes and sends"),
}


def test_there_are_as_many_cases_as_the_page_says() -> None:
    assert (len(RECOVERED), len(REPORTED)) == (9, 7)


@pytest.mark.parametrize("case", RECOVERED)
def test_recovered(case: str, packed: Path, server: LocalServer, cache: ShardCache) -> None:
    server.scripts[SHARD].extend(RECOVERED[case])
    assert opened(cache).shard_file(2).read_bytes() == (packed / SHARD).read_bytes()
    assert not server.scripts[SHARD]


@pytest.mark.parametrize("case", REPORTED)
def test_reported(case: str, server: LocalServer, cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    index = opened(cache)
    server.always[SHARD], message = REPORTED[case]
    if case == "more than asked":
        (server.folder / SHARD).write_bytes(bytes(300_000))
        monkeypatch.setattr(index, "shards", [shard._replace(size=200_000) for shard in index.shards])
    with pytest.raises(UserError, match=f"{URL}/shard-00002.tar.*{message}") as raised:
        index.shard_file(2)
    assert "\n" not in str(raised.value)


def test_a_bucket_without_the_set(server: LocalServer, cache: ShardCache) -> None:
    shutil.rmtree(server.folder / "bucket/sets")
    with pytest.raises(UserError, match=rf"{URL}/index\.json: there is no such file"):
        opened(cache)


def test_without_credentials(server: LocalServer, cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": server.url})
    with pytest.raises(UserError, match=rf"{URL}/index\.json: .*credentials.*docs/data\.md"):
        opened(cache)


@pytest.mark.parametrize("setting", [{"no_such_setting": 1}, "no_such_setting"])
def test_a_wrong_setting(
    setting: object, server: LocalServer, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": setting})
    with pytest.raises(UserError, match=r"s3://.*(no_such_setting|FSSPEC_S3)"):
        opened(cache)


ENVIRONMENTS = {
    "fsspec's variable": {"FSSPEC_S3": '{"endpoint_url": "URL", "anon": true}'},
    "AWS's variables": {"AWS_ENDPOINT_URL": "URL", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_settings_come_from_the_environment(case: str, server: LocalServer, cache: ShardCache) -> None:
    program = (
        "import sys; from ldis_lightning.datamodules.remote import open_index, ShardCache;"
        f"print(len(open_index({URL!r}, ShardCache(sys.argv[1]))))"
    )
    given = {name: value.replace("URL", server.url) for name, value in ENVIRONMENTS[case].items()}
    command = [sys.executable, "-c", program, str(cache.folder)]
    done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, timeout=60)
    assert done.stdout == "20\n", done.stderr
