"""The registry of protocols.

Published numbers differ by more between protocols than between methods, so each is a component with a name of its own.
Settings follow the released code of the systems named; the draws are our own and seeded, because theirs depend on
files and random states that were never released.
"""

from collections.abc import Callable

import numpy as np

from ldis_lightning.datamodules.clip_protocols import DAVIS, VSPW
from ldis_lightning.datamodules.draws import Draws
from ldis_lightning.datamodules.few_shot import (
    BAMCOCO,
    BAMPASCAL,
    FewShot,
    HSNetCOCO,
    HSNetPASCAL,
    PFENetCOCO,
    PFENetPASCAL,
)
from ldis_lightning.datamodules.pairing import Members
from ldis_lightning.datamodules.pools import Catalogue, pick
from ldis_lightning.datamodules.protocol import ABSENCE, Protocol, make_episode
from ldis_lightning.datamodules.source import EVALUATION, Episode, even_subset
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.measures import FalsePositives


class OnePass(Protocol):
    """The paper's own protocol: every image once, class and references uniform; scored at the original size.

    The class is one of those that the image is eligible for, the references any that the pairing allows.

    An episode stays what it is when the list is cut short, and its first references stay when more are asked for.
    """

    name = "ldis"

    def draw(self, catalogue: Catalogue, references: int) -> list[Episode]:
        """See `Protocol`."""
        source, pool = catalogue.source, catalogue.pool()
        draws = Draws.of((EVALUATION, source.seed), len(pool.queries), references)
        class_id = pool.draw_classes(draws.class_choice)
        members = pool.members.__getitem__
        return [
            make_episode(catalogue, members, int(pool.queries[i]), int(class_id[i]), draws, i)
            for i in even_subset(len(pool.queries), source.episodes, source.seed).tolist()
        ]


class FSS1000(OnePass):
    """FSS-1000: each image of the test classes is a query once, with another image of its class as the reference."""

    name = "fss1000"


class Absence(Protocol):
    """FPR under absence: every labelled image once, asked for a class that it does not show. Any mark is wrong."""

    name = "absence"
    measure = FalsePositives()

    def draw(self, catalogue: Catalogue, references: int) -> list[Episode]:
        """See `Protocol`."""
        source, pool = catalogue.source, catalogue.pool()
        draws = Draws.of((EVALUATION, source.seed, ABSENCE), len(pool.queries), references)
        members = pool.members.__getitem__
        episodes = []
        for i in even_subset(len(pool.queries), source.episodes, source.seed).tolist():
            query = int(pool.queries[i])
            class_id = self._absent(catalogue, members, query, draws.class_choice[i : i + 1])
            if class_id is not None:
                episodes.append(make_episode(catalogue, members, query, class_id, draws, i))
        if not episodes:
            raise UserError(f"{source.shards}: every image shows every class, so none can be asked for an absent one.")
        return episodes

    def _absent(
        self, catalogue: Catalogue, members: Callable[[int], Members], query: int, draw: np.ndarray
    ) -> int | None:
        """A class that a query does not show, not even a little, and that some reference does: the drawn one of those
        absent, or the first after it that has a reference."""
        shown = set(catalogue.index.classes_of_row(query)[0].tolist())
        absent = [class_id for class_id in catalogue.classes if class_id not in shown]
        if not absent:
            return None
        first = int(pick(draw, len(absent))[0])
        frame = catalogue.frame(query)
        answerable = (
            c for c in absent[first:] + absent[:first] if len(catalogue.pairing.candidates(frame, members(c)))
        )
        return next(answerable, None)


PROTOCOLS: dict[str, type[Protocol]] = {
    protocol.name: protocol
    for protocol in (
        OnePass,
        HSNetCOCO,
        HSNetPASCAL,
        BAMCOCO,
        BAMPASCAL,
        PFENetCOCO,
        PFENetPASCAL,
        FewShot,
        FSS1000,
        DAVIS,
        VSPW,
        Absence,
    )
}
"""The protocols by the names that rows and manifests give them."""
