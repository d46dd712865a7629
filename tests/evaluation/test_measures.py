import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldis_lightning.evaluation.measures import EpisodeTable, FalsePositives, JAndF, Measure, RegionIoU

MEASURES = [RegionIoU(), JAndF(), FalsePositives()]
Episode = tuple[np.ndarray, np.ndarray, int]  # prediction, target, class


def random_episodes(seed: int, count: int, height: int, width: int, classes: int) -> list[Episode]:
    rng = np.random.default_rng(seed)
    return [
        (
            rng.random((height, width)) < rng.random(),
            rng.choice(np.array([0, 1, 255], np.uint8), (height, width), p=[0.5, 0.4, 0.1]),
            int(rng.integers(0, classes)),
        )
        for _ in range(count)
    ]


def table_of(episodes: list[Episode]) -> EpisodeTable:
    return EpisodeTable(np.array([c for *_, c in episodes], np.int64), np.full(len(episodes), -1))


def counts_of(measure: Measure, episodes: list[Episode]) -> np.ndarray:
    prediction, target, _ = zip(*episodes, strict=True)
    return measure.count(torch.from_numpy(np.stack(prediction)), torch.from_numpy(np.stack(target))).numpy()


def score(measure: Measure, prediction: list, target: list, class_id: list[int]) -> dict[str, float]:
    """Scores of images given as nested lists (E, W): one row of pixels an episode."""
    marked, truth = torch.tensor(prediction, dtype=torch.bool), torch.tensor(target, dtype=torch.uint8)
    counts = measure.count(marked[:, None], truth[:, None]).numpy()
    return measure.scores(counts, EpisodeTable(np.array(class_id), np.full(len(class_id), -1)))


def plain_ious(episodes: list[Episode]) -> tuple[float, float, dict[int, float]]:
    """mIoU, FB-IoU and IoU by class of all pixels side by side, as the definition reads."""
    with np.errstate(invalid="ignore"):
        marked, truth, class_id = (
            np.concatenate([np.asarray(part(*episode)) for episode in episodes])
            for part in (
                lambda p, t, c: p[t != 255],
                lambda p, t, c: t[t != 255] == 1,
                lambda p, t, c: np.full((t != 255).sum(), c),
            )
        )

        def iou(a: np.ndarray, b: np.ndarray) -> float:
            return float(np.float64((a & b).sum()) / (a | b).sum())

        classes = sorted({c for *_, c in episodes})
        per_class = {c: iou(marked[class_id == c], truth[class_id == c]) for c in classes}
        pooled = [iou(marked, truth), iou(~marked, ~truth)]

    def mean(values: list[float]) -> float:
        kept = [value for value in values if value == value]
        return sum(kept) / len(kept) if kept else math.nan

    return mean(list(per_class.values())), mean(pooled), per_class


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_region_iou_agrees_with_the_plain_definition(
    seed: int, count: int, height: int, width: int, classes: int
) -> None:
    episodes = random_episodes(seed, count, height, width, classes)
    counts, table = counts_of(RegionIoU(), episodes), table_of(episodes)
    miou, fb_iou, per_class = plain_ious(episodes)
    assert RegionIoU().scores(counts, table) == pytest.approx({"miou": miou, "fb_iou": fb_iou}, abs=1e-12, nan_ok=True)
    assert RegionIoU().per_class(counts, table) == pytest.approx(per_class, abs=1e-12, nan_ok=True)
    assert list(RegionIoU().per_class(counts, table)) == sorted(per_class)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.sampled_from(MEASURES))
def test_counts_are_an_episodes_own(seed: int, count: int, measure: Measure) -> None:
    episodes = random_episodes(seed, count, 6, 5, 3)
    counts = counts_of(measure, episodes)
    assert counts.dtype == np.int64
    assert counts.shape == (count, measure.width)
    assert np.array_equal(counts, np.concatenate([counts_of(measure, [episode]) for episode in episodes]))


def test_is_not_the_mean_of_per_image_ious() -> None:
    scores = score(RegionIoU(), [[1, 0, 0, 0], [1, 1, 1, 1]], [[1, 0, 0, 0], [1, 0, 0, 0]], [3, 3])  # 1/1 and 1/4
    assert scores["miou"] == 2 / 5  # and not 5/8


def test_miou_weighs_classes_equally_and_fb_iou_pools_them() -> None:
    scores = score(
        RegionIoU(),
        [[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0]],
        [[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]],  # foreground 4/4, 3/4, 0/2; background 0/0, 0/1, 2/4
        [1, 1, 2],
    )
    assert scores == {"miou": (7 / 8 + 0 / 2) / 2, "fb_iou": (7 / 10 + 2 / 5) / 2}


