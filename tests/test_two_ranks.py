"""Training on two ranks follows training on one: the same global batches, and so the same losses."""

from pathlib import Path

import pytest
from cluster_support import assert_same, fit


@pytest.mark.timeout(1100)
def test_two_ranks_follow_one(quickstart_alone: dict[int, float], miniature_world: Path, tmp_path: Path) -> None:
    two = fit(miniature_world, tmp_path / "two", ["quickstart", "cluster/ddp"], devices=2)
    assert_same(two, quickstart_alone)


@pytest.mark.timeout(1100)
def test_two_ranks_of_ldisn_follow_one(miniature_world: Path, tmp_path: Path) -> None:
    one = fit(miniature_world, tmp_path / "one", ["quickstart_ldisn"], devices=1)
    two = fit(miniature_world, tmp_path / "two", ["quickstart_ldisn", "cluster/ddp"], devices=2)
    assert_same(two, one)
