"""From masks to counts of an episode, and from the counts of a set to its scores: mIoU, FB-IoU, J&F, FPR.

An episode is kept as a few int64 counts. Integers add up to the same bits in any order, so a score depends neither on
batches nor on ranks; and with one row of counts an episode, any part of a set can be scored again (a run, a bootstrap
sample, what a reader of the episodes' CSV wants to know).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ldis_lightning.episode import IGNORE_INDEX

if TYPE_CHECKING:  # the data commands read `EpisodeTable` and should not wait for torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class EpisodeTable:
    """What scoring has to know about the E episodes of a set; row number = position in the manifest.

    Raises:
        ValueError: the columns differ in length, or E is not a multiple of `runs`.
    """

    class_id: np.ndarray
    """(E,) int64, >= 0."""
    clip: np.ndarray
    """(E,) int64: number of the clip that the query is a frame of; -1 for an image."""
    runs: int = 1
    """The episodes are this many equal, consecutive draws, e.g. BAM's 5 x 1000."""

    def __post_init__(self) -> None:
        if self.class_id.ndim != 1 or self.class_id.shape != self.clip.shape:
            raise ValueError(f"class_id and clip must be (E,), got {self.class_id.shape} and {self.clip.shape}")
        if self.runs < 1 or len(self) % self.runs:
            raise ValueError(f"{len(self)} episodes cannot be {self.runs} equal runs")

    def __len__(self) -> int:
        return len(self.class_id)

    def take(self, rows: np.ndarray) -> EpisodeTable:
        """The table of some of the episodes (indices or a bool mask), as one run."""
        return EpisodeTable(self.class_id[rows], self.clip[rows])

    @cached_property
    def unit(self) -> np.ndarray:
        """(E,) int64: what is independent of the rest: an image's episode by itself, all episodes of a clip together.

        Numbered 0 .. U-1, the images first.
        """
        own = np.where(self.clip < 0, np.arange(len(self)), len(self) + self.clip)
        return np.unique(own, return_inverse=True)[1]


class Measure:
    """How predictions are scored. A subclass of your own can take the place of those here.

    Attributes:
        names: what the scores are called, the headline first.
        columns: what an episode's counts are called.
        higher_is_better: of the headline.
        additive: the scores see counts only as sums over episodes of the same unit and class (`EpisodeTable.unit`), so
            that the bootstrap may add those up beforehand.
    """

    names: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[str, ...]]
    higher_is_better: ClassVar[bool] = True
    additive: ClassVar[bool] = False

    @property
    def headline(self) -> str:
        """Name of the score that stands for the set."""
        return self.names[0]

    @property
    def width(self) -> int:
        """How many counts an episode has."""
        return len(self.columns)

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Count B episodes of equal size, without host-device synchronisation.

        Args:
            prediction: (B, H, W) bool, True where the concept is predicted.
            target: (B, H, W) uint8: 1 the concept, 0 not, 255 counts nowhere.

        Returns:
            (B, width) int64, on the masks' device.

        Raises:
            ValueError: `prediction` is not bool, or the shapes differ or are not (B, H, W).
        """
        raise NotImplementedError(f"{type(self).__name__} must implement count(prediction, target)")

    def scores(self, counts: np.ndarray, table: EpisodeTable) -> dict[str, float]:
        """Every score of the episodes, by name; NaN where nothing was scored.

        Args:
            counts: (E, width) int64.
            table: of the same E episodes, of which there may be none.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement scores(counts, table)")

    def per_class(self, counts: np.ndarray, table: EpisodeTable) -> dict[int, float]:
        """The headline of each class alone, by id in ascending order, of the classes that occur in `table`."""
        rows = {int(c): table.class_id == c for c in np.unique(table.class_id)}
        return {c: self.scores(counts[of_class], table.take(of_class))[self.headline] for c, of_class in rows.items()}


