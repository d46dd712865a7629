"""The slot for protocols: how an evaluation set's episodes are drawn, and how they are scored."""

from collections.abc import Callable
from typing import Any, ClassVar

from ldis_lightning.datamodules.draws import Draws, draw_references
from ldis_lightning.datamodules.pairing import AcrossImages, Members, Pairing
from ldis_lightning.datamodules.pools import Catalogue
from ldis_lightning.datamodules.source import Episode
from ldis_lightning.evaluation.measures import Measure, RegionIoU

FEW_SHOT, CLIPS, ABSENCE = 1 << 20, 1 << 21, 1 << 22
"""Parts of the keys of random numbers, one for each way of drawing, beyond any K."""


class Protocol:
    """Draws the episodes of an evaluation set. Subclass it for a protocol of your own and name it by `class_path`.

    Plain attributes that `__init__` sets are the settings; a manifest records them.

    Attributes:
        name: what result rows call the protocol.
        measure: what is counted of an episode.
        pairing: which images may be references where the source does not say.
        score_size: side of the square at which predictions are scored, in pixels; None for the original size.
        runs: the episodes are so many equal draws; results also state their mean and spread.
        by_clip: episodes of a clip are segmented together, frame by frame, and concepts are fused (METHOD eq. 7).
    """

    name: ClassVar[str]
    measure: ClassVar[Measure] = RegionIoU()
    pairing: ClassVar[type[Pairing]] = AcrossImages
    by_clip: ClassVar[bool] = False
    score_size: int | None = None
    runs: int = 1

    def settings(self) -> dict[str, Any]:
        """The settings as plain values."""
        return dict(vars(self))

    def classes(self, classes: dict[int, str]) -> list[int]:
        """Ids of the classes that the protocol asks for, out of all of the data set."""
        return sorted(classes)

    def draw(self, catalogue: Catalogue, references: int) -> list[Episode]:
        """Draw the episodes: a pure function of the data set, the source's rules and the settings.

        Args:
            catalogue: the data set under the source's rules.
            references: K.

        Raises:
            UserError: the data set allows no such episodes.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement draw(catalogue, references)")


def make_episode(
    catalogue: Catalogue, members: Callable[[int], Members], query: int, class_id: int, draws: Draws, i: int
) -> Episode:
    """Episode i, with its references drawn from `members(class)` as `draw_references` does."""
    shown, rows = draw_references(catalogue, (members,), catalogue.frame(query), class_id, draws, i)
    return Episode(query, rows, class_id, int(draws.seed[i]), shown)
