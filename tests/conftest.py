"""What several test files share. torch must not be imported before the thread count is set."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Tests run in two processes; with every process on all cores they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

RANK_VARIABLES = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "RANK", "WORLD_SIZE")
MINIATURE: dict[str, Any] = {"train_images": 24, "test_images": 12, "train_clips": 2, "test_clips": 2, "frames": 3}
"""Arguments of `SyntheticWorld` for a world that takes a second to draw."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pages of the documentation take minutes each: they come first, so that the two processes end together."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/test_docs.py"))


@pytest.fixture(autouse=True)
def no_ranks_left() -> Iterator[None]:
    """A Trainer of several ranks leaves its process group and the names of its ranks behind: the next test, and every
    process that it starts, would take part in them."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        if name in RANK_VARIABLES:
            del os.environ[name]
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture(scope="session")
def miniature_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small synthetic world in `data/synthetic`, where the shipped configs look for theirs."""
    from ldis_lightning.datamodules.synthetic import SyntheticWorld

    folder = tmp_path_factory.mktemp("world")
    SyntheticWorld(str(folder / "data/synthetic"), **MINIATURE).prepare()
    return folder


@pytest.fixture(scope="session")
def quickstart_alone(miniature_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the quickstart in one process, which those of several are compared with."""
    from cluster_support import fit

    return fit(miniature_world, tmp_path_factory.mktemp("alone") / "one", ["quickstart"], devices=1)


@pytest.fixture
def in_miniature_world(miniature_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs inside `miniature_world`, with no more arguments than it passes itself."""
    monkeypatch.chdir(miniature_world)
    monkeypatch.setattr("sys.argv", ["ldis"])
    return miniature_world
