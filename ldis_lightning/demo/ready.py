"""Ready examples: scenes of the synthetic world, drawn when they are asked for."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldis_lightning.demo.session import Query, Reference
from ldis_lightning.demo.uploads import read_query
from ldis_lightning.examples import write_example
from ldis_lightning.pipeline.inputs import Pixels, read_labels, read_mask, read_picture

QUERIES = 4


@dataclass(frozen=True)
class Example:
    """What a click on an example loads.

    Attributes:
        draft: the picture that is painted on.
        painted: (H, W), what is painted there.
        references: beside it.
        queries: where to look.
    """

    draft: Pixels
    painted: NDArray[np.bool_]
    references: list[Reference]
    queries: list[Query]


@cache
def pictures() -> Example:
    """A reference and four pictures."""
    return _drawn(seed=0)


@cache
def several() -> Example:
    """Two references of one concept, and four pictures."""
    return _drawn(seed=1, references=2)


@cache
def clip() -> Example:
    """A reference and a clip."""
    return _drawn(seed=2, moving=True)


def _drawn(seed: int, references: int = 1, moving: bool = False) -> Example:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_example(folder, QUERIES + references - 1, seed)
        names = ["clip.mp4"] if moving else [f"query-{n}.png" for n in range(references, QUERIES + references)]
        others = [
            Reference(
                read_picture(folder / f"query-{n}.png"), (read_labels(folder / f"truth-{n}.png") == 1).astype(np.uint8)
            )
            for n in range(1, references)
        ]
        return Example(
            read_picture(folder / "reference.png"),
            read_mask(folder / "mask.png") == 1,
            others,
            [read_query(str(folder / name)) for name in names],
        )
