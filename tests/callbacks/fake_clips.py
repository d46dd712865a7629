"""Clips as the model's step sees them, with the predictions it would return."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldis_lightning.episode import EpisodeMeta, FirstFrame

SIZE = 8
"""Side of the model's square; the picture fills its upper half."""


def make_step(
    clip: str,
    frames: Sequence[int],
    *,
    first: int | None = None,
    padding: int = 0,
    names: Sequence[str] = ("cat", "dog"),
    values: Sequence[int] = (3, 7),
    original: tuple[int, int] = (10, 20),
    context: str = "",
) -> dict[str, Any]:
    """A step of F = frames + padding frames; `first` is the number of the frame that prompts the clip."""
    count, concepts = len(frames) + padding, len(names)
    numbers = [*frames, *[-1] * padding]
    step: dict[str, Any] = {
        "query_image": torch.zeros(count, 3, SIZE, SIZE),
        "reference_image": torch.zeros(concepts, 1, 3, SIZE, SIZE),
        "reference_mask": torch.zeros(concepts, 1, SIZE, SIZE, dtype=torch.uint8),
        "class_id": torch.tensor(values),
        "position": torch.zeros(count, concepts, dtype=torch.int64),
        "seed": torch.zeros(count, concepts, dtype=torch.int64),
        "valid": torch.tensor([True] * len(frames) + [False] * padding),
        "labels": torch.zeros(count, SIZE, SIZE, dtype=torch.uint8),
        "labels_original": [torch.zeros(original, dtype=torch.uint8)] * count,
        "meta": [
            EpisodeMeta(
                dataset="fake", query_key=f"{clip}.{number:05d}", reference_keys=[], class_name="", clip=clip,
                frame=number, original_size=original, content=(0, 0, SIZE // 2, SIZE),
            )
            for number in numbers
        ],
        "class_names": list(names),
        "label_values": list(values),
        "context": context or f"context of {clip}",
    }  # fmt: skip
    if first is not None:
        step["first_frame"] = first_frame(first, original)
    return step


def first_frame(frame: int, original: tuple[int, int]) -> FirstFrame:
    """Its upper half is the first concept; the last row is ignored."""
    labels = np.zeros(original, np.uint8)
    labels[: original[0] // 2] = 1
    labels[-1] = 255
    return FirstFrame(image=np.full((*original, 3), 200, np.uint8), labels=labels, key="", frame=frame)


def halves(step: dict[str, Any]) -> dict[str, Tensor]:
    """Logits (F, C, H, W): the first concept left, the second right, in the lower half of the picture."""
    logits = torch.full((len(step["valid"]), len(step["class_names"]), SIZE, SIZE), -5.0)
    logits[:, 0, :, : SIZE // 2] = 5.0
    logits[:, 1:2, SIZE // 4 :, SIZE // 2 :] = 5.0
    return {"logits": logits}


def clip_steps(clip: str, frames: int, per_step: int, **options: Any) -> Iterator[dict[str, Any]]:
    """A clip whose frame 0 is the prompt and whose frames 1, 2, ... come in steps; the last is padded."""
    for start in range(1, frames + 1, per_step):
        numbers = range(start, min(start + per_step, frames + 1))
        prompt = 0 if start == 1 else None
        yield make_step(clip, numbers, first=prompt, padding=per_step - len(numbers), **options)
