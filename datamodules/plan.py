"""The episodes of training and of evaluation, as pure functions of an index, the rules of a source and a seed.

Neither depends on ranks, workers or what was drawn before, so that a run can stop, resume and be spread in any way, and
still every global batch holds the same episodes.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.pairing import Frame, Members
from ldis_lightning.datamodules.pools import Catalogue, Pool
from ldis_lightning.datamodules.source import (
    EVALUATION,
    TRAINING,
    Episode,
    EpisodeSource,
    even_subset,
    raw_bits,
    uniforms,
)
from ldis_lightning.errors import UserError

PLAN_VERSION = 1
"""Changes whenever the same seed gives other episodes than before."""


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


class TrainingPlan:
    """Which episodes global batch g holds, for every g.

    An epoch visits every eligible query once: the shards in a seeded order, cut into windows, and within a window its
    queries in a seeded order. References come from the same window where it holds enough of them (at most
    `window_shards` shards need to be at hand), else from the whole class. Position p of the stream, which is
    p = g * batch_size + i, is query p mod n of epoch p div n.

    Args:
        index: the data set.
        source: the rules. Its own seed only chooses the queries where `episodes` limits them.
        seed: seed of the run.
        batch_size: episodes of a global batch, over all ranks.
        references: K, references of an episode.
        window_shards: shards of a window.

    Raises:
        UserError: the source allows no episode.
    """

    def __init__(
        self,
        index: ShardIndex,
        source: EpisodeSource,
        seed: int,
        batch_size: int,
        references: int = 1,
        window_shards: int = 16,
    ) -> None:
        self.index, self.source, self.seed = index, source, seed
        self.batch_size, self.references, self.window_shards = batch_size, references, window_shards
        self.catalogue = Catalogue(index, source)
        self.catalogue.limit_queries(source.episodes)
        self._queries_per_shard = self.catalogue.queries_per_shard()
        self._queries = int(self._queries_per_shard.sum())
        self._window: _Window | None = None

    def __len__(self) -> int:
        """Queries of an epoch."""
        return self._queries

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as the arguments: a worker maps the index again."""
        arguments = (self.index, self.source, self.seed, self.batch_size, self.references, self.window_shards)
        return TrainingPlan, arguments

    def identity(self) -> dict[str, Any]:
        """All that decides the episodes, as plain values. Two plans with equal identities are the same plan."""
        settings = {name: getattr(self, name) for name in ("seed", "batch_size", "references", "window_shards")}
        return {"plan_version": PLAN_VERSION, "index": self.index.hash, **settings, **_prefixed(self.catalogue.rules())}

    def batch(self, number: int, rank: int = 0, world: int = 1) -> list[Episode]:
        """Episodes `rank::world` of a global batch."""
        first = number * self.batch_size
        return [self.episode(position) for position in range(first, first + self.batch_size)[rank::world]]

    def episode(self, position: int) -> Episode:
        """The episode at a position of the endless stream."""
        epoch, offset = divmod(position, self._queries)
        if self._window is None or (epoch, offset) not in self._window:
            self._window = self._open_window(epoch, offset)
        window = self._window
        i = window.order[offset - window.start]
        query, class_id = self.catalogue.frame(int(window.pool.queries[i])), int(window.class_id[i])
        pools = (window.pool.members.__getitem__, window.whole_class)
        shown, references = draw_references(self.catalogue, pools, query, class_id, window.draws, i)
        return Episode(query.row, references, class_id, int(window.draws.seed[i]), shown)

    def _open_window(self, epoch: int, offset: int) -> "_Window":
        key = (TRAINING, self.seed, epoch)
        shards = np.argsort(uniforms((*key, 0), len(self._queries_per_shard)), kind="stable")
        ends = np.cumsum(self._queries_per_shard[shards])
        borders = np.append(ends[self.window_shards - 1 : -1 : self.window_shards], ends[-1])
        number = int(np.searchsorted(borders, offset, side="right"))
        first = number * self.window_shards
        pool = self.catalogue.pool(shards[first : first + self.window_shards])
        key = (*key, 1 + number)
        draws = Draws.of((*key, 1), len(pool.queries), self.references)
        return _Window(
            epoch=epoch,
            start=int(borders[number - 1]) if number else 0,
            pool=pool,
            order=np.argsort(uniforms((*key, 0), len(pool.queries)), kind="stable"),
            class_id=pool.draw_classes(draws.class_choice),
            draws=draws,
            catalogue=self.catalogue,
        )


@dataclass
class _Window:
    """The part of an epoch that some shards hold."""

    epoch: int
    start: int  # offset in the epoch of the first query
    pool: Pool
    order: np.ndarray  # (n,) position in the window -> position in pool.queries, class_id and draws
    class_id: np.ndarray  # (n,)
    draws: Draws
    catalogue: Catalogue
    whole: dict[int, Members] = field(default_factory=dict)

    def __contains__(self, place: tuple[int, int]) -> bool:
        """Whether (epoch, offset in the epoch) lies in the window."""
        epoch, offset = place
        return epoch == self.epoch and self.start <= offset < self.start + len(self.order)

    def whole_class(self, class_id: int) -> Members:
        """All members of a class in the data set, looked up once a window."""
        if class_id not in self.whole:
            self.whole[class_id] = self.catalogue.members(class_id)
        return self.whole[class_id]


class EvaluationPlan:
    """A fixed list of episodes by the paper's protocol (`ldis`): every image that can be a query once, its class
    uniform among its eligible ones, the references uniform among those that the pairing allows.

    The list depends on the data set and the source, its seed included, and on nothing else. An episode stays what it is
    when the list is cut short, and its first references stay when more are asked for.

    Args:
        index: the data set.
        source: the rules.
        references: K, references of an episode.

    Raises:
        UserError: the source allows no episode.
    """

    protocol = "ldis"

    def __init__(self, index: ShardIndex, source: EpisodeSource, references: int = 1) -> None:
        self.index, self.source, self.references = index, source, references
        catalogue = Catalogue(index, source)
        self.rules, self.treatment = catalogue.rules(), catalogue.treatment
        pool = catalogue.pool()
        draws = Draws.of((EVALUATION, source.seed), len(pool.queries), references)
        class_id = pool.draw_classes(draws.class_choice)
        self.episodes: list[Episode] = []
        for i in even_subset(len(pool.queries), source.episodes, source.seed):
            query = catalogue.frame(int(pool.queries[i]))
            pools = (pool.members.__getitem__,)
            shown, rows = draw_references(catalogue, pools, query, int(class_id[i]), draws, i)
            self.episodes.append(Episode(query.row, rows, int(class_id[i]), int(draws.seed[i]), shown))

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    def subset(self, episodes: int | None) -> "EvaluationPlan":
        """The same plan cut to an even, seeded subset of at most so many episodes."""
        part = copy(self)
        part.episodes = [self.episodes[i] for i in even_subset(len(self), episodes, self.source.seed)]
        return part

    @property
    def hash(self) -> str:
        """SHA-256 of the protocol, the data set's hash, the rules and all episodes, in hexadecimal digits."""
        content = [self.protocol, PLAN_VERSION, self.index.hash, self.rules, self.episodes]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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


def _prefixed(rules: dict[str, Any]) -> dict[str, Any]:
    return {f"train.{name}": value for name, value in rules.items()}
