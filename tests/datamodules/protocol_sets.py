"""What the tests of protocols draw from, and with."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chisquare
from tiny_sets import bare_index

from ldis_lightning.datamodules.evaluation_set import EvaluationSource, draw_manifest
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.manifest import Manifest
from ldis_lightning.datamodules.protocols import Protocol

COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
"""COCO's 80 ids have gaps: folds count classes, not ids."""


def classed(ids: Sequence[int]) -> dict[int, str]:
    return {i: f"thing {i}" for i in ids}


def random_contents(ids: Sequence[int], count: int) -> list[list[int]]:
    """Each class in at least two images, some images of several classes, and some of none."""
    generator = np.random.default_rng(3)
    contents = [[i] for i in ids] * 2
    contents += [generator.choice(ids, generator.integers(0, 4), replace=False).tolist() for _ in range(count)]
    return contents


def like_coco(folder: Path) -> ShardIndex:
    """460 images of 80 classes."""
    return bare_index(folder, random_contents(COCO_IDS, 300), classes=classed(COCO_IDS))


def like_pascal(folder: Path) -> ShardIndex:
    """140 images of 20 classes."""
    return bare_index(folder, random_contents(range(1, 21), 100), classes=classed(range(1, 21)))


def drawn(index: ShardIndex, protocol: Protocol, k: int = 1, **rules: Any) -> Manifest:
    """The episodes of a set, in a datamodule of so many references."""
    return draw_manifest(index, EvaluationSource(str(index.folder), protocol=protocol, **rules), k)


def classes_of(index: ShardIndex, row: int) -> list[int]:
    return index.classes_of_row(row)[0].tolist()


def assert_uniform(counts: Counter, values: int) -> None:
    """A chi-squared test, of draws that are always the same ones."""
    found = list(counts.values())
    assert len(found) == values
    assert chisquare(found).pvalue > 1e-3
