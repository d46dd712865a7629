import math

import numpy as np
import pytest

from ldis_lightning.evaluation.bootstrap import Units, bootstrap_intervals
from ldis_lightning.evaluation.measures import EpisodeTable, FalsePositives, JAndF, Measure, RegionIoU


def images(count: int, classes: int = 1) -> EpisodeTable:
    return EpisodeTable(np.arange(count) % classes, np.full(count, -1))


def random_counts(measure: Measure, count: int, seed: int = 0) -> np.ndarray:
    """Counts that could be: a part and its whole, the part first."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(50, 1000, (count, measure.width // 2))
    part = (whole * rng.random(whole.shape)).astype(np.int64)
    if isinstance(measure, JAndF):  # intersection, union, boundaries, matched boundaries
        return np.concatenate([part[:, :1], whole[:, :1], whole[:, 1:], part[:, 1:]], 1)
    return np.stack([part, whole], 2).reshape(count, measure.width)


def coins(count: int, seed: int = 1) -> np.ndarray:
    """Counts of FalsePositives whose rate is the share of episodes with a one: one pixel each."""
    marked = (np.random.default_rng(seed).random(count) < 0.3).astype(np.int64)
    return np.stack([marked, np.ones_like(marked)], 1)


def width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


@pytest.mark.parametrize(("confidence", "quantile"), [(0.95, 1.960), (0.5, 0.6745)])
def test_width_is_the_analytic_one_of_a_mean(confidence: float, quantile: float) -> None:
    """Of episodes of 1000 pixels each, the rate is the mean of their own: rate +- quantile * s / sqrt(n)."""
    marked = np.random.default_rng(5).integers(0, 601, 600)
    counts = np.stack([marked, np.full(600, 1000)], 1)
    half = quantile * marked.std() / 1000 / math.sqrt(600)
    low, high = bootstrap_intervals(FalsePositives(), counts, images(600), confidence=confidence)["fpr"]
    assert (low, high) == pytest.approx((marked.mean() / 1000 - half, marked.mean() / 1000 + half), abs=0.1 * half)


def test_coverage_is_what_it_says() -> None:
    """Of 100 sets drawn from a known rate, about 95 intervals hold it (binomial: 95 +- 3 sigma of 2.2)."""
    intervals = [
        bootstrap_intervals(FalsePositives(), coins(200, seed=seed), images(200), samples=200)["fpr"]
        for seed in range(100)
    ]
    assert 88 <= sum(low <= 0.3 <= high for low, high in intervals) <= 99


@pytest.mark.parametrize("measure", [RegionIoU(), JAndF(), FalsePositives()])
def test_is_deterministic_and_contains_the_score(measure: Measure) -> None:
    table = EpisodeTable(np.arange(40) % 5, np.concatenate([np.full(20, -1), np.arange(20) // 4]))
    counts = random_counts(measure, 40)
    first = bootstrap_intervals(measure, counts, table, samples=200)
    assert first == bootstrap_intervals(measure, counts, table, samples=200)
    assert first != bootstrap_intervals(measure, counts, table, samples=200, seed=1)
    assert tuple(first) == measure.names
    for name, score in measure.scores(counts, table).items():
        assert first[name][0] < score < first[name][1]


def test_frames_of_a_clip_are_drawn_together() -> None:
    """Ten equal frames a clip say no more than one: clips give the images' interval, frames a far too narrow one."""
    counts = coins(60)
    once = bootstrap_intervals(FalsePositives(), counts, images(60))["fpr"]
    repeated = np.repeat(counts, 10, 0)
    by_clip = EpisodeTable(np.zeros(600, np.int64), np.repeat(np.arange(60), 10))
    assert bootstrap_intervals(FalsePositives(), repeated, by_clip)["fpr"] == once
    by_frame = bootstrap_intervals(FalsePositives(), repeated, images(600))["fpr"]
    assert width(by_frame) == pytest.approx(width(once) / math.sqrt(10), rel=0.15)


def test_a_clip_drawn_twice_is_two_clips() -> None:
    counts = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]])
    units = Units(EpisodeTable(np.array([1, 1, 1]), np.array([4, 4, 9])))
    rows, sample = units.sample(np.array([0, 1, 0]))
    assert rows.tolist() == [0, 1, 2, 0, 1]
    assert JAndF().scores(counts[rows], sample)["j"] == pytest.approx(2 / 3)  # objects 1, 0, 1


def test_units_of_any_order_and_size() -> None:
    table = EpisodeTable(np.array([5, 6, 7, 8, 9]), np.array([2, -1, 0, 2, -1]))
    units = Units(table)
    assert len(units) == 4
    rows, sample = units.sample(np.array([3, 0, 3]))  # images 1 and 4 come first, then clips 0 and 2
    assert rows.tolist() == [0, 3, 1, 0, 3]
    assert sample.class_id.tolist() == [5, 8, 6, 5, 8]
    assert sample.clip.tolist() == [0, 0, -1, 2, 2]


@pytest.mark.parametrize("measure", [RegionIoU(), FalsePositives()])
def test_adding_up_beforehand_changes_nothing(measure: Measure) -> None:
    class OneByOne(type(measure)):
        additive = False

    rng = np.random.default_rng(3)
    table = EpisodeTable(rng.integers(0, 4, 200), rng.integers(-1, 12, 200))
    counts = random_counts(measure, 200)
    expected = bootstrap_intervals(OneByOne(), counts, table, samples=100)
    assert bootstrap_intervals(measure, counts, table, samples=100) == expected


def test_classes_that_are_missing_in_some_samples() -> None:
    table = EpisodeTable(np.array([1, 2, 3]), np.full(3, -1))
    low, high = bootstrap_intervals(RegionIoU(), np.array([[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0]]), table)["miou"]
    assert (low, high) == (0.5, 1.0)  # samples of the third episode alone hold nothing that can be scored


@pytest.mark.parametrize("table", [images(0), images(1), EpisodeTable(np.zeros(9, np.int64), np.zeros(9, np.int64))])
def test_fewer_than_two_units_have_no_interval(table: EpisodeTable) -> None:
    intervals = bootstrap_intervals(RegionIoU(), random_counts(RegionIoU(), len(table)), table)
    assert list(intervals) == ["miou", "fb_iou"]
    assert all(math.isnan(end) for interval in intervals.values() for end in interval)


def test_equal_episodes_give_a_point() -> None:
    for measure, row in ((RegionIoU(), [1, 3, 2, 7]), (JAndF(), [1, 3, 7, 9, 3, 2])):
        counts = np.tile(np.array(row), (17, 1))
        for name, score in measure.scores(counts, images(17, 3)).items():
            interval = bootstrap_intervals(measure, counts, images(17, 3), samples=50)[name]
            assert interval == pytest.approx((score, score), abs=1e-12)
            assert interval[0] <= score <= interval[1]


def test_a_measure_of_ones_own() -> None:
    class Median(Measure):
        names = ("median",)
        columns = ("value",)

        def scores(self, counts: np.ndarray, table: EpisodeTable) -> dict[str, float]:
            return {"median": float(np.median(counts))}

    counts = np.arange(101)[:, None]
    low, high = bootstrap_intervals(Median(), counts, images(101))["median"]
    # Order statistics: the median of 101 lies between the ranks 50 -+ 1.96 * sqrt(101) / 2 with 95%.
    assert low == pytest.approx(50 - 9.85, abs=2)
    assert high == pytest.approx(50 + 9.85, abs=2)
