from typing import Any

import torch
import torch.nn.functional as F
from tiny import board
from torch import Tensor

from ldis_lightning.episode import ClipBatch, EpisodeBatch
from ldis_lightning.evaluation.measures import FalsePositives, JAndF, Measure
from ldis_lightning.evaluation.scores import EpisodeScores, SetResult
from ldis_lightning.evaluation.scoring import fused_frame, resize_mask, restore_logits, score_batch, score_clip


def make_batch(masks: Tensor, classes: list[int], valid: list[bool] | None = None, **more: Any) -> EpisodeBatch:
    """What scoring reads of a batch: masks (B, H, W), classes, and what else is given."""
    fields = {
        "query_mask": masks.to(torch.uint8),
        "class_id": torch.tensor(classes),
        "valid": torch.tensor(valid or [True] * len(classes)),
        "position": torch.arange(len(classes)),
        **more,
    }
    return fields  # type: ignore[return-value]


def as_logits(mask: Tensor) -> Tensor:
    return mask.float() * 2 - 1


def scored(logits: Tensor, batch: EpisodeBatch, size: int | None = None, measure: Measure | None = None) -> SetResult:
    """The result of a set that consists of one batch."""
    how = board(batch["class_id"].tolist(), size=size, measure=measure)
    scores = EpisodeScores(how.measure, how.table)
    scores.update(*score_batch(how, logits, batch))
    return scores.result(confidence=False)


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


def test_restore_takes_several_concepts_at_once() -> None:
    logits = torch.randn(3, 8, 8)
    together = restore_logits(logits, (1, 0, 4, 8), (9, 20))
    assert together.shape == (3, 9, 20)
    for concept in range(3):
        assert torch.equal(together[concept], restore_logits(logits[concept], (1, 0, 4, 8), (9, 20)))


def test_masks_are_resized_to_the_nearest_pixel() -> None:
    mask = torch.tensor([[1, 255], [0, 7]], dtype=torch.uint8)
    assert resize_mask(mask, (4, 2)).tolist() == [[1, 255], [1, 255], [0, 7], [0, 7]]
    assert resize_mask(mask, (4, 2)).dtype == torch.uint8
    assert resize_mask(mask, (2, 2)) is mask


def test_model_size_without_originals() -> None:
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [255, 0]], [[1, 1], [1, 1]]])
    logits = torch.tensor([[[1.0, 1], [-1, -1]], [[1, 1], [1, 0]], [[-1, -1], [-1, -1]]])  # 0 is background
    result = scored(logits, make_batch(masks, [1, 2, 2], [True, True, False]))
    assert result.per_class == {1: 1 / 2, 2: 1.0}
    assert (result.episodes, result.expected, result.complete) == (2, 3, False)


def test_originals_of_the_models_size_give_the_same_result() -> None:
    torch.manual_seed(0)
    masks, logits = torch.randint(0, 2, (4, 6, 6)), torch.randn(4, 6, 6)
    classes = [1, 2, 1, 3]
    meta = [{"content": (0, 0, 6, 6), "original_size": (6, 6)}] * 4
    originals = list(masks.to(torch.uint8))
    plain = scored(logits, make_batch(masks, classes))
    with_originals = scored(logits, make_batch(masks, classes, query_mask_original=originals, meta=meta))
    assert (with_originals.counts == plain.counts).all()
    assert with_originals.scores == plain.scores


def test_other_sizes_are_scored_at_the_original_size() -> None:
    # Episode 0 was 2 x 4 and lies in rows 1..2 of the 4 x 4 square; episode 1 was 8 x 8; episode 2 is padding.
    wide = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.uint8)
    logits = torch.full((3, 4, 4), 5.0)  # wrong on purpose wherever nothing is scored
    logits[0, 1:3] = as_logits(wide)
    logits[1] = -2.0
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
    result = scored(logits, batch)
    # Bilinear logits cut the square's inner corner pixel: 0.75 * 0.75 of its weight is 1, and the rest is -2.
    inner = int((F.interpolate(logits[1][None, None], (8, 8), mode="bilinear")[0, 0] > 0).sum())
    assert inner == 15
    assert result.per_class == {1: 1.0, 2: inner / 16}
    assert result.counts[1].tolist() == [inner, 16, 64 - 8 - 16, 64 - 8 - inner]  # row 7 is ignored
    assert result.episodes == 2


