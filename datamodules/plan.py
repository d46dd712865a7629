"""The episodes of training, as a pure function of an index, the rules of a source and a seed.

They do not depend on ranks, workers or what was drawn before, so that a run can stop, resume and be spread in any way,
and still every global batch holds the same episodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ldis_lightning.datamodules.draws import Draws, choose, draw_references
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.pairing import Members
from ldis_lightning.datamodules.pools import Catalogue, Pool, pick
from ldis_lightning.datamodules.source import SUBSTITUTES, TRAINING, Episode, EpisodeSource, uniforms

PLAN_VERSION = 1
"""Changes whenever the same seed gives other episodes than before."""

NEAR_SUBSTITUTES = 3
"""As many substitutes of an episode come from its own window, whose shards are at hand."""

_KEPT_CLASSES = 256


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

    @property
    def catalogues(self) -> list[Catalogue]:
        """The data set, at the place that `Episode.source` gives: 0."""
        return [self.catalogue]

    def batch(self, number: int, rank: int = 0, world: int = 1) -> list[Episode]:
        """Episodes `rank::world` of a global batch."""
        first = number * self.batch_size
        return [self.episode(position) for position in range(first, first + self.batch_size)[rank::world]]

    def episode(self, position: int) -> Episode:
        """The episode at a position of the endless stream."""
        window, i = self._place(position)
        return self._episode(window, int(window.pool.queries[i]), int(window.class_id[i]), window.draws, i)

    def substitute(self, position: int, attempt: int) -> Episode:
        """The episode that takes the place of the one at a position, where that one cannot be read.

        Its query is drawn uniformly, from the same window at the first attempts and then from the whole epoch, and is
        neither query nor reference of the episode at the position where there is any other. All else is drawn anew, by
        the same rules.

        Args:
            position: of the stream.
            attempt: 1, 2, ..., as substitutes may be damaged too. Those of a window have different queries, as have
                those of the epoch, as far as there are enough.
        """
        if attempt < 1:
            raise ValueError(f"attempt is {attempt}, and must be 1 or more")
        damaged, (window, _) = self.episode(position), self._place(position)
        key = (SUBSTITUTES, self.seed, position)
        rows = window.pool.queries if attempt <= NEAR_SUBSTITUTES else self.catalogue.queries()
        others = _without(_without(rows, [damaged.query]), damaged.references)
        query = choose(others, uniforms((*key, 0), attempt))[-1]
        draws = Draws.of((*key, attempt), 1, self.references)
        classes = self.catalogue.classes_of_query(query)
        class_id = int(classes[pick(draws.class_choice[0], len(classes))])
        return self._episode(window, query, class_id, draws, 0)

    def _episode(self, window: "_Window", query: int, class_id: int, draws: Draws, i: int) -> Episode:
        """The episode of a query and a class, with entry i of the draws."""
        pools = (window.pool.members.__getitem__, window.whole_class)
        frame = self.catalogue.frame(query)
        shown, references = draw_references(self.catalogue, pools, frame, class_id, draws, i)
        return Episode(query, references, class_id, int(draws.seed[i]), shown)

    def _place(self, position: int) -> tuple["_Window", int]:
        """The window that a position lies in, and which of its queries is there."""
        epoch, offset = divmod(position, self._queries)
        if self._window is None or (epoch, offset) not in self._window:
            self._window = self._open_window(epoch, offset)
        return self._window, int(self._window.order[offset - self._window.start])

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
        """All members of a class in the data set; those of the last classes asked for are kept."""
        if class_id not in self.whole:
            if len(self.whole) >= _KEPT_CLASSES:
                self.whole.clear()
            self.whole[class_id] = self.catalogue.members(class_id)
        return self.whole[class_id]


def _without(rows: np.ndarray, unwanted: Sequence[int]) -> np.ndarray:
    """The rows without some, or all of them if none would be left."""
    others = rows[~np.isin(rows, unwanted)]
    return others if len(others) else rows


def _prefixed(rules: dict[str, Any]) -> dict[str, Any]:
    return {f"train.{name}": value for name, value in rules.items()}
