"""The batch contract between the data side and the model side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, final

if TYPE_CHECKING:  # the data commands read `IGNORE_INDEX` and should not wait for torch
    from torch import Tensor

IGNORE_INDEX = 255
"""Mask value of pixels that count nowhere. Inside a reference they are treated as background."""


class EpisodeMeta(TypedDict):
    """Where an episode came from and how to undo its geometry. Sizes are (height, width) in pixels."""

    dataset: str
    query_key: str
    reference_keys: list[str]
    class_name: str
    clip: str  # "" where the query is not a frame of a clip
    frame: int  # -1 where the query is not a frame of a clip
    original_size: tuple[int, int]
    content: tuple[int, int, int, int]  # top, left, height, width of the picture inside the padded square


@final  # so that type checkers can tell the two apart by their keys
class EpisodeBatch(TypedDict):
    """B episodes, each a query and K references of one class.

    Images are uint8 in [0, 255] on the host. `EpisodeDataModule.on_after_batch_transfer` makes them float32 in [-1, 1]
    on the device, which is what every module of the model side expects. Masks stay uint8: 1 the concept, 0 not, 255
    ignore.
    """

    query_image: Tensor  # (B, 3, H, W)
    query_mask: Tensor  # (B, H, W) uint8
    reference_image: Tensor  # (B, K, 3, h, w)
    reference_mask: Tensor  # (B, K, h, w) uint8
    class_id: Tensor  # (B,) int64
    valid: Tensor  # (B,) bool, False = padding, counted nowhere
    seed: Tensor  # (B,) int64, the episode's own: everything random about it follows from it
    meta: list[EpisodeMeta]
    position: NotRequired[Tensor]  # evaluation only: (B,) int64, place in the set's manifest
    query_mask_original: NotRequired[list[Tensor]]  # evaluation only: B masks (H0, W0) uint8 at the original size
    damaged: NotRequired[list[Any]]  # samples that were replaced; the training loader takes it out


class FirstFrame(TypedDict):
    """The frame that prompts a clip, on the host."""

    image: Any  # (H0, W0, 3) uint8 numpy
    labels: Any  # (H0, W0) uint8 numpy, coded as in `ClipBatch`
    key: str
    frame: int


@final
class ClipBatch(TypedDict):
    """F successive frames of one clip, each to be searched for the same C concepts; evaluation and prediction only.

    Label maps are coded 0 none, 1 .. C the concepts in order, 255 ignore. The steps of a clip follow each other on one
    rank, and all of them carry the clip's references.
    """

    query_image: Tensor  # (F, 3, H, W), as in `EpisodeBatch`
    reference_image: Tensor  # (C, K, 3, h, w)
    reference_mask: Tensor  # (C, K, h, w) uint8
    class_id: Tensor  # (C,) int64
    position: Tensor  # (F, C) int64, place in the set's manifest; -1: not scored
    seed: Tensor  # (F, C) int64
    valid: Tensor  # (F,) bool, False = padding
    labels: Tensor  # (F, H, W) uint8, at the model's size
    labels_original: list[Tensor]  # F label maps (H0, W0) uint8
    meta: list[EpisodeMeta]  # F, of the frames
    class_names: list[str]  # C
    label_values: list[int]  # C: the data set's own label of each concept
    context: str  # equal for two steps just where their references are: what was computed from them may be reused
    first_frame: NotRequired[FirstFrame]  # in a clip's first step
    images_original: NotRequired[list[Any]]  # prediction only: F pictures (H0, W0, 3) uint8 numpy, on the host


def is_clip_batch(batch: EpisodeBatch | ClipBatch) -> bool:
    """Whether a batch is a `ClipBatch`. Type checkers learn the same from `"context" in batch`."""
    return "context" in batch
