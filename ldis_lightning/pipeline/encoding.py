"""From what a user gives as references to the concepts that they show."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.fusion import MAX_CONCEPTS
from ldis_lightning.imaging.pictures import check_same_size
from ldis_lightning.imaging.squares import fit_square, keep_concept, to_model_range
from ldis_lightning.pipeline.inputs import PictureLike, Pixels, name_of, read_labels, read_mask, read_picture

Several: TypeAlias = "PictureLike | Sequence[PictureLike]"


class Concept(NamedTuple):
    """A concept and its K references."""

    name: str  # "" where none was given
    references: list[tuple[Pixels, Pixels]]  # picture (H, W, 3) uint8 and mask (H, W) uint8 in {0, 1}


def read_concepts(
    references: Several | Mapping[str, tuple[Several, Several]],
    masks: Several | None,
    names: Mapping[int, str] | None,
) -> list[Concept]:
    """The concepts of the arguments of `InContextSegmentationPipeline.encode`.

    Raises:
        UserError: something is missing, cannot be read, or does not fit.
    """
    if isinstance(references, Mapping):
        if masks is not None or names is not None:
            raise UserError("encode: a dict of concepts holds their masks: give no `masks` or `names` beside it.")
        concepts = [_named(name, pair) for name, pair in references.items()]
    elif masks is None:
        raise UserError("encode: `masks` are missing: give a mask for each reference.")
    elif names is not None:
        concepts = _of_labels(references, masks, names)
    else:
        concepts = [_concept("", references, masks)]
    if not 1 <= len(concepts) <= MAX_CONCEPTS:
        raise UserError(f"encode: 1 to {MAX_CONCEPTS} concepts can be told apart, got {len(concepts)}.")
    return concepts


def _named(name: Any, pair: Any) -> Concept:
    if not isinstance(name, str) or not name:
        raise UserError(f"encode: a concept is named by a text, not by {name!r}.")
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError(f"encode: concept `{name}` needs (references, masks).")
    return _concept(name, *pair)


def _concept(name: str, references: Several, masks: Several) -> Concept:
    where = f" of {name}" if name else ""
    read = []
    for number, (reference, mask) in enumerate(_pairs(references, masks, where), start=1):
        picture = read_picture(reference, f"reference {number}{where}")
        called = name_of(mask, f"mask {number}{where}")
        marked = read_mask(mask, called)
        check_same_size(picture.shape[:2], marked.shape, called)
        read.append((picture, marked))
    return Concept(name, read)


def _of_labels(references: Several, masks: Several, names: Mapping[int, str]) -> list[Concept]:
    """The concepts of label maps. Those of a reference are the ones that its map shows."""
    found: dict[int, list[tuple[Pixels, Pixels]]] = {label: [] for label in names}
    for number, (reference, mask) in enumerate(_pairs(references, masks, ""), start=1):
        picture, called = read_picture(reference, f"reference {number}"), name_of(mask, f"label map {number}")
        labels: NDArray[np.integer] = read_labels(mask, called)
        check_same_size(picture.shape[:2], labels.shape, called)
        for label, shown in found.items():
            if (labels == label).any():
                shown.append((picture, (labels == label).astype(np.uint8)))
    for label, shown in found.items():
        if not shown:
            raise UserError(f"encode: no label map shows the label {label} ({names[label]}).")
    return [Concept(names[label], shown) for label, shown in found.items()]


def _pairs(references: Several, masks: Several, where: str) -> list[tuple[PictureLike, PictureLike]]:
    pictures, marks = as_list(references), as_list(masks)
    if not pictures or len(pictures) != len(marks):
        raise UserError(
            f"encode: {len(pictures)} references and {len(marks)} masks{where}: give a mask for each reference."
        )
    return list(zip(pictures, marks, strict=True))


def as_list(several: Any) -> list[Any]:
    """One picture, or several in a list or tuple, as a list."""
    if isinstance(several, str | os.PathLike | Image.Image | np.ndarray | Tensor):
        return [several]
    if isinstance(several, Sequence):
        return list(several)
    raise UserError(f"a picture or a list of them is needed, got a {type(several).__name__}.")


def reference_squares(concept: Concept, size: int) -> tuple[Tensor, Tensor]:
    """References as the model sees them in evaluation.

    Args:
        concept: with K references.
        size: side of the square, in pixels.

    Returns:
        images (1, K, 3, size, size) in [-1, 1], masks (1, K, size, size) uint8 in {0, 1}.
    """
    images, masks = [], []
    for picture, mask in concept.references:
        crop = fit_square(mask.shape, size)
        images.append(torch.from_numpy(crop.image(picture, size).copy()).permute(2, 0, 1))
        masks.append(torch.from_numpy((keep_concept(crop, mask, 1, size) == 1).astype(np.uint8)))
    return to_model_range(torch.stack(images))[None], torch.stack(masks)[None]
