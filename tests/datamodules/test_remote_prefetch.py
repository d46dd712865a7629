"""Shards of a remote data set are fetched before the batches that need them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from time import sleep

import local_server as bad
import pytest
from local_server import LocalServer, quick, served
from remote_sets import opened, write_packed

from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.plan import TrainingPlan
from ldis_lightning.datamodules.remote import Prefetch, RemoteShardIndex, ShardCache, needs_of_plan
from ldis_lightning.datamodules.remote.prefetch import Need
from ldis_lightning.datamodules.source import EpisodeSource

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


def wait_for(index: RemoteShardIndex, cache: ShardCache, expected: set[int]) -> None:
    for _ in range(500):
        if {i for i, shard in enumerate(index.shards) if cache.store.place(shard.sha256).exists()} == expected:
            return
        sleep(0.02)
    raise AssertionError("not fetched ahead")


def test_prefetch_goes_so_far_and_no_further(server: LocalServer, cache: ShardCache) -> None:
    index = opened(server, cache)
    needs = [Need(100 + batch, index, batch // 2) for batch in range(16)]  # two batches a shard
    prefetch = Prefetch(needs, ahead=3)
    prefetch.start()
    wait_for(index, cache, {0, 1, 2})
    prefetch.reached(100)
    wait_for(index, cache, {0, 1, 2, 3})
    prefetch.reached(101)
    prefetch.reached(104)
    wait_for(index, cache, {0, 1, 2, 3, 4, 5})
    prefetch.close(5)
    prefetch.reached(115)
    assert [server.count(f"images/{shard.name}") for shard in index.shards] == [1] * 6 + [0] * 4


def test_prefetch_does_not_plan_further_than_its_horizon(server: LocalServer, cache: ShardCache) -> None:
    index, drawn = opened(server, cache), []

    def needs() -> Iterator[Need]:
        for batch in range(10**9):
            drawn.append(batch)
            yield Need(batch, index, 0)

    prefetch = Prefetch(needs(), ahead=3, horizon=20)
    prefetch.start()
    wait_for(index, cache, {0})
    prefetch.reached(30)
    prefetch.close(5)
    assert max(drawn) <= 52


def test_prefetch_logs_errors_and_goes_on(
    server: LocalServer, cache: ShardCache, caplog: pytest.LogCaptureFixture
) -> None:
    index = opened(server, cache)
    server.always["images/shard-00001.tar"] = bad.status(404)
    prefetch = Prefetch([Need(batch, index, batch) for batch in range(3)])
    prefetch.start()
    wait_for(index, cache, {0, 2})
    prefetch.close(5)
    assert "not fetched ahead" in caplog.text and "shard-00001.tar" in caplog.text


def test_needs_are_what_the_batches_read(packed: Path, server: LocalServer, cache: ShardCache) -> None:
    index = opened(server, cache)
    plan = TrainingPlan(index, EpisodeSource(""), seed=1, batch_size=4, references=2, window_shards=2)
    read = []
    for batch in range(7, 27):
        rows = [row for episode in plan.batch(batch, 1, 2) for row in (episode.query, *episode.references)]
        read += [(batch, shard) for shard in dict.fromkeys(index.shard[rows].tolist())]
    needs = needs_of_plan(plan, 7, rank=1, world=2)
    assert [(need.batch, need.shard) for need, _ in zip(needs, read, strict=False)] == read
    local = TrainingPlan(ShardIndex.open(packed / "images"), EpisodeSource(""), seed=1, batch_size=4)
    assert list(needs_of_plan(local, 0)) == []
