"""The counts of every episode of an evaluation set, gathered over ranks, and what the set came to."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from ldis_lightning.evaluation.bootstrap import bootstrap_intervals
from ldis_lightning.evaluation.measures import EpisodeTable, Measure


@dataclass(frozen=True, eq=False)
class SetResult:
    """What one evaluation set came to. NaN where nothing was scored."""

    scores: dict[str, float]
    """By name, the headline first."""
    intervals: dict[str, tuple[float, float]]
    """95% bootstrap interval of each score; empty where none was asked for."""
    per_class: dict[int, float]
    """The headline by class id, of every class scored in at least one episode, ids ascending."""
    episodes: int
    """Episodes scored."""
    expected: int
    """Episodes of the manifest, E."""
    run_scores: list[dict[str, float]]
    """The scores of each run where the manifest holds several, else empty."""
    headline: str
    """Name of the score that stands for the set."""
    counts: np.ndarray
    """(E, width) int64: what was counted; zeros where nothing was scored."""
    seen: np.ndarray
    """(E,) int64: 1 where the episode was scored, else 0."""

    @property
    def complete(self) -> bool:
        """Every episode of the manifest was scored, once."""
        return self.episodes == self.expected

    @property
    def value(self) -> float:
        """The headline's score."""
        return self.scores[self.headline]


class EpisodeScores(Metric):
    """One row of counts for each of the E episodes of an evaluation set, each scored exactly once.

    The state is summed over ranks, and every row but one rank's is zero: any split of the episodes over ranks and
    batches, in any order, gives the same result to the last bit.

    `compute` and `result` gather over ranks: call them on all ranks or on none.

    Args:
        measure: how an episode is counted and a set is scored.
        table: the set's episodes.
        **kwargs: see `torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False

    counts: Tensor  # (E, width) int64
    seen: Tensor  # (E,) int64, how many times each episode was scored

    def __init__(self, measure: Measure, table: EpisodeTable, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.measure = measure
        self.table = table
        self.add_state("counts", torch.zeros(len(table), measure.width, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(len(table), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, position: Tensor, counts: Tensor) -> None:
        """Add B episodes, without host-device synchronisation.

        Args:
            position: (B,) int64, places in the manifest; a negative one is padding and counts nowhere.
            counts: (B, width) int64 from `Measure.count`.
        """
        if not len(self.table):  # there is no row to add padding's zeros to
            return
        valid = (position >= 0).to(torch.int64)
        position = position.clamp_min(0)
        # Out of place: a state made under inference mode could not be written to outside of it.
        self.counts = self.counts.index_add(0, position, counts * valid[:, None])
        self.seen = self.seen.index_add(0, position, valid)

    def compute(self) -> dict[str, Tensor]:
        """The scores by name, float32 scalars; NaN where nothing was scored."""
        scores = self._summarise(confidence=False).scores
        return {name: torch.tensor(score, device=self.seen.device) for name, score in scores.items()}

    def result(self, confidence: bool = True) -> SetResult:
        """Everything about the set, as plain numbers, over all ranks.

        Args:
            confidence: work out the bootstrap intervals as well (about a second).

        Raises:
            RuntimeError: an episode was scored more than once.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._summarise(confidence)

    def _summarise(self, confidence: bool) -> SetResult:
        """The result of the states as they are now."""
        counts, seen = self.counts.cpu().numpy(), self.seen.cpu().numpy()
        _require_once(seen)
        measure, table = self.measure, self.table
        scored = seen == 1
        part, part_counts = table.take(scored), counts[scored]
        return SetResult(
            scores=measure.scores(part_counts, part),
            intervals=bootstrap_intervals(measure, part_counts, part) if confidence else {},
            per_class=measure.per_class(part_counts, part),
            episodes=int(scored.sum()),
            expected=len(table),
            run_scores=_run_scores(measure, counts, table, scored),
            headline=measure.headline,
            counts=counts,
            seen=seen,
        )


def _require_once(seen: np.ndarray) -> None:
    """Raise where an episode was scored twice: sums over ranks would hide it in a plausible score."""
    twice = np.flatnonzero(seen > 1)
    if len(twice):
        raise RuntimeError(
            f"{len(twice)} of {len(seen)} episodes were scored more than once, e.g. number {twice[0]} "
            f"{seen[twice[0]]} times: the ranks must share the evaluation set without overlap"
        )


def _run_scores(
    measure: Measure, counts: np.ndarray, table: EpisodeTable, scored: np.ndarray
) -> list[dict[str, float]]:
    """The scores of each run by itself; none where there is one run."""
    if table.runs == 1:
        return []
    runs = np.split(np.arange(len(table)), table.runs)
    return [measure.scores(counts[rows], table.take(rows)) for rows in (run[scored[run]] for run in runs)]
