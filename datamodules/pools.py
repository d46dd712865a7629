"""From a data set's index to its queries, their classes and those who can answer them."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.pairing import AcrossImages, Frame, Members
from ldis_lightning.datamodules.source import EpisodeSource, even_subset
from ldis_lightning.datamodules.treatment import Intact
from ldis_lightning.errors import UserError


@dataclass(frozen=True)
class Pool:
    """What some shards hold: rows that may be queries, the classes each may be asked for, the members of each class."""

    queries: np.ndarray  # (n,) int64 rows, ascending
    class_offset: np.ndarray  # (n + 1,) int64: query -> its entries in class_id
    class_id: np.ndarray  # int64
    members: dict[int, Members]

    def draw_classes(self, draws: np.ndarray) -> np.ndarray:
        """A class for every query, uniform among its eligible ones.

        Args:
            draws: (n,) uniform numbers in [0, 1).

        Returns:
            (n,) int64.
        """
        counts = np.diff(self.class_offset)
        return self.class_id[self.class_offset[:-1] + pick(draws, counts)]


class Catalogue:
    """The part of a data set that a source may use.

    Holds one byte for every row and one for every (row, class) pair; rows and pixel counts stay in the mapped index.

    Args:
        index: the data set.
        source: the rules.

    Raises:
        UserError: a class of the source does not exist, or a number is out of range.
    """

    def __init__(self, index: ShardIndex, source: EpisodeSource) -> None:
        self.index, self.source = index, source
        for name, least in {"min_pixels": 1, "episodes": 1, "seed": 0}.items():
            value = getattr(source, name)
            if value is not None and value < least:
                raise UserError(f"{source.shards}: `{name}` is {value}, and must be {least} or more.")
        self.pairing, self.treatment = source.pairing or AcrossImages(), source.treatment or Intact()
        unknown = sorted(set(source.classes or ()) - set(index.classes))
        if unknown:
            raise UserError(f"{source.shards}: classes {unknown} do not exist; it has {_named(index.classes)}.")
        self.classes = sorted(index.classes if source.classes is None else set(source.classes))
        self._shard_start = np.searchsorted(
            index.shard, np.arange(len(index.shard_paths) + 1)
        )  # rows are in shard order
        self._eligible = {class_id: self._eligible_entries(class_id) for class_id in self.classes}
        self._is_query = np.zeros(len(index), dtype=bool)
        for class_id, eligible in self._eligible.items():
            self._is_query[index.rows_of_class(class_id)[eligible]] = True

    def rules(self) -> dict[str, Any]:
        """The rules without the folder, as plain values: what a checkpoint and a manifest record."""
        rules = {
            field.name: getattr(self.source, field.name) for field in fields(EpisodeSource) if field.name != "shards"
        }
        return rules | {"pairing": describe(self.pairing), "treatment": describe(self.treatment)}

    def limit_queries(self, wanted: int | None) -> None:
        """Keep only an even, seeded subset of the queries. References are still drawn from all rows.

        Raises:
            UserError: no row can be a query.
        """
        self._require_queries()
        rows = np.flatnonzero(self._is_query)
        self._is_query[:] = False
        self._is_query[rows[even_subset(len(rows), wanted, self.source.seed)]] = True

    def queries_per_shard(self) -> np.ndarray:
        """(shards,) int64."""
        total = np.concatenate([[0], np.cumsum(self._is_query)])
        return np.diff(total[self._shard_start])

    def frame(self, row: int) -> Frame:
        """A row with its place in a clip."""
        return Frame(row, int(self.index.clip[row]), int(self.index.frame[row]))

    def members(self, class_id: int) -> Members:
        """All rows that hold enough of a class."""
        return self._as_members(self.index.rows_of_class(class_id)[self._usable(class_id, slice(None))])

    def pool(self, shards: np.ndarray | None = None) -> Pool:
        """What some shards hold (None: all of them). Time and memory grow with them, not with the data set.

        Raises:
            UserError: no row of the data set can be a query.
        """
        self._require_queries()
        shards = np.arange(len(self.index.shard_paths)) if shards is None else np.sort(shards)
        start, end = self._shard_start[shards], self._shard_start[shards + 1]
        members, query_rows, query_classes = {}, [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for class_id in self.classes:
            rows = self.index.rows_of_class(class_id)
            entries = _ranges(np.searchsorted(rows, start), np.searchsorted(rows, end))
            rows = rows[entries]
            queries = rows[self._eligible[class_id][entries] & self._is_query[rows]]
            members[class_id] = self._as_members(rows[self._usable(class_id, entries)])
            query_rows.append(queries)
            query_classes.append(np.full(len(queries), class_id, np.int64))
        rows, classes = np.concatenate(query_rows), np.concatenate(query_classes)
        order = np.argsort(rows, kind="stable")
        queries, first = np.unique(rows[order], return_index=True)
        return Pool(queries, np.append(first, len(rows)), classes[order], members)

    def _require_queries(self) -> None:
        if not self._is_query.any():
            raise UserError(
                f"{self.source.shards}: no image can be a query, as none has a reference under these rules: "
                f"{self.rules()}"
            )

    def _usable(self, class_id: int, entries: np.ndarray | slice) -> np.ndarray:
        return self.index.pixels(class_id)[entries] >= self.source.min_pixels

    def _eligible_entries(self, class_id: int) -> np.ndarray:
        usable = self._usable(class_id, slice(None))
        usable[usable] = self.pairing.eligible(self.members(class_id))
        return usable

    def _as_members(self, rows: np.ndarray) -> Members:
        return Members(rows, self.index.clip[rows], self.index.frame[rows])


def pick(draws: np.ndarray, counts: np.ndarray | int) -> np.ndarray:
    """Uniform numbers in [0, 1) -> uniform integers in 0 .. counts - 1. The minimum guards against rounding up."""
    return np.minimum((draws * counts).astype(np.int64), np.asarray(counts) - 1)


def describe(component: object) -> str:
    """A component with its settings, e.g. `Hidden()`."""
    settings = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(component).items()))
    return f"{type(component).__qualname__}({settings})"


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """All integers of the half-open ranges, one range after the other."""
    lengths = last - first
    return np.arange(lengths.sum()) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)


def _named(classes: dict[int, str]) -> str:
    names = [f"{number} ({name})" for number, name in sorted(classes.items())]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
