"""What an episode is and where episodes come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ldis_lightning.datamodules.pairing import Pairing
from ldis_lightning.datamodules.treatment import ReferenceTreatment


class Episode(NamedTuple):
    """A query, K references of one class and the seed from which everything random about the episode follows."""

    query: int  # row of the index
    references: tuple[int, ...]  # K rows
    class_id: int
    seed: int  # in 0 .. 2**63 - 1
    reference_class: int  # what the references show: `class_id`, unless the treatment is `Swapped`
    source: int = 0  # which data set of a mixture the rows belong to


@dataclass
class EpisodeSource:
    """A data set and the rules by which episodes are drawn from it.

    Args:
        shards: folder of the shards and their index, or its address (https://..., s3://...).
        pairing: which images may be references of a query; null for AcrossImages.
        treatment: what is done to the references; null for Intact.
        classes: class ids to draw; null for all.
        min_pixels: images with fewer pixels of the class are neither query nor reference.
        episodes: at most so many queries, an even, seeded subset; null for all.
        seed: seed of the draws in evaluation, where the training seed has no part, and of the subset that `episodes`
            takes.
    """

    shards: str
    pairing: Pairing | None = None  # not an instance: a saved config could not hold it
    treatment: ReferenceTreatment | None = None
    classes: list[int] | None = None
    min_pixels: int = 1
    episodes: int | None = None
    seed: int = 0


@dataclass
class TrainingSource(EpisodeSource):
    """One data set of a training mixture; otherwise as `EpisodeSource`.

    Args:
        weight: its weight in the mixture, see `Mixing`. Without effect where it is the only one.
        shards: see `EpisodeSource`, as are pairing, treatment, classes, min_pixels, episodes and seed.
    """

    weight: float = 1.0


def uniforms(key: Sequence[int], count: int) -> np.ndarray:
    """(count,) float64 uniform numbers in [0, 1), a pure function of the key.

    Made of raw generator bits, because these are the part of numpy's random numbers that is promised never to change.
    """
    return (raw_bits(key, count) >> np.uint64(11)) * 2.0**-53


def raw_bits(key: Sequence[int], count: int) -> np.ndarray:
    """(count,) uint64 of random bits, a pure function of the key (non-negative integers, the first of them not 0)."""
    return np.random.PCG64(list(key)).random_raw(count)


def even_subset(count: int, wanted: int | None, seed: int) -> np.ndarray:
    """Evenly spaced positions in 0 .. count - 1 with a seeded start; all of them if `wanted` is None or too many."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    start = uniforms((SUBSET, seed), 1)
    return ((np.arange(wanted) + start) * (count / wanted)).astype(np.int64)


# First numbers of the keys of `uniforms`, so that equal seeds of different uses give independent numbers.
TRAINING, EVALUATION, SUBSET, MIXTURE, REFERENCES, SUBSTITUTES = 1, 2, 3, 4, 5, 6
