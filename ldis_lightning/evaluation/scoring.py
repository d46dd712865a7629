"""From a model's logits to scored episodes: undo the geometry, fuse the concepts of a clip, threshold, count."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldis_lightning.episode import IGNORE_INDEX, ClipBatch, EpisodeBatch, EpisodeMeta
from ldis_lightning.evaluation.fusion import fuse_concepts
from ldis_lightning.evaluation.measures import EpisodeTable, Measure


@dataclass(frozen=True)
class Scoreboard:
    """What is needed to score an evaluation set: its measure, its episodes, and the size to score at."""

    measure: Measure
    table: EpisodeTable
    size: int | None = None
    """Side of the square that predictions and true masks are resized to, in pixels; None for the original size."""


class Counts(NamedTuple):
    """What was counted of some episodes."""

    position: Tensor  # (n,) int64, place of the episode in its manifest; -1: counts nowhere
    counts: Tensor  # (n, width) int64, the measure's columns


def restore_logits(logits: Tensor, content: tuple[int, int, int, int], size: tuple[int, ...]) -> Tensor:
    """Undo a query's geometry: cut the padding off, then resize, bilinear on the logits.

    Args:
        logits: (H, W) or (C, H, W), foreground where > 0.
        content: top, left, height, width of the picture inside the padded square, in pixels.
        size: (H0, W0), usually the original size.

    Returns:
        (H0, W0) or (C, H0, W0) float32.
    """
    top, left, height, width = content
    picture = logits[..., top : top + height, left : left + width].float()
    shape = (-1, 1, height, width)
    restored = F.interpolate(picture.reshape(shape), size=tuple(size), mode="bilinear", align_corners=False)
    return restored.reshape(*logits.shape[:-2], *size)


def score(board: Scoreboard, logits: Tensor, batch: EpisodeBatch | ClipBatch) -> Counts:
    """Count a batch of either kind, see `score_batch` and `score_clip`."""
    return score_clip(board, logits, batch) if "context" in batch else score_batch(board, logits, batch)


def score_batch(board: Scoreboard, logits: Tensor, batch: EpisodeBatch) -> Counts:
    """Count a batch, at the pictures' original sizes or the board's.

    Pictures that all have the size to be scored at are counted in one vectorised step.

    Args:
        board: of the evaluation set that the batch belongs to.
        logits: (B, H, W), foreground where > 0.
        batch: on the device, with `position`; `query_mask_original` and `meta` are read where sizes differ.
    """
    position = torch.where(batch["valid"], batch["position"], -1)  # pyright: ignore[reportTypedDictNotRequiredAccess]
    originals = batch.get("query_mask_original", [])
    sizes = [(board.size, board.size) if board.size else tuple(mask.shape) for mask in originals]
    if all(size == logits.shape[1:] == mask.shape for size, mask in zip(sizes, originals, strict=True)):
        return Counts(position, board.measure.count(logits > 0, batch["query_mask"]))
    counts = torch.zeros(len(position), board.measure.width, dtype=torch.int64, device=logits.device)
    for i, valid in enumerate(batch["valid"].tolist()):
        if valid:
            restored = restore_logits(logits[i], batch["meta"][i]["content"], sizes[i])  # (H0, W0)
            target = resize_mask(originals[i].to(logits.device), sizes[i])
            counts[i] = board.measure.count(restored[None] > 0, target[None])[0]
    return Counts(position, counts)


def score_clip(board: Scoreboard, logits: Tensor, batch: ClipBatch) -> Counts:
    """Count the frames of a clip: concepts are fused (METHOD eq. 7) at the size to be scored at, then each is counted.

    Args:
        board: of the evaluation set that the batch belongs to.
        logits: (F, C, H, W) for each of the C concepts, before fusion.
        batch: on the device.

    Returns:
        F * C entries.
    """
    frames, concepts = logits.shape[:2]
    position = torch.where(batch["valid"][:, None], batch["position"], -1)  # (F, C)
    counts = torch.zeros(frames, concepts, board.measure.width, dtype=torch.int64, device=logits.device)
    for i, scored in enumerate((position >= 0).any(1).tolist()):
        if scored:
            fused, truth = fused_frame(logits[i], batch["meta"][i], batch["labels_original"][i], board.size)
            predicted = concept_masks(fused, concepts) == 1  # (C, H0, W0)
            counts[i] = board.measure.count(predicted, concept_masks(truth, concepts))
    return Counts(position.flatten(), counts.flatten(0, 1))


def concept_masks(labels: Tensor, concepts: int) -> Tensor:
    """The mask of each concept in label maps.

    Args:
        labels: (..., H, W) uint8, coded as in `ClipBatch`: 0 none, 1 .. C the concepts, 255 ignore.
        concepts: C.

    Returns:
        (..., C, H, W) uint8 {0, 1, 255}.
    """
    numbers = torch.arange(1, concepts + 1, device=labels.device)[:, None, None]  # (C, 1, 1)
    labels = labels[..., None, :, :]
    return (labels == numbers).to(torch.uint8).masked_fill_(labels == IGNORE_INDEX, IGNORE_INDEX)


def fused_frame(logits: Tensor, meta: EpisodeMeta, labels: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
    """One frame's prediction and truth at the size to be scored at.

    Args:
        logits: (C, H, W).
        meta: the frame's.
        labels: (H0, W0) uint8, 0 none, 1 .. C the concepts, 255 ignore.
        size: side of the square to score at; None for the original size.

    Returns:
        (H1, W1) twice: the concepts of the pixels after fusion, and their true ones. 0 none, 1 .. C.
    """
    shape = (size, size) if size else (int(labels.shape[0]), int(labels.shape[1]))
    fused = fuse_concepts(restore_logits(logits, meta["content"], shape)[None])[0]
    return fused, resize_mask(labels.to(logits.device), shape)


def resize_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize a mask or label map (H0, W0) uint8 to (H1, W1), nearest; itself where the size is right."""
    if tuple(mask.shape) == tuple(size):
        return mask
    return F.interpolate(mask[None, None].float(), size=tuple(size), mode="nearest")[0, 0].to(mask.dtype)
