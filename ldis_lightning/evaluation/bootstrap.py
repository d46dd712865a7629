"""Confidence intervals of a set's scores: the percentile bootstrap over episodes, or over clips."""

import math
from collections.abc import Iterator

import numpy as np

from ldis_lightning.evaluation.measures import EpisodeTable, Measure, sum_by


def bootstrap_intervals(
    measure: Measure,
    counts: np.ndarray,
    table: EpisodeTable,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap (Efron, 1979) over `table.unit`: the frames of a clip are drawn together.

    Frames of a clip resemble each other; drawn one by one they would pass for independent, and the interval would be
    far too narrow. The interval says how the score varies over other episodes of the same kind, with this model.

    Args:
        measure, counts, table: see `Measure.scores`.
        samples: how many times U of the U units are drawn with replacement.
        seed: of the draws. The interval is a pure function of the arguments.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high) of each score, with the score itself inside. NaN where fewer than two units leave nothing to vary or
        the score is NaN.
    """
    estimate = measure.scores(counts, table)
    if measure.additive:
        counts, table = _summed(counts, table)
    units = Units(table)
    if len(units) < 2:
        return dict.fromkeys(measure.names, (math.nan, math.nan))
    drawn: dict[str, list[float]] = {name: [] for name in measure.names}
    for draw in draws(len(units), samples, seed):
        rows, sample = units.sample(draw)
        for name, score in measure.scores(counts.take(rows, 0), sample).items():
            drawn[name].append(score)
    return {name: _percentiles(drawn[name], estimate[name], confidence) for name in measure.names}


class Units:
    """The rows of each of the U units of a table, ready to be drawn."""

    def __init__(self, table: EpisodeTable) -> None:
        self.table = table
        self.order = np.argsort(table.unit, kind="stable")  # the rows, unit by unit
        self.size = np.bincount(table.unit)
        self.start = np.cumsum(self.size) - self.size

    def __len__(self) -> int:
        return len(self.size)

    def sample(self, draw: np.ndarray) -> tuple[np.ndarray, EpisodeTable]:
        """Rows of the units in `draw` (U,), one unit after the other, and their table.

        A clip that was drawn twice counts as two clips.
        """
        size = self.size[draw]
        ends = np.cumsum(size)
        offset = np.repeat(self.start[draw] - (ends - size), size)
        rows = self.order[offset + np.arange(len(offset))]
        is_image = self.table.clip[rows] < 0
        clip = np.where(is_image, -1, np.repeat(np.arange(len(draw)), size))
        return rows, EpisodeTable(self.table.class_id[rows], clip)


def _summed(counts: np.ndarray, table: EpisodeTable) -> tuple[np.ndarray, EpisodeTable]:
    """One row for the episodes of the same unit and class: the same scores from fewer rows (a clip has many frames)."""
    pair = table.unit * (1 + table.class_id.max(initial=0)) + table.class_id
    _, first, group = np.unique(pair, return_index=True, return_inverse=True)
    return sum_by(group, counts, len(first)), table.take(first)


def draws(units: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """`samples` times (units,) int64 in [0, units).

    From the raw stream of PCG64, which numpy keeps for good; what its `Generator` makes of the stream may change.
    """
    stream = np.random.PCG64(seed)
    for _ in range(samples):
        bits = stream.random_raw(units) >> np.uint64(32)
        yield ((bits * np.uint64(units)) >> np.uint64(32)).astype(np.int64)


def _percentiles(drawn: list[float], estimate: float, confidence: float) -> tuple[float, float]:
    values = np.array(drawn)
    values = values[~np.isnan(values)]  # a sample may happen to hold nothing that can be scored
    if math.isnan(estimate) or not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return min(float(low), estimate), max(float(high), estimate)