def test_a_logit_of_zero_is_background_at_any_size() -> None:
    originals = [torch.ones(3, 3, dtype=torch.uint8)]
    meta = [{"content": (0, 0, 6, 6), "original_size": (3, 3)}]
    at_model_size = make_batch(torch.ones(1, 6, 6), [1])
    at_original_size = make_batch(torch.ones(1, 6, 6), [1], query_mask_original=originals, meta=meta)
    for batch, size in ((at_model_size, None), (at_original_size, None), (at_original_size, 5)):
        assert scored(torch.zeros(1, 6, 6), batch, size).per_class == {1: 0.0}


def test_one_odd_size_does_not_change_its_neighbours() -> None:
    torch.manual_seed(1)
    mask, logits = torch.randint(0, 2, (1, 6, 6)), torch.randn(1, 6, 6)
    batch = make_batch(
        mask.expand(2, -1, -1),
        [1, 2],
        query_mask_original=[mask[0].to(torch.uint8), torch.ones(3, 9, dtype=torch.uint8)],
        meta=[
            {"content": (0, 0, 6, 6), "original_size": (6, 6)},
            {"content": (2, 0, 2, 6), "original_size": (3, 9)},
        ],
    )
    alone, together = scored(logits, make_batch(mask, [1])), scored(logits.expand(2, -1, -1), batch)
    assert together.counts[0].tolist() == alone.counts[0].tolist()


# ---- A fixed size


