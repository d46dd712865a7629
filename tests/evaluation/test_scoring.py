from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldis_lightning.episode import EpisodeBatch
from ldis_lightning.evaluation.metrics import EpisodeIoU
from ldis_lightning.evaluation.scoring import restore_logits, score_batch


def make_batch(masks: Tensor, classes: list[int], valid: list[bool] | None = None, **more: Any) -> EpisodeBatch:
    """What scoring reads of a batch: masks (B, H, W), classes, and what else is given."""
    fields = {
        "query_mask": masks.to(torch.uint8),
        "class_id": torch.tensor(classes),
        "valid": torch.tensor(valid or [True] * len(classes)),
        **more,
    }
    return fields  # type: ignore[return-value]


def as_logits(mask: Tensor) -> Tensor:
    return mask.float() * 2 - 1


def test_restore_undoes_padding_exactly() -> None:
    picture = torch.randn(5, 8)
    padded = F.pad(picture, (0, 0, 1, 2), value=9.0)  # one row above, two below
    assert torch.equal(restore_logits(padded, (1, 0, 5, 8), (5, 8)), picture)


def test_restore_cuts_before_it_resizes() -> None:
    padded = torch.full((8, 8), 100.0)  # padding that would leak over the border if it were resized along
    padded[2:6] = -1.0
    restored = restore_logits(padded, (2, 0, 4, 8), (12, 24))
    assert restored.shape == (12, 24)
    assert torch.equal(restored, torch.full((12, 24), -1.0))


def test_restore_is_bilinear_with_pixel_centres() -> None:
    # Doubling [-1, 3] with align_corners=False samples at 0 (clamped), 0.25, 0.75 and 1 (clamped) between the centres.
    restored = restore_logits(torch.tensor([[-1.0, 3.0]]), (0, 0, 1, 2), (1, 4))
    assert restored.tolist() == [[-1.0, 0.0, 2.0, 3.0]]


def test_restore_interpolates_logits_and_not_masks() -> None:
    # A confident pixel beside a doubtful one: the boundary moves with confidence, which a resized mask cannot show.
    restored = restore_logits(torch.tensor([[-9.0, 1.0]]), (0, 0, 1, 2), (1, 4))
    assert (restored > 0).tolist() == [[False, False, False, True]]


def test_restore_in_half_precision_gives_float32() -> None:
    assert restore_logits(torch.zeros(4, 4, dtype=torch.bfloat16), (0, 0, 4, 4), (6, 6)).dtype == torch.float32


def test_model_size_without_originals() -> None:
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [255, 0]], [[1, 1], [1, 1]]])
    logits = torch.tensor([[[1.0, 1], [-1, -1]], [[1, 1], [1, 0]], [[-1, -1], [-1, -1]]])  # 0 is background
    metric = EpisodeIoU()
    score_batch(metric, logits, make_batch(masks, [1, 2, 2], [True, True, False]))
    assert metric.per_class() == {1: 1 / 2, 2: 1.0}
    assert metric.result().episodes == 2


def test_originals_of_the_models_size_give_the_same_result() -> None:
    torch.manual_seed(0)
    masks, logits = torch.randint(0, 2, (4, 6, 6)), torch.randn(4, 6, 6)
    plain, with_originals = EpisodeIoU(), EpisodeIoU()
    batch = make_batch(masks, [1, 2, 1, 3])
    score_batch(plain, logits, batch)
    meta = [{"content": (0, 0, 6, 6), "original_size": (6, 6)}] * 4
    originals = list(masks.to(torch.uint8))
    score_batch(with_originals, logits, make_batch(masks, [1, 2, 1, 3], query_mask_original=originals, meta=meta))
    assert with_originals.result() == plain.result()


def test_other_sizes_are_scored_at_the_original_size() -> None:
    # Episode 0 was 2 x 4 and lies in rows 1..2 of the 4 x 4 square; episode 1 was 8 x 8; episode 2 is padding.
    wide = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.uint8)
    logits = torch.full((3, 4, 4), 5.0)  # wrong on purpose wherever nothing is scored
    logits[0, 1:3] = as_logits(wide)
    logits[1] = -1.0
    logits[1, :2, :2] = 1.0
    large = torch.zeros(8, 8, dtype=torch.uint8)
    large[:4, :4] = 1
    large[7] = 255
    batch = make_batch(
        torch.full((3, 4, 4), 255),  # not what is scored
        [1, 2, 3],
        [True, True, False],
        query_mask_original=[wide, large, torch.ones(3, 3, dtype=torch.uint8)],
        meta=[
            {"content": (1, 0, 2, 4), "original_size": (2, 4)},
            {"content": (0, 0, 4, 4), "original_size": (8, 8)},
            {"content": (0, 0, 4, 4), "original_size": (3, 3)},
        ],
    )
    metric = EpisodeIoU()
    score_batch(metric, logits, batch)
    result = metric.result()
    # Bilinear logits of a corner square cut its inner corner pixel: (0.75 * 2 - 1)-weighted it stays below zero.
    inner = F.interpolate(logits[1][None, None], (8, 8), mode="bilinear")[0, 0] > 0
    assert result.per_class == {1: 1.0, 2: int(inner.sum()) / 16}
    assert int(metric.union[2].sum()) == 16 + (64 - 8) - int(inner.sum())  # row 7 is ignored
    assert result.episodes == 2


def test_a_logit_of_zero_is_background_at_any_size() -> None:
    originals = [torch.ones(3, 3, dtype=torch.uint8)]
    meta = [{"content": (0, 0, 6, 6), "original_size": (3, 3)}]
    metric = EpisodeIoU()
    score_batch(metric, torch.zeros(1, 6, 6), make_batch(torch.ones(1, 6, 6), [1]))
    score_batch(
        metric, torch.zeros(1, 6, 6), make_batch(torch.ones(1, 6, 6), [2], query_mask_original=originals, meta=meta)
    )
    assert metric.per_class() == {1: 0.0, 2: 0.0}


def test_one_odd_size_does_not_change_its_neighbours() -> None:
    torch.manual_seed(1)
    mask, logits = torch.randint(0, 2, (1, 6, 6)), torch.randn(1, 6, 6)
    alone, together = EpisodeIoU(), EpisodeIoU()
    score_batch(alone, logits, make_batch(mask, [1]))
    batch = make_batch(
        mask.expand(2, -1, -1),
        [1, 2],
        query_mask_original=[mask[0].to(torch.uint8), torch.ones(3, 9, dtype=torch.uint8)],
        meta=[
            {"content": (0, 0, 6, 6), "original_size": (6, 6)},
            {"content": (2, 0, 2, 6), "original_size": (3, 9)},
        ],
    )
    score_batch(together, logits.expand(2, -1, -1), batch)
    assert together.per_class()[1] == pytest.approx(alone.per_class()[1], abs=0)
