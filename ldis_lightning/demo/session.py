"""What one visitor of the page has shown and found: pictures in memory, and files that the browser was given."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldis_lightning.errors import UserError
from ldis_lightning.pipeline import Segmentation
from ldis_lightning.pipeline.inputs import Pixels

MOST_REFERENCES = 16
MOST_QUERIES = 32
"""Pictures; a clip counts as one."""
MOST_FRAMES = 240
"""Of a clip. What follows them is left out."""
MOST_PIXELS = 2**26
"""Of all queries of a visitor together: what the largest single picture has. A pixel costs 7 bytes for as long as the
page is open."""


@dataclass(frozen=True)
class Reference:
    """A picture (H, W, 3) uint8 and its mask (H, W) uint8 in {0, 1}."""

    picture: Pixels
    mask: Pixels


@dataclass(frozen=True)
class Query:
    """A picture, or a clip of several.

    Attributes:
        name: of the file, without its ending.
        frames: each (H, W, 3) uint8.
        fps: frames a second of a clip, None of a picture.
    """

    name: str
    frames: list[Pixels] = field(repr=False)
    fps: float | None = None

    @property
    def pixels(self) -> int:
        """Of all frames."""
        return sum(frame.shape[0] * frame.shape[1] for frame in self.frames)


@dataclass(eq=False)
class Session:
    """One visitor's.

    Attributes:
        draft: the picture that is being painted on.
        ready: (h, w), what an example has painted on it.
        references: what has been painted before.
        queries: where to look.
        results: of each query that has been segmented, in order, one a frame.
        problems: what could not be read of what was dropped last.
        files: folders of what the browser was last given, by what it is: "movie", "masks".
        runs: how many there were, and stops of them: what an earlier one still has to show is out of date.
    """

    draft: Pixels | None = None
    ready: NDArray[np.bool_] | None = None
    references: list[Reference] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    results: list[list[Segmentation]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    runs: int = 0

    def finish_draft(self, painted: NDArray[np.bool_] | None) -> None:
        """Make a reference of the draft.

        Args:
            painted: (h, w) of the draft's aspect ratio, at any size.

        Raises:
            UserError: there is no draft, nothing is painted on it, or there are too many references.
        """
        if self.draft is None:
            raise UserError("There is no picture to add: drop one first, then paint what is to be found.")
        if len(self.references) >= MOST_REFERENCES:
            raise UserError(f"{MOST_REFERENCES} references are the most: remove one first.")
        self.references.append(drafted(self.draft, painted))
        self.draft = None

    def shown(self, painted: NDArray[np.bool_] | None) -> list[Reference]:
        """The references, and the draft as one of them where something is painted on it.

        Raises:
            UserError: there is nothing.
        """
        if self.draft is None and not self.references:
            raise UserError("Show what to find first: drop a picture and paint over the thing.")
        if self.draft is None or (self.references and (painted is None or not painted.any())):
            return list(self.references)
        return [*self.references, drafted(self.draft, painted)]

    def add_query(self, query: Query) -> None:
        """Look there too. A clip takes the place of the clip before.

        Raises:
            UserError: that would be too many pictures, or pixels.
        """
        kept = [other for other in self.queries if query.fps is None or other.fps is None]
        if len(kept) >= MOST_QUERIES:
            raise UserError(f"{query.name} was left out: {MOST_QUERIES} pictures are the most. Clear them first.")
        if query.pixels + sum(other.pixels for other in kept) > MOST_PIXELS:
            raise UserError(
                f"{query.name} was left out: together the pictures would have more than {MOST_PIXELS / 1e6:.0f} "
                "megapixels. Clear them first."
            )
        self.queries, self.results = [*kept, query], []

    def clear_queries(self) -> None:
        """Forget the queries and their results."""
        self.queries, self.results, self.problems = [], [], []
        for kind in list(self.files):
            self._remove(kind)

    def forget(self) -> None:
        """Forget everything."""
        self.draft, self.ready, self.references = None, None, []
        self.clear_queries()

    def keep_file(self, kind: str, path: Path) -> Path:
        """A file in a folder of its own, which takes the place of the one of its kind before."""
        self._remove(kind)
        self.files[kind] = path.parent
        return path

    def _remove(self, kind: str) -> None:
        if folder := self.files.pop(kind, None):
            shutil.rmtree(folder, ignore_errors=True)

    def results_at(self, threshold: float) -> list[list[Segmentation]]:
        """The results as they are with another threshold of the logits. The model is not asked again."""
        return [[replace(frame, threshold=threshold) for frame in frames] for frames in self.results]


def drafted(picture: Pixels, painted: NDArray[np.bool_] | None) -> Reference:
    """A reference of what is painted on a picture, at any size.

    Raises:
        UserError: nothing is.
    """
    if painted is None or not painted.any():
        raise UserError("Nothing is painted on the picture: paint over the thing to find, or drop its mask.")
    height, width = picture.shape[:2]
    mask = np.asarray(Image.fromarray(painted.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST))
    if not mask.any():  # a stroke thinner than a pixel of a small picture
        raise UserError("What is painted is too thin to be seen by the model: paint with a thicker brush.")
    return Reference(picture, mask)


def split(frames: Sequence[Segmentation], queries: Sequence[Query]) -> list[list[Segmentation]]:
    """The results of all frames in a row, query by query, as far as they go."""
    parts, start = [], 0
    for query in queries:
        part = list(frames[start : start + len(query.frames)])
        start += len(query.frames)
        if part:
            parts.append(part)
    return parts
