"""Checkpoints of one number of ranks resume on any other, also in the middle of an accumulation of gradients."""

from pathlib import Path

import pytest
from cluster_support import STEPS, assert_same, fit

WINDOW = 2
"""Batches of a step of the optimiser."""
FIRST, SECOND = 13, 14
"""Batches before the first checkpoint, in the middle of step 6, and from there to the second, in that of step 13."""


def run(world: Path, out: Path, ranks: int, save_after: int = 0, resume: Path | None = None) -> dict[int, float]:
    """20 steps of the quickstart on so many ranks, its losses by step; `out/saved.ckpt` is made on the way."""
    saving = {"class_path": "cluster_support.SaveAfter", "init_args": {"path": str(out / "saved.ckpt")}}
    saving["init_args"]["batches"] = save_after or 10**6
    configs = ["quickstart", "cluster/ddp"] if ranks > 1 else ["quickstart"]
    options = ["--data.batches_per_epoch", "100"]  # so that no step ends with an epoch
    options += ["--ckpt_path", str(resume)] if resume else []
    settings = {"devices": ranks, "accumulate_grad_batches": WINDOW, "callbacks": [saving], "gradient_clip_val": 1.0}
    return fit(world, out, configs, *options, **settings, enable_checkpointing=True)


@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_one_rank_then_two(miniature_world: Path, tmp_path: Path) -> None:
    whole = run(miniature_world, tmp_path / "whole", 1, FIRST)
    two = run(miniature_world, tmp_path / "two", 2, resume=tmp_path / "whole/saved.ckpt")
    assert_same(two, whole, range(FIRST // WINDOW, STEPS))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_rank_then_four_then_two_and_one(miniature_world: Path, tmp_path: Path) -> None:
    whole = run(miniature_world, tmp_path / "whole", 1, FIRST)
    four = run(miniature_world, tmp_path / "four", 4, SECOND, tmp_path / "whole/saved.ckpt")
    assert_same(four, whole, range(FIRST // WINDOW, STEPS))
    for ranks in (2, 1):
        rest = run(miniature_world, tmp_path / f"then {ranks}", ranks, resume=tmp_path / "four/saved.ckpt")
        assert_same(rest, whole, range((FIRST + SECOND) // WINDOW, STEPS))