def test_a_board_of_a_fixed_size() -> None:
    """Logits bilinear, true masks nearest, both to the same square whatever the picture's shape."""
    torch.manual_seed(2)
    logits = torch.randn(2, 8, 8)
    originals = [torch.randint(0, 2, (4, 8), dtype=torch.uint8), torch.randint(0, 2, (8, 8), dtype=torch.uint8)]
    originals[0][0, :3] = 255
    contents = [(0, 0, 4, 8), (0, 0, 8, 8)]
    meta = [{"content": content} for content in contents]
    batch = make_batch(torch.zeros(2, 8, 8), [1, 2], query_mask_original=originals, meta=meta)
    result = scored(logits, batch, size=12)
    for i, (original, (_, _, height, width)) in enumerate(zip(originals, contents, strict=True)):
        said = F.interpolate(logits[i, :height, :width][None, None], (12, 12), mode="bilinear")[0, 0] > 0
        nearest = [[min(k * n // 12, n - 1) for k in range(12)] for n in original.shape]
        truth = original[nearest[0]][:, nearest[1]]
        counted = truth != 255
        assert result.counts[i, 0] == int((said & (truth == 1)).sum())
        assert result.counts[i, 1] == int(((said | (truth == 1)) & counted).sum())


def test_a_board_of_the_models_size_scores_other_pictures_at_it() -> None:
    original = torch.ones(4, 4, dtype=torch.uint8)
    meta = [{"content": (0, 0, 8, 8)}]
    batch = make_batch(torch.zeros(1, 8, 8), [1], query_mask_original=[original], meta=meta)
    assert scored(torch.ones(1, 8, 8), batch, size=8).counts[0].tolist() == [64, 64, 0, 0]


def test_other_measures_count_the_same_masks() -> None:
    masks = torch.tensor([[[0, 0], [0, 255]], [[0, 0], [0, 0]]])
    logits = torch.tensor([[[1.0, -1], [-1, 1]], [[-1, -1], [-1, -1]]])
    assert scored(logits, make_batch(masks, [1, 2]), measure=FalsePositives()).scores == {"fpr": 1 / 7}


# ---- Clips


def a_clip(labels: Tensor, **more: Any) -> ClipBatch:
    """What scoring reads of a step: label maps (F, H, W) of two concepts."""
    frames, size = len(labels), tuple(labels.shape[1:])
    fields: dict[str, Any] = {
        "class_id": torch.tensor([5, 9]),
        "valid": torch.ones(frames, dtype=torch.bool),
        "position": torch.arange(2 * frames).view(frames, 2),
        "labels_original": list(labels.to(torch.uint8)),
        "meta": [{"content": (0, 0, *size), "original_size": size}] * frames,
        **more,
    }
    return fields  # type: ignore[return-value]


def clip_result(logits: Tensor, batch: ClipBatch, size: int | None = None, measure: Measure | None = None) -> SetResult:
    how = board([5, 9] * len(logits), [0] * 2 * len(logits), size, measure)
    scores = EpisodeScores(how.measure, how.table)
    scores.update(*score_clip(how, logits, batch))
    return scores.result(confidence=False)


def test_concepts_of_a_frame_are_fused_before_they_are_counted() -> None:
    """By hand: the greatest logit above 0 wins, ties go to the background and then to the first concept."""
    labels = torch.tensor([[[1, 2, 2, 0, 255, 1]]])
    first, second = [1.0, 3, 1, -1, 9, 0], [2.0, 1, 1, -2, 8, -5]
    # fused:       2       1      1 (tie)   0     -      0
    result = clip_result(torch.tensor([[[first], [second]]]), a_clip(labels))
    intersection, union = result.counts[:, 0].tolist(), result.counts[:, 1].tolist()
    assert intersection == [0, 0]
    assert union == [4, 3]  # concept 1: marked at 1, 2, true at 0, 5; concept 2: marked at 0, true at 1, 2
    assert result.counts[:, 2:].tolist() == [[1, 5], [2, 5]]


def test_a_concept_alone_is_as_an_episode() -> None:
    torch.manual_seed(3)
    masks, logits = torch.randint(0, 2, (3, 6, 6)), torch.randn(3, 6, 6)
    masks[0, 0] = 255
    alone = scored(logits, make_batch(masks, [1, 1, 1]))
    batch = a_clip(masks, class_id=torch.tensor([1]), position=torch.arange(3)[:, None])
    how = board([1, 1, 1])
    counts = score_clip(how, logits[:, None], batch)
    assert counts.counts.tolist() == alone.counts.tolist()
    assert counts.position.tolist() == [0, 1, 2]


def test_fusion_is_at_the_size_to_be_scored_at() -> None:
    """Resizing and arg max do not commute: two concepts meet where the resized logits do."""
    logits = torch.tensor([[[[-4.0, 2.0]], [[1.0, -9.0]]]])  # (1, 2, 1, 2)
    labels = torch.tensor([[[2, 2, 0, 1]]])
    meta = [{"content": (0, 0, 1, 2), "original_size": (1, 4)}]
    fused, truth = fused_frame(logits[0], meta[0], labels[0].to(torch.uint8))  # type: ignore[arg-type]
    # first: -4, -2.5, 0.5, 2; second: 1, -1.5, -6.5, -9
    assert fused.tolist() == [[2, 0, 1, 1]]
    assert truth.tolist() == [[2, 2, 0, 1]]
    result = clip_result(logits, a_clip(labels, meta=meta))
    assert result.counts[:, :2].tolist() == [[1, 2], [1, 2]]


def test_clips_at_a_fixed_size() -> None:
    torch.manual_seed(4)
    logits, labels = torch.randn(2, 2, 8, 8), torch.randint(0, 3, (2, 4, 8))
    meta = [{"content": (0, 0, 4, 8), "original_size": (4, 8)}] * 2
    result = clip_result(logits, a_clip(labels, meta=meta), size=10)
    for frame in range(2):
        big = F.interpolate(logits[None, frame, :, :4], (10, 10), mode="bilinear")[0]
        both = torch.cat([torch.zeros(1, 10, 10), big]).argmax(0)  # eq. 7 with its exponentials left out
        rows, columns = [k * 4 // 10 for k in range(10)], [k * 8 // 10 for k in range(10)]
        truth = labels[frame][rows][:, columns]
        for concept in (1, 2):
            expected = [((both == concept) & (truth == concept)).sum(), ((both == concept) | (truth == concept)).sum()]
            assert result.counts[2 * frame + concept - 1, :2].tolist() == [int(value) for value in expected]


def test_padding_and_what_is_not_scored_counts_nowhere() -> None:
    labels = torch.ones(3, 4, 4)
    batch = a_clip(
        labels,
        valid=torch.tensor([True, True, False]),
        position=torch.tensor([[0, -1], [-1, -1], [4, 5]]),
    )
    result = clip_result(torch.ones(3, 2, 4, 4), batch)
    assert result.seen.tolist() == [1, 0, 0, 0, 0, 0]
    assert result.counts[0].tolist() == [16, 16, 0, 0]
    assert not result.counts[1:].any()


def test_j_and_f_of_a_clip() -> None:
    labels = torch.zeros(2, 12, 12)
    labels[:, 2:7, 2:7] = 1
    labels[:, 8:11, 8:11] = 2
    logits = torch.stack([as_logits(labels == 1), as_logits(labels == 2)], 1)
    perfect = clip_result(logits, a_clip(labels), measure=JAndF())
    assert perfect.scores == {"j_and_f": 1.0, "j": 1.0, "f": 1.0}
    swapped = clip_result(logits.flip(1), a_clip(labels), measure=JAndF())
    assert swapped.scores["j"] == 0.0
