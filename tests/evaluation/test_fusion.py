import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldis_lightning.evaluation.fusion import concept_probabilities, fuse_concepts


def eq_7(logits: list[float]) -> list[float]:
    """p of the background and of each concept of one pixel; logit = log(P[1] / P[0])."""
    ratios = [1.0, *(math.exp(logit) for logit in logits)]  # p~
    return [ratio / sum(ratios) for ratio in ratios]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.sampled_from([0.5, 8.0, 60.0])
)
def test_agrees_with_eq_7_written_out(seed: int, frames: int, concepts: int, side: int, spread: float) -> None:
    logits = torch.randn(frames, concepts, side, side, generator=torch.Generator().manual_seed(seed)) * spread
    probabilities, labels = concept_probabilities(logits), fuse_concepts(logits)
    assert probabilities.shape == (frames, concepts + 1, side, side)
    assert labels.dtype == torch.uint8
    for frame in range(frames):
        for y in range(side):
            for x in range(side):
                expected = eq_7(logits[frame, :, y, x].tolist())
                assert probabilities[frame, :, y, x].tolist() == pytest.approx(expected, abs=1e-6)
                assert labels[frame, y, x] == expected.index(max(expected))


def test_confident_logits_do_not_overflow() -> None:
    logits = torch.tensor([1e4, 1e4 - 1, -1e4]).view(1, 3, 1, 1)
    probabilities = concept_probabilities(logits)[0, :, 0, 0].tolist()
    assert probabilities == pytest.approx([0, 1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0])
    assert fuse_concepts(logits).item() == 1
    assert fuse_concepts(-logits).item() == 3
    assert concept_probabilities(-logits[:, :2])[0, :, 0, 0].tolist() == [1, 0, 0]
    assert fuse_concepts(-logits[:, :2]).item() == 0


def test_ties_go_to_the_background_then_to_the_first_concept() -> None:
    logits = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [2.0, 2.0], [-3.0, -3.0]]).T.reshape(1, 2, 2, 2)
    assert fuse_concepts(logits).flatten().tolist() == [0, 0, 1, 0]


def test_one_concept_is_the_plain_threshold() -> None:
    logits = torch.randn(2, 1, 5, 5, dtype=torch.bfloat16)
    assert torch.equal(fuse_concepts(logits), (logits[:, 0] > 0).to(torch.uint8))


@pytest.mark.parametrize("concepts", [0, 255])
def test_a_label_map_holds_254_concepts(concepts: int) -> None:
    assert fuse_concepts(torch.arange(254.0).view(1, 254, 1, 1)).item() == 254
    with pytest.raises(ValueError, match=f"1 to 254 concepts, got {concepts}"):
        fuse_concepts(torch.zeros(1, concepts, 2, 2))
