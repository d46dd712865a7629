"""Which images may serve as references of a query."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Frame(NamedTuple):
    """A row of the index and its place in a clip; `clip` and `frame` are -1 for an image that belongs to none."""

    row: int
    clip: int
    frame: int


@dataclass(frozen=True)
class Members:
    """The rows that hold enough of one class, ascending, with their places in clips (-1: none)."""

    rows: np.ndarray  # (n,) int64
    clip: np.ndarray  # (n,) int32
    frame: np.ndarray  # (n,) int32

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, position: int) -> Frame:
        """The row at a position."""
        return Frame(int(self.rows[position]), int(self.clip[position]), int(self.frame[position]))


class Pairing:
    """Says which images may be references of a query. Subclass it for a rule of your own and name it by `class_path`.

    A rule sees only the index, never pixels, and must be a pure function of its arguments: everything random is drawn
    by the plan, uniformly among the candidates. Plain attributes set in `__init__` are the rule's settings; a
    checkpoint records them.
    """

    def candidates(self, query: Frame, members: Members) -> np.ndarray:
        """The rows that may show the class to a query.

        Args:
            query: the query. It holds the class itself unless a treatment shows another class.
            members: rows that hold the class: those of the current window of shards, or all of the data set.

        Returns:
            (m,) int64 rows out of `members.rows`.
        """
        raise NotImplementedError

    def eligible(self, members: Members) -> np.ndarray:
        """Which members may be queries, that is, have a candidate among all members of the data set.

        This general version asks `candidates` once a member. Override it where the answer is quicker to get.

        Returns:
            (n,) bool.
        """
        return np.array([len(self.candidates(members[i], members)) > 0 for i in range(len(members))], dtype=bool)


class AcrossImages(Pairing):
    """Any other image of the class; for a frame of a clip, those outside the clip, as frames of one clip look alike."""

    def candidates(self, query: Frame, members: Members) -> np.ndarray:
        """All rows but the query and the frames of its clip."""
        apart = members.rows != query.row if query.clip < 0 else members.clip != query.clip
        return members.rows[apart]

    def eligible(self, members: Members) -> np.ndarray:
        """All or none: there must be two images or clips."""
        in_clip = members.clip >= 0
        clips = len(np.unique(members.clip[in_clip])) if in_clip.any() else 0  # quick for images
        return np.full(len(members), len(members) - np.count_nonzero(in_clip) + clips >= 2)


class WithinClip(Pairing):
    """Another frame of the query's clip: METHOD's choice for training on video."""

    def candidates(self, query: Frame, members: Members) -> np.ndarray:
        """The other frames of the clip."""
        return members.rows[(members.clip == query.clip) & (members.clip >= 0) & (members.rows != query.row)]

    def eligible(self, members: Members) -> np.ndarray:
        """Frames of clips that show the class twice."""
        _, clip, counts = np.unique(members.clip, return_inverse=True, return_counts=True)
        return (counts[clip] >= 2) & (members.clip >= 0)


class FirstFrame(Pairing):
    """The clip's first frame that holds the class is the prompt of all later ones: the protocol of video data sets."""

    def candidates(self, query: Frame, members: Members) -> np.ndarray:
        """One row, or none for the first frame itself."""
        clip = np.flatnonzero((members.clip == query.clip) & (members.clip >= 0))
        if len(clip) == 0:
            return members.rows[:0]
        first = clip[np.argmin(members.frame[clip])]
        return members.rows[first : first + 1] if members.frame[first] < query.frame else members.rows[:0]

    def eligible(self, members: Members) -> np.ndarray:
        """All but the first frame of each clip."""
        order = np.lexsort((members.frame, members.clip))
        eligible = np.zeros(len(members), dtype=bool)
        eligible[order[1:]] = members.clip[order[1:]] == members.clip[order[:-1]]
        return eligible & (members.clip >= 0)


class Itself(Pairing):
    """The query is its own reference, mask and all: how much a model can take from a perfect prompt."""

    def candidates(self, query: Frame, members: Members) -> np.ndarray:
        """The query's row."""
        return members.rows[members.rows == query.row]

    def eligible(self, members: Members) -> np.ndarray:
        """All."""
        return np.ones(len(members), dtype=bool)
