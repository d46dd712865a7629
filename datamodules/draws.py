"""The random numbers of episodes, and the references that they choose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ldis_lightning.datamodules.pairing import Frame, Members
from ldis_lightning.datamodules.pools import Catalogue
from ldis_lightning.datamodules.source import raw_bits, uniforms
from ldis_lightning.errors import UserError


@dataclass(frozen=True)
class Draws:
    """The random numbers of n episodes. Those of the first references stay the same when more are asked for."""

    class_choice: np.ndarray  # (n,) in [0, 1)
    shown_choice: np.ndarray  # (n,)
    reference_choice: np.ndarray  # (n, K)
    seed: np.ndarray  # (n,) int64, not negative

    @classmethod
    def of(cls, key: tuple[int, ...], count: int, references: int) -> "Draws":
        """The numbers that belong to a key."""
        columns = [uniforms((*key, 3 + k), count) for k in range(references)]
        seed = (raw_bits((*key, 2), count) >> np.uint64(1)).astype(np.int64)
        return cls(uniforms((*key, 0), count), uniforms((*key, 1), count), np.stack(columns, axis=1), seed)


def draw_references(
    catalogue: Catalogue,
    pools: Sequence[Callable[[int], Members]],
    query: Frame,
    class_id: int,
    draws: Draws,
    i: int,
) -> tuple[int, tuple[int, ...]]:
    """The class that the references of episode i show, and their K rows.

    They are drawn from the first pool with K candidates, else from the last one. Where that has fewer than K, all of
    them are taken and then repeated in the same order.

    Args:
        catalogue: the data set and the rules.
        pools: functions class -> members, the preferred one first and the whole class last.
        query: the query.
        class_id: its class.
        draws: the random numbers.
        i: which of them.

    Raises:
        UserError: the treatment wants another class and none has a candidate.
    """
    for shown in catalogue.treatment.shown_classes(class_id, catalogue.classes, float(draws.shown_choice[i])):
        for pool in pools:
            candidates = catalogue.pairing.candidates(query, pool(shown))
            if len(candidates) >= draws.reference_choice.shape[1] or (len(candidates) and pool is pools[-1]):
                return shown, choose(candidates, draws.reference_choice[i])
    raise UserError(
        f"{catalogue.source.shards}: {catalogue.index.key(query.row)} has no reference of another class to show "
        f"under these rules: {catalogue.rules()}. Take another pairing, more classes, or the treatment Intact."
    )


def choose(candidates: np.ndarray, draws: np.ndarray) -> tuple[int, ...]:
    """K different candidates, uniformly (the first K steps of a Fisher-Yates shuffle); fewer than K are repeated in
    order.

    Args:
        candidates: (m,) rows, m >= 1.
        draws: (K,) uniform numbers in [0, 1).
    """
    moved: dict[int, int] = {}
    chosen = []
    for i, draw in enumerate(draws[: len(candidates)].tolist()):
        j = min(i + int(draw * (len(candidates) - i)), len(candidates) - 1)
        chosen.append(int(candidates[moved.get(j, j)]))
        moved[j] = moved.get(i, i)
    return tuple(chosen[k % len(chosen)] for k in range(len(draws)))
