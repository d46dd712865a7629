"""From a data set's index to its queries, their classes and those who can answer them."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ldis_lightning.datamodules.index import LABELS, ShardIndex
from ldis_lightning.datamodules.pairing import AcrossImages, Frame, Members
from ldis_lightning.datamodules.source import EpisodeSource, even_subset
from ldis_lightning.datamodules.treatment import Intact
from ldis_lightning.errors import UserError


class ClassMembers:
    """The members of each class among some rows; those of a class are put together when they are first asked for.

    Args:
        index: the data set.
        rows: (n,) int64, ascending; a row as often as it has classes.
        class_id: (n,) the class of each.
    """

    def __init__(self, index: ShardIndex, rows: np.ndarray, class_id: np.ndarray) -> None:
        order = np.argsort(class_id, kind="stable")
        self._index, self._rows, self._class_id = index, rows[order], class_id[order]
        self._members: dict[int, Members] = {}

    def __getitem__(self, class_id: int) -> Members:
        """The members of a class; none where no row shows it."""
        if class_id not in self._members:
            borders = np.array((class_id, class_id + 1), self._class_id.dtype)  # else all of them would be converted
            first, last = np.searchsorted(self._class_id, borders)
            self._members[class_id] = members_of(self._index, self._rows[first:last])
        return self._members[class_id]


@dataclass(frozen=True)
class Pool:
    """What some shards hold: rows that may be queries, the classes each may be asked for, the members of each class."""

    queries: np.ndarray  # (n,) int64 rows, ascending
    class_offset: np.ndarray  # (n + 1,) int64: query -> its entries in class_id
    class_id: np.ndarray  # int64
    members: ClassMembers

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
        self._is_wanted = np.zeros(LABELS, dtype=bool)  # class -> whether the source draws it
        self._is_wanted[self.classes] = True
        shards = np.arange(len(index.shards) + 1, dtype=index.shard.dtype)  # of equal types, or all would be converted
        self._shard_start = np.searchsorted(index.shard, shards)  # rows are in shard order
        self._eligible = self._eligible_entries()
        self._is_query = np.logical_or.reduceat(np.append(self._eligible, False), index.row_offset[:-1])
        self._is_query &= index.classes_per_row() > 0  # which reduceat leaves out

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
        if wanted is not None:
            rows = self.queries()
            self._is_query[:] = False
            self._is_query[rows[even_subset(len(rows), wanted, self.source.seed)]] = True

    def queries(self) -> np.ndarray:
        """The rows that may be queries, int64, ascending."""
        return np.flatnonzero(self._is_query)

    def queries_per_shard(self) -> np.ndarray:
        """(shards,) int64."""
        borders = zip(self._shard_start[:-1].tolist(), self._shard_start[1:].tolist(), strict=True)
        return np.array([np.count_nonzero(self._is_query[first:last]) for first, last in borders], np.int64)

    def frame(self, row: int) -> Frame:
        """A row with its place in a clip."""
        return Frame(row, int(self.index.clip[row]), int(self.index.frame[row]))

    def classes_of_query(self, row: int) -> np.ndarray:
        """The classes that a query may be asked for, int64, ascending."""
        entries = slice(*self.index.row_offset[row : row + 2])
        return self.index.row_class[entries][self._eligible[entries]].astype(np.int64)

    def members(self, class_id: int) -> Members:
        """All rows that hold enough of a class."""
        enough = self.index.pixels(class_id) >= self.source.min_pixels
        return members_of(self.index, self.index.rows_of_class(class_id)[enough])

    def pool(self, shards: np.ndarray | None = None) -> Pool:
        """What some shards hold (None: all of them). Time and memory grow with them, not with the data set.

        Raises:
            UserError: no row of the data set can be a query.
        """
        self._require_queries()
        shards = np.arange(len(self.index.shards)) if shards is None else np.sort(shards)
        index, start, end = self.index, self._shard_start[shards], self._shard_start[shards + 1]
        rows, entries = _ranges(start, end), _ranges(index.row_offset[start], index.row_offset[end])
        rows = np.repeat(rows, index.row_offset[rows + 1] - index.row_offset[rows])  # the row of each entry
        classes = index.row_class[entries]
        asked = self._eligible[entries] & self._is_query[rows]
        queries, first = np.unique(rows[asked], return_index=True)
        usable = self._is_wanted[classes] & (index.row_pixels[entries] >= self.source.min_pixels)
        members = ClassMembers(index, rows[usable], classes[usable])
        class_id = classes[asked].astype(np.int64)
        return Pool(queries, np.append(first, len(class_id)), class_id, members)

    def _require_queries(self) -> None:
        if not self._is_query.any():
            raise UserError(
                f"{self.source.shards}: no image can be a query, as none has a reference under these rules: "
                f"{self.rules()}"
            )

    def _eligible_entries(self) -> np.ndarray:
        """For every (row, class) pair, in the order of rows, whether the row may be asked for the class. bool."""
        eligible = np.zeros(len(self.index.row_class), dtype=bool)  # in the order of classes at first
        for class_id in self.classes:
            entries = self.index.entries_of_class(class_id)
            if entries.start < entries.stop:
                usable = self.index.pixels(class_id) >= self.source.min_pixels
                usable[usable] = self.pairing.eligible(self.members(class_id))
                eligible[entries] = usable
        in_row_order = np.empty_like(eligible)
        in_row_order[np.argsort(self.index.row_class, kind="stable")] = eligible
        return in_row_order


def members_of(index: ShardIndex, rows: np.ndarray) -> Members:
    """Rows with their places in clips."""
    return Members(rows, index.clip[rows], index.frame[rows])


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
