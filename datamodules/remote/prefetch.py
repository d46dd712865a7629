"""Fetching shards before they are needed."""

import logging
import pickle
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import count
from typing import NamedTuple

from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.mixture import MixturePlan
from ldis_lightning.datamodules.plan import TrainingPlan
from ldis_lightning.datamodules.remote.remote_index import RemoteShardIndex
from ldis_lightning.datamodules.source import Episode
from ldis_lightning.errors import UserError

_log = logging.getLogger(__name__)


class Need(NamedTuple):
    """A shard that a batch reads from."""

    batch: int
    index: ShardIndex
    shard: int


def needs_of_plan(plan: TrainingPlan | MixturePlan, start: int, rank: int = 0, world: int = 1) -> Iterator[Need]:
    """The remote shards that a rank needs for the global batches `start`, `start + 1`, ..., without end, each once a
    batch. Computed as the batches themselves are, so whatever the plan draws from is there."""
    indexes = [catalogue.index for catalogue in plan.catalogues]
    if not any(isinstance(index, RemoteShardIndex) for index in indexes):
        return
    plan = pickle.loads(pickle.dumps(plan))  # a plan remembers its window; this one is not the caller's
    for batch in count(start):
        rows = ((episode.source, row) for episode in plan.batch(batch, rank, world) for row in _rows(episode))
        for source, shard in dict.fromkeys((source, int(indexes[source].shard[row])) for source, row in rows):
            if isinstance(indexes[source], RemoteShardIndex):
                yield Need(batch, indexes[source], shard)


def _rows(episode: Episode) -> tuple[int, ...]:
    return (episode.query, *episode.references)


class Prefetch:
    """Fetches the shards of the coming batches in a thread, as far ahead as is allowed and no further.

    An error is logged and nothing more: the reader meets it too, and knows what to do about it. The thread ends with
    the process. Start it after worker processes were forked.

    Args:
        needs: which shards are needed, in the order of batches.
        ahead: most shards that are fetched for batches that were not reached yet.
        horizon: most batches that are looked ahead.
    """

    def __init__(self, needs: Iterable[Need], ahead: int = 16, horizon: int = 1000) -> None:
        self._needs, self._ahead, self._horizon = needs, ahead, horizon
        self._reached: int | None = None
        self._waiting: deque[int] = deque()  # the batches for which shards were fetched, in order
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="prefetch of shards", daemon=True)
        self._thread.start()

    def reached(self, batch: int) -> None:
        """Tell which batch is being read now."""
        with self._changed:
            self._reached = batch if self._reached is None else max(self._reached, batch)
            while self._waiting and self._waiting[0] <= self._reached:
                self._waiting.popleft()
            self._changed.notify_all()

    def close(self, timeout: float = 0.0) -> None:
        """Stop after the shard that is being fetched; wait for that at most so many seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        recent = OrderedDict[tuple[int, int], None]()  # shards that need no second look
        try:
            for need in self._needs:
                key = (id(need.index), need.shard)
                if not self._wait_for_turn(need.batch, new=key not in recent):
                    return
                if key not in recent:
                    self._fetch(need)
                    recent[key] = None
                recent.move_to_end(key)
                while len(recent) > 2 * self._ahead:
                    recent.popitem(last=False)
        except Exception:  # planning has failed: the workers plan the same
            _log.warning("shards are no longer fetched ahead", exc_info=True)

    def _wait_for_turn(self, batch: int, new: bool) -> bool:
        """Wait until this batch is near enough; False if there is nothing to wait for any more."""
        with self._changed:
            if self._reached is None:
                self._reached = batch - 1
            while not self._closed:
                if batch <= self._reached:
                    return True
                if batch - self._reached <= self._horizon and not (new and len(self._waiting) >= self._ahead):
                    if new:
                        self._waiting.append(batch)
                    return True
                self._changed.wait()
            return False

    def _fetch(self, need: Need) -> None:
        try:
            need.index.shard_file(need.shard)
        except UserError as error:
            _log.warning("not fetched ahead: %s", error)