class RegionIoU(Measure):
    """Intersection over union by class.

    Per class, intersection and union are summed over all episodes and only then divided:

        IoU_c  = sum_e I_e / sum_e U_e              over the episodes e of class c
        mIoU   = mean of IoU_c                      over the classes of the set
        FB-IoU = (IoU_foreground + IoU_background) / 2,  with the sums of all classes pooled

    This is never the mean of per-image IoUs. An IoU whose union is empty (all its pixels are 255, or nothing was there
    and nothing was marked) is NaN and left out of the means.
    """

    names = ("miou", "fb_iou")
    columns = ("intersection", "union", "background_intersection", "background_union")
    additive = True

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Measure`."""
        import torch

        check_masks(prediction, target)
        scored = target != IGNORE_INDEX
        truth = target == 1
        both = (prediction & truth).sum((1, 2))
        either = ((prediction | truth) & scored).sum((1, 2))
        total = scored.sum((1, 2))
        # Background is the complement: both say so outside the foreground's union, one does outside its intersection.
        return torch.stack([both, either, total - either, total - both], 1)  # (B, 4)

    def scores(self, counts: np.ndarray, table: EpisodeTable) -> dict[str, float]:
        """See `Measure`."""
        _, sums = class_sums(counts, table)
        inner, outer, background_inner, background_outer = (sum(row[k] for row in sums) for k in range(4))
        return {
            "miou": mean(ratio(row[0], row[1]) for row in sums),
            "fb_iou": mean([ratio(inner, outer), ratio(background_inner, background_outer)]),
        }

    def per_class(self, counts: np.ndarray, table: EpisodeTable) -> dict[int, float]:
        """See `Measure`."""
        classes, sums = class_sums(counts, table)
        return {c: ratio(row[0], row[1]) for c, row in zip(classes, sums, strict=True)}


class JAndF(Measure):
    """Region similarity J and boundary accuracy F of the DAVIS benchmark, semi-supervised.

    J is the IoU of a frame's masks of an object, 1 where both are empty. F is the harmonic mean of the shares of
    predicted and of true boundary pixels that are matched (`boundaries.py`). Both are averaged over the frames of an
    object, then over objects (a class of a clip; of an image, the episode); J&F = (J + F) / 2. Which frames take part
    is the manifest's affair: the official evaluation leaves out the first and the last. Pixels of value 255 are
    background in both masks, as there.
    """

    names = ("j_and_f", "j", "f")
    columns = (
        "intersection",
        "union",
        "predicted_boundary",
        "true_boundary",
        "predicted_boundary_matched",
        "true_boundary_matched",
    )

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Measure`."""
        import torch

        from ldis_lightning.evaluation.boundaries import boundary_counts

        check_masks(prediction, target)
        prediction, truth = prediction & (target != IGNORE_INDEX), target == 1
        both, either = (prediction & truth).sum((1, 2)), (prediction | truth).sum((1, 2))
        return torch.cat([torch.stack([both, either], 1), boundary_counts(prediction, truth)], 1)  # (B, 6)

    def scores(self, counts: np.ndarray, table: EpisodeTable) -> dict[str, float]:
        """See `Measure`."""
        key = table.unit * (1 + table.class_id.max(initial=0)) + table.class_id
        _, objects, frames = np.unique(key, return_inverse=True, return_counts=True)
        j, f = (mean((np.bincount(objects, frame) / frames).tolist()) for frame in self.frame_scores(counts))
        return {"j_and_f": (j + f) / 2, "j": j, "f": f}

    def frame_scores(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """J and F of each episode by itself, (E,) float64 each in [0, 1]."""
        both, either, predicted, true, predicted_matched, true_matched = counts.T
        precision, recall = share(predicted_matched, predicted), share(true_matched, true)
        total = precision + recall
        return share(both, either), 2 * precision * recall / np.where(total > 0, total, 1)


class FalsePositives(Measure):
    """The share of the pixels that are not the concept's and were marked all the same, pooled over the set.

    Meant for queries in which the references' class does not occur: FPR under absence. Lower is better.
    """

    names = ("fpr",)
    columns = ("marked", "scored")
    higher_is_better = False
    additive = True

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Measure`."""
        import torch

        check_masks(prediction, target)
        absent = target == 0
        return torch.stack([(prediction & absent).sum((1, 2)), absent.sum((1, 2))], 1)  # (B, 2)

    def scores(self, counts: np.ndarray, table: EpisodeTable) -> dict[str, float]:
        """See `Measure`."""
        marked, scored = (int(column.sum()) for column in counts.T)
        return {"fpr": ratio(marked, scored)}


def check_masks(prediction: Tensor, target: Tensor) -> None:
    """Raise the ValueError of `Measure.count`."""
    import torch

    if prediction.dtype != torch.bool or prediction.ndim != 3 or prediction.shape != target.shape:
        got = f"{prediction.dtype} {tuple(prediction.shape)} against {tuple(target.shape)}"
        raise ValueError(f"masks to score must be bool predictions (B, H, W) of the target's shape, got {got}")


def sum_by(group: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """Sums of the rows of each group: (E,) in [0, size), (E, width) int64 -> (size, width) int64."""
    sums = np.zeros((counts.shape[1], size), np.int64)
    for column, total in zip(counts.T, sums, strict=True):
        np.add.at(total, group, column)  # one column at a time takes numpy's fast path; bincount would sum floats
    return sums.T


def class_sums(counts: np.ndarray, table: EpisodeTable) -> tuple[list[int], list[list[int]]]:
    """The classes that occur, ascending, and the summed counts of each."""
    episodes = np.bincount(table.class_id)
    classes = np.flatnonzero(episodes)
    return classes.tolist(), sum_by(table.class_id, counts, len(episodes))[classes].tolist()


def ratio(part: int, whole: int) -> float:
    """Exactly rounded, as Python divides integers; NaN for 0 / 0."""
    return part / whole if whole else math.nan


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, float64; 1 where there is nothing to share out."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 1.0)


def mean(values: Iterable[float]) -> float:
    """Mean of what is not NaN, exactly rounded; NaN if nothing is left."""
    values = [value for value in values if not math.isnan(value)]
    return statistics.fmean(values) if values else math.nan
