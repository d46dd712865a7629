"""Class-wise IoU over a set of episodes: mIoU and FB-IoU, as summed int64 pixel counts."""

import functools
import math
import statistics
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ldis_lightning.episode import IGNORE_INDEX


@dataclass(frozen=True)
class SetResult:
    """What one evaluation set came to. IoUs lie in [0, 1]; NaN where nothing was scored."""

    miou: float
    fb_iou: float
    episodes: int
    """Episodes scored; padding (`valid=False`) is not among them."""
    per_class: dict[int, float]
    """IoU by class id, of every class scored in at least one episode, ids ascending."""


class EpisodeIoU(Metric):
    """mIoU and FB-IoU of one evaluation set.

    Per class, intersection and union are summed over all episodes and only then divided:

        IoU_c  = sum_e I_e / sum_e U_e              over the episodes e of class c
        mIoU   = mean of IoU_c                      over the classes scored in at least one episode
        FB-IoU = (IoU_foreground + IoU_background) / 2,  with the sums of all classes pooled

    This is never the mean of per-image IoUs. The sums are int64, so any split over batches and ranks gives the same
    result to the last bit. Pixels of value 255 and episodes with `valid=False` count nowhere. An IoU whose union is
    empty (all its pixels are 255, or nothing was there and nothing was marked) is NaN and left out of the means.

    `compute`, `result` and `per_class` gather over ranks: call them on all ranks or on none.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    intersection: Tensor  # (num_classes, 2) int64; the last axis is foreground, background
    union: Tensor  # (num_classes, 2) int64
    episodes: Tensor  # (num_classes,) int64

    def __init__(self, num_classes: int = 256, **kwargs: Any) -> None:
        """`num_classes`: class ids lie in [0, num_classes). Other arguments: see `torchmetrics.Metric`."""
        super().__init__(**kwargs)
        for name in ("intersection", "union"):
            self.add_state(name, torch.zeros(num_classes, 2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("episodes", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, class_id: int | Tensor, valid: Tensor | None = None) -> None:
        """Add one episode of any size, or B of equal size, without host-device synchronisation.

        Args:
            prediction: (H, W) or (B, H, W) bool, True where the concept is predicted.
            target: the same shape, uint8: 1 the concept, 0 not, 255 ignore.
            class_id: the episode's class, or (B,) int64.
            valid: (B,) bool, False for padding; None means that all are valid.

        Raises:
            ValueError: `prediction` is not bool or differs from `target` in shape.
        """
        if prediction.dtype != torch.bool or prediction.shape != target.shape:
            got = f"{prediction.dtype} {tuple(prediction.shape)} against {tuple(target.shape)}"
            raise ValueError(f"EpisodeIoU needs bool predictions of the target's shape, got {got}")
        height, width = target.shape[-2:]
        prediction, target = prediction.reshape(-1, height, width), target.reshape(-1, height, width)
        device = self.episodes.device
        class_id = torch.as_tensor(class_id, device=device).view(-1)
        valid = torch.ones_like(class_id, dtype=torch.bool) if valid is None else valid
        class_id = torch.where(valid, class_id, 0)  # padding may carry any id
        intersection, union = count_pixels(prediction, target)  # (B, 2) each
        # Out of place: a state made under inference mode could not be written to outside of it.
        self.intersection = self.intersection.index_add(0, class_id, intersection * valid[:, None])
        self.union = self.union.index_add(0, class_id, union * valid[:, None])
        self.episodes = self.episodes.index_add(0, class_id, valid.to(torch.int64))

    def update_batch(self, prediction: Tensor, target: Tensor, class_id: Tensor, valid: Tensor) -> None:
        """Add B episodes of equal size: `update` with all of its arguments."""
        self.update(prediction, target, class_id, valid)

    def compute(self) -> dict[str, Tensor]:
        """`{"miou": ..., "fb_iou": ...}`, float32 scalars in [0, 1]; NaN where nothing was scored."""
        result = self._summarise()
        return {name: torch.tensor(getattr(result, name), device=self.episodes.device) for name in ("miou", "fb_iou")}

    def result(self) -> SetResult:
        """Everything about the set, as plain numbers, summed over all ranks."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._summarise()

    def per_class(self) -> dict[int, float]:
        """IoU by class id, of every class scored in at least one episode."""
        return self.result().per_class

    def _summarise(self) -> SetResult:
        """The result of the sums as they are now, on the host: Python divides integers exactly rounded."""
        intersection, union = self.intersection.tolist(), self.union.tolist()
        episodes = self.episodes.tolist()
        per_class = {c: _ratio(intersection[c][0], union[c][0]) for c, count in enumerate(episodes) if count}
        pooled = [_ratio(sum(row[k] for row in intersection), sum(row[k] for row in union)) for k in (0, 1)]
        return SetResult(_mean(per_class.values()), _mean(pooled), sum(episodes), per_class)

    def _wrap_compute(self, compute: Callable) -> Callable:
        """An empty set, or a rank without a share, is normal here: do not warn that `compute` came before `update`."""
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(wrapped)
        def quiet(*args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
                return wrapped(*args, **kwargs)

        return quiet


def count_pixels(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels in intersection and union, of foreground and background.

    Args:
        prediction: (B, H, W) bool.
        target: (B, H, W) uint8 in {0, 1, 255}; 255 counts nowhere.

    Returns:
        intersection and union, (B, 2) int64 each: column 0 foreground, column 1 background.
    """
    scored = target != IGNORE_INDEX
    truth = target == 1
    both = (prediction & truth).sum((1, 2))
    either = ((prediction | truth) & scored).sum((1, 2))
    total = scored.sum((1, 2))
    # Background is the complement: both masks say so outside the foreground's union, one does outside its intersection.
    return torch.stack([both, total - either], 1), torch.stack([either, total - both], 1)


def _ratio(intersection: int, union: int) -> float:
    return intersection / union if union else math.nan


def _mean(values: Iterable[float]) -> float:
    """Mean of what is not NaN, exactly rounded, NaN if nothing is left."""
    values = [value for value in values if not math.isnan(value)]
    return statistics.fmean(values) if values else math.nan
