"""What was counted of each episode of an evaluation set, from a run's `episodes/SET.csv`."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ldis_lightning.evaluation.bootstrap import Units, draws
from ldis_lightning.evaluation.measures import (
    EpisodeTable,
    FalsePositives,
    JAndF,
    Measure,
    RegionIoU,
    sum_by,
)

FACTS = ["episode", "query", "class_id", "clip", "run", "scored"]
"""The columns before the counts: see `callbacks/rows.py`."""
MEASURES: tuple[Measure, ...] = (RegionIoU(), JAndF(), FalsePositives())


@dataclass(frozen=True, eq=False)
class EpisodeCounts:
    """The E scored episodes of a set, in the manifest's order.

    Attributes:
        queries: the query's key of each.
        table: what scoring has to know about them.
        counts: (E, width) int64.
        measure: whose counts they are.
    """

    columns: ClassVar[int] = len(FACTS)

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
        score = self._score_of_sums if self.measure.additive else self._score_of_rows
        return np.array([score(units, draw, name) for draw in draws(len(units), samples, seed)])

    def _score_of_rows(self, units: Units, draw: np.ndarray, name: str) -> float:
        rows, table = units.sample(draw)
        return self.measure.scores(self.counts.take(rows, 0), table)[name]

    def _score_of_sums(self, units: Units, draw: np.ndarray, name: str) -> float:
        """The same from one row a class: an additive measure sees no more, and hundreds of rows become tens."""
        weight = np.bincount(draw, minlength=len(units))[self.table.unit]  # (E,) how often each episode was drawn
        classes, group = np.unique(self.table.class_id, return_inverse=True)
        sums = sum_by(group, self.counts * weight[:, None], len(classes))
        drawn = np.bincount(group, weight, len(classes)) > 0
        table = EpisodeTable(classes[drawn], np.full(int(drawn.sum()), -1))
        return self.measure.scores(sums[drawn], table)[name]


def read_episodes(path: Path) -> EpisodeCounts:
    """Read what `callbacks/rows.py` wrote; episodes that were not scored are left out.

    Raises:
        ValueError: the file is damaged, or its counts are of no measure known here.
        OSError: it cannot be read.
    """
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
