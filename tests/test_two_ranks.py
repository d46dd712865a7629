"""Training on two ranks follows training on one: the same global batches, and so the same losses."""

from pathlib import Path

import pytest
from cluster_support import assert_same, fit


@pytest.mark.timeout(1100)
@pytest.mark.parametrize("config", ["quickstart", "quickstart_ldisn"])
def test_two_ranks_follow_one(config: str, miniature_world: Path, tmp_path: Path) -> None:
    one = fit(miniature_world, tmp_path / "one", [config], devices=1)
    assert_same(fit(miniature_world, tmp_path / "two", [config, "cluster/ddp"], devices=2), one)
