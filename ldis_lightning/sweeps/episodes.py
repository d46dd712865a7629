"""What was counted of each episode of an evaluation set, from a run's `episodes/SET.csv`."""

import csv
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldis_lightning.evaluation.bootstrap import Units, draws
from ldis_lightning.evaluation.measures import (
    EpisodeTable,
    FalsePositives,
    JAndF,
    Measure,
    RegionIoU,
)

FACTS = ["episode", "query", "class_id", "clip", "run", "scored"]
"""The columns before the counts: see `callbacks/rows.py`."""
MEASURES: tuple[Measure, ...] = (RegionIoU(), JAndF(), FalsePositives())
AT_ONCE = 50
"""Draws that are summed together."""


@dataclass(frozen=True, eq=False)
class EpisodeCounts:
    """The E scored episodes of a set, in the manifest's order.

    Attributes:
        queries: the query's key of each.
        table: what scoring has to know about them.
        counts: (E, width) int64.
        measure: whose counts they are.
    """

    queries: list[str]
    table: EpisodeTable
    counts: np.ndarray
    measure: Measure

    def score(self, name: str) -> float:
        """One of the measure's scores, over all episodes."""
        return self.measure.scores(self.counts, self.table)[name]

    def resampled(self, name: str, samples: int, seed: int) -> np.ndarray:
        """The score under `samples` draws of the units with replacement, (samples,) float64; NaN where a draw holds
        nothing to score.

        The draws depend on the episodes and `seed` alone, so two models scored on the same episodes get the same ones.
        """
        units = Units(self.table)
        drawn = draws(len(units), samples, seed)
        scores = self._scores_of_sums(units, drawn) if self.measure.additive else self._scores_of_rows(units, drawn)
        return np.array([score[name] for score in scores])

    def _scores_of_rows(self, units: Units, drawn: Iterable[np.ndarray]) -> Iterator[dict[str, float]]:
        for draw in drawn:
            rows, table = units.sample(draw)
            yield self.measure.scores(self.counts.take(rows, 0), table)

    def _scores_of_sums(self, units: Units, drawn: Iterator[np.ndarray]) -> Iterator[dict[str, float]]:
        """The same from one row a class, many draws at a time: an additive measure sees no more."""
        order = np.argsort(self.table.class_id, kind="stable")
        classes, start = np.unique(self.table.class_id[order], return_index=True)
        table = EpisodeTable(classes, np.full(len(classes), -1))
        unit, counts = self.table.unit[order], np.insert(self.counts[order], 0, 1, axis=1)  # (E,), (E, 1 + width)
        while chunk := list(itertools.islice(drawn, AT_ONCE)):
            times = np.stack([np.bincount(draw, minlength=len(units))[unit] for draw in chunk])  # (draws, E)
            for own in np.add.reduceat(times[..., None] * counts, start, axis=1):  # (C, 1 + width)
                present = own[:, 0] > 0
                yield self.measure.scores(own[present, 1:], table.take(present))


def read_episodes(path: Path) -> EpisodeCounts:
    """Read what `callbacks/rows.py` wrote; episodes that were not scored are left out.

    Raises:
        ValueError: the file is damaged, or its counts are of no measure known here.
        OSError: it cannot be read.
    """
    try:
        return _read(path)
    except (csv.Error, OverflowError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def _read(path: Path) -> EpisodeCounts:
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    measure = next((m for m in MEASURES if [*FACTS, *m.columns] == header), None)
    if measure is None:
        raise ValueError(f"{path.name} has the columns of no measure known here")
    if any(len(line) != len(header) for line in lines):
        raise ValueError(f"{path.name} has a line of another length")
    scored = [line for line in lines if line[5] == "1"]
    numbers = np.array([[int(cell) for cell in (line[2], line[3], *line[6:])] for line in scored], np.int64)
    numbers = numbers.reshape(len(scored), 2 + measure.width)
    if (numbers[:, 0] < 0).any() or (numbers[:, 2:] < 0).any():
        raise ValueError(f"{path.name} has a negative count")
    table = EpisodeTable(numbers[:, 0].copy(), numbers[:, 1].copy())
    return EpisodeCounts([line[1] for line in scored], table, numbers[:, 2:], measure)
