"""The batch contract between the data side and the model side."""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

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
    query_mask_original: NotRequired[list[Tensor]]  # evaluation only: B masks (H0, W0) uint8 at the original size