def test_ignored_pixels_count_nowhere() -> None:
    assert score(RegionIoU(), [[1, 1, 0, 0]], [[1, 255, 255, 0]], [1]) == {"miou": 1, "fb_iou": 1}
    assert score(JAndF(), [[1, 1, 0, 0]], [[1, 255, 255, 0]], [1]) == {"j_and_f": 1, "j": 1, "f": 1}
    assert score(FalsePositives(), [[1, 1, 0, 0]], [[0, 255, 255, 255]], [1]) == {"fpr": 1}


def test_a_class_always_missed_is_a_zero_in_the_mean() -> None:
    assert score(RegionIoU(), [[1, 0], [0, 0]], [[1, 0], [1, 0]], [1, 2])["miou"] == 0.5


def test_a_class_of_nothing_but_ignored_pixels_has_no_iou() -> None:
    counts = np.array([[0, 0, 0, 0], [1, 1, 1, 1]])
    table = EpisodeTable(np.array([7, 8]), np.array([-1, -1]))
    assert RegionIoU().scores(counts, table)["miou"] == 1
    per_class = RegionIoU().per_class(counts, table)
    assert math.isnan(per_class[7])
    assert per_class[8] == 1


def test_counts_beyond_float_precision() -> None:
    counts = np.array([[2**53, 2**54, 0, 0], [2, 2, 0, 0]])
    table = EpisodeTable(np.array([1, 1]), np.array([-1, -1]))
    assert RegionIoU().per_class(counts, table) == {1: (2**53 + 2) / (2**54 + 2)}


def test_false_positives_are_pooled_over_the_set() -> None:
    scores = score(FalsePositives(), [[1, 0, 0, 0], [1, 1, 1, 1]], [[0, 0, 0, 0], [1, 1, 1, 0]], [1, 2])
    assert scores == {"fpr": 2 / 5}
    counts, table = np.array([[1, 4], [1, 1]]), EpisodeTable(np.array([5, 2]), np.array([-1, -1]))
    assert FalsePositives().per_class(counts, table) == {2: 1.0, 5: 1 / 4}
    assert not FalsePositives().higher_is_better


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_scored_is_nan(measure: Measure) -> None:
    table = EpisodeTable(np.zeros(0, np.int64), np.zeros(0, np.int64))
    scores = measure.scores(np.zeros((0, measure.width), np.int64), table)
    assert tuple(scores) == measure.names
    assert all(math.isnan(score) for score in scores.values())
    assert measure.per_class(np.zeros((0, measure.width), np.int64), table) == {}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8)),
        (torch.zeros(1, 2, 3, dtype=torch.bool), torch.zeros(1, 2, 2, dtype=torch.uint8)),
        (torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.uint8)),
    ],
)
def test_logits_and_other_shapes_are_refused(measure: Measure, prediction: Tensor, target: Tensor) -> None:
    with pytest.raises(ValueError, match="bool predictions"):
        measure.count(prediction, target)


def test_units_are_images_and_clips() -> None:
    table = EpisodeTable(np.array([1, 1, 2, 1, 2, 1]), np.array([7, -1, 7, 1, -1, 7]))
    unit = table.unit
    assert sorted(set(unit.tolist())) == [0, 1, 2, 3]
    assert unit[0] == unit[2] == unit[5]
    assert len({unit[0], unit[1], unit[3], unit[4]}) == 4
    assert EpisodeTable(np.arange(3), np.full(3, -1)).unit.tolist() == [0, 1, 2]


def test_part_of_a_table() -> None:
    table = EpisodeTable(np.array([1, 2, 3, 4]), np.array([0, 0, 1, -1]), runs=2)
    part = table.take(np.array([3, 0]))
    assert (part.class_id.tolist(), part.clip.tolist(), part.runs, len(part)) == ([4, 1], [-1, 0], 1, 2)


def test_tables_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="class_id and clip"):
        EpisodeTable(np.arange(3), np.arange(2))
    with pytest.raises(ValueError, match="5 episodes cannot be 2 equal runs"):
        EpisodeTable(np.arange(5), np.arange(5), runs=2)


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_pickle(measure: Measure) -> None:
    assert type(pickle.loads(pickle.dumps(measure))) is type(measure)


def test_reading_manifests_does_not_wait_for_torch() -> None:
    code = "import sys, ldis_lightning.evaluation.measures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
