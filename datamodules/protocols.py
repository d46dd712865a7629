"""The registry of protocols: how an evaluation set's episodes are drawn, and how they are scored.

Published numbers differ by more between protocols than between methods, so each is a component with a name of its own.
Settings follow the released code of the systems named; the draws are our own and seeded, because theirs depend on
files and random states that were never released.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from ldis_lightning.datamodules.draws import Draws, draw_references
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.pairing import AcrossImages, FirstFrame, Members, Pairing
from ldis_lightning.datamodules.pools import Catalogue, Pool, pick
from ldis_lightning.datamodules.source import EVALUATION, Episode, even_subset, raw_bits, uniforms
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.measures import FalsePositives, JAndF, Measure, RegionIoU

_FEW_SHOT, _CLIPS, _ABSENCE = 1 << 20, 1 << 21, 1 << 22  # parts of the keys of random numbers, beyond any K


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

    @property
    def runs(self) -> int:
        """See the class."""
        return 1

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
            _episode(catalogue, members, int(pool.queries[i]), int(class_id[i]), draws, i)
            for i in even_subset(len(pool.queries), source.episodes, source.seed).tolist()
        ]


class FSS1000(OnePass):
    """FSS-1000: each image of the test classes is a query once, with another image of its class as the reference."""

    name = "fss1000"


class Absence(Protocol):
    """Every image once, asked for a class that it does not show: what is marked is wrong (FPR under absence)."""

    name = "absence"
    measure = FalsePositives()

    def draw(self, catalogue: Catalogue, references: int) -> list[Episode]:
        """See `Protocol`."""
        source, pool = catalogue.source, catalogue.pool()
        draws = Draws.of((EVALUATION, source.seed, _ABSENCE), len(pool.queries), references)
        members = pool.members.__getitem__
        episodes = []
        for i in even_subset(len(pool.queries), source.episodes, source.seed).tolist():
            query = int(pool.queries[i])
            absent = self._absent(catalogue, members, query)
            if absent:
                class_id = absent[int(pick(draws.class_choice[i : i + 1], len(absent))[0])]
                episodes.append(_episode(catalogue, members, query, class_id, draws, i))
        if not episodes:
            raise UserError(f"{source.shards}: every image shows every class, so none can be asked for an absent one.")
        return episodes

    def _absent(self, catalogue: Catalogue, members: Callable[[int], Members], query: int) -> list[int]:
        """Classes that a query does not show, not even a little, and that some reference does."""
        shown = set(catalogue.index.classes_of_row(query)[0].tolist())
        frame = catalogue.frame(query)
        return [c for c in catalogue.classes if c not in shown and len(catalogue.pairing.candidates(frame, members(c)))]


class FewShot(Protocol):
    """Few-shot folds: the episodes of a fold ask for its classes only, on which a strict model was not trained.

    Args:
        fold: 0 .. folds - 1.
        folds: how many there are; the classes, in the order of their ids, are divided evenly.
        interleaved: fold f holds classes f, f + folds, f + 2 folds, ... (0-based); otherwise each fold is contiguous.
        listed: episode i takes entry i of the list of all (image, class) pairs, from the start again at its end;
            otherwise a class is drawn uniformly, then its query.
        episodes: episodes of a run.
        runs: runs, with seeds that follow the source's.
        score_size: predictions and true masks are resized to such a square, in pixels; None for the original size.

    Raises:
        UserError: a setting is out of range.
    """

    name = "few-shot"

    def __init__(
        self,
        fold: int = 0,
        folds: int = 4,
        interleaved: bool = True,
        listed: bool = False,
        episodes: int = 1000,
        runs: int = 1,
        score_size: int | None = 400,
    ) -> None:
        for setting, value in {"folds": folds, "episodes": episodes, "runs": runs, "score_size": score_size}.items():
            if value is not None and value < 1:
                raise UserError(f"protocol {self.name}: {setting} must be 1 or more, got {value}.")
        if not 0 <= fold < folds:
            raise UserError(f"protocol {self.name}: fold must be in 0 .. {folds - 1}, got {fold}.")
        self.fold, self.folds, self.interleaved, self.listed = fold, folds, interleaved, listed
        self.episodes, self._runs, self.score_size = episodes, runs, score_size

    @property
    def runs(self) -> int:
        """See `Protocol`."""
        return self._runs

    def settings(self) -> dict[str, Any]:
        """See `Protocol`."""
        return {name.removeprefix("_"): value for name, value in vars(self).items()}

    def classes(self, classes: dict[int, str]) -> list[int]:
        """See `Protocol`.

        Raises:
            UserError: the classes cannot be divided evenly.
        """
        ids = sorted(classes)
        if len(ids) % self.folds:
            raise UserError(
                f"protocol {self.name}: {len(ids)} classes cannot be divided into {self.folds} equal folds. "
                "It is made for PASCAL VOC (20 classes) and COCO (80)."
            )
        size = len(ids) // self.folds
        return ids[self.fold :: self.folds] if self.interleaved else ids[self.fold * size : (self.fold + 1) * size]

    def draw(self, catalogue: Catalogue, references: int) -> list[Episode]:
        """See `Protocol`."""
        seeds = [catalogue.source.seed + run for run in range(self.runs)]
        return [episode for seed in seeds for episode in self._run(catalogue, references, seed)]

    def _run(self, catalogue: Catalogue, references: int, seed: int) -> Iterator[Episode]:
        pool = catalogue.pool()
        count = min(self.episodes, catalogue.source.episodes or self.episodes)
        draws = Draws.of((EVALUATION, seed, _FEW_SHOT), count, references)
        queries, classes = self._listed(pool, count) if self.listed else self._drawn(pool, draws, seed)
        for i, (query, class_id) in enumerate(zip(queries.tolist(), classes.tolist(), strict=True)):
            yield _episode(catalogue, pool.members.__getitem__, query, class_id, draws, i)

    def _listed(self, pool: Pool, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.repeat(pool.queries, np.diff(pool.class_offset))
        entries = np.arange(count) % len(rows)
        return rows[entries], pool.class_id[entries]

    def _drawn(self, pool: Pool, draws: Draws, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.repeat(pool.queries, np.diff(pool.class_offset))
        order = np.argsort(pool.class_id, kind="stable")
        rows, (classes, counts) = rows[order], np.unique(pool.class_id, return_counts=True)
        first = np.cumsum(counts) - counts
        chosen = pick(draws.class_choice, len(classes))  # (episodes,)
        within = pick(uniforms((EVALUATION, seed, _FEW_SHOT + 1), len(chosen)), counts[chosen])
        return rows[first[chosen] + within], classes[chosen]


class HSNetCOCO(FewShot):
    """COCO-20i as HSNet scores it: interleaved folds, 1000 episodes, a class drawn first, 400 x 400.

    Args:
        fold, episodes, score_size: see `FewShot`.
    """

    name = "hsnet-coco"

    def __init__(self, fold: int = 0, episodes: int = 1000, score_size: int | None = 400) -> None:
        super().__init__(fold, episodes=episodes, score_size=score_size)


class HSNetPASCAL(FewShot):
    """PASCAL-5i as HSNet scores it: contiguous folds, the list of (image, class) pairs gone through, 400 x 400.

    Args:
        fold, episodes, score_size: see `FewShot`.
    """

    name = "hsnet-pascal"

    def __init__(self, fold: int = 0, episodes: int = 1000, score_size: int | None = 400) -> None:
        super().__init__(fold, interleaved=False, listed=True, episodes=episodes, score_size=score_size)


class BAMCOCO(FewShot):
    """COCO-20i as BAM scores it: as HSNet, in five seeded runs of 1000, with their mean and standard deviation.

    Args:
        fold, episodes, runs, score_size: see `FewShot`.
    """

    name = "bam-coco"

    def __init__(self, fold: int = 0, episodes: int = 1000, runs: int = 5, score_size: int | None = 400) -> None:
        super().__init__(fold, episodes=episodes, runs=runs, score_size=score_size)


class BAMPASCAL(FewShot):
    """PASCAL-5i in five seeded runs of 1000, a class drawn first, so that the runs differ in their queries too.

    Args:
        fold, episodes, runs, score_size: see `FewShot`.
    """

    name = "bam-pascal"

    def __init__(self, fold: int = 0, episodes: int = 1000, runs: int = 5, score_size: int | None = 400) -> None:
        super().__init__(fold, interleaved=False, episodes=episodes, runs=runs, score_size=score_size)


class PFENetCOCO(FewShot):
    """COCO in 20,000 episodes as PFENet scores it, on its contiguous folds or on the interleaved ones of COCO-20i.

    Args:
        interleaved: which of the two splits; PFENet reports both, so name the one you use.
        fold, episodes, score_size: see `FewShot`.
    """

    name = "pfenet-coco"

    def __init__(
        self, fold: int = 0, interleaved: bool = False, episodes: int = 20_000, score_size: int | None = None
    ) -> None:
        super().__init__(fold, interleaved=interleaved, episodes=episodes, score_size=score_size)


class PFENetPASCAL(FewShot):
    """PASCAL-5i in 5,000 episodes as PFENet scores it.

    Args:
        fold, episodes, score_size: see `FewShot`.
    """

    name = "pfenet-pascal"

    def __init__(self, fold: int = 0, episodes: int = 5000, score_size: int | None = None) -> None:
        super().__init__(fold, interleaved=False, episodes=episodes, score_size=score_size)


class FirstFramePrompt(Protocol):
    """Clips: the first frame that shows a class prompts all later ones, with every class that it shows.

    Classes that appear only later were never asked for; their pixels are background. `episodes` of the source counts
    frames. K is 1.

    Attributes:
        skip_last: the last frame of a clip is not scored.
    """

    pairing = FirstFrame
    by_clip = True
    skip_last: bool = False

    def draw(self, catalogue: Catalogue, references: int) -> list[Episode]:
        """See `Protocol`."""
        index, source = catalogue.index, catalogue.source
        if index.kind == "images":
            raise UserError(f"{source.shards} holds images, and the protocol {self.name} needs clips.")
        wanted = self._classes_of_rows(catalogue)
        frames = [(clip, *frame) for clip, rows in _clips(index) for frame in self._frames(rows, wanted)]
        if not frames:
            raise UserError(
                f"{source.shards}: no clip has a labelled frame and another after it ({catalogue.rules()})."
            )
        kept = even_subset(len(frames), source.episodes, source.seed).tolist()
        return [episode for i in kept for episode in self._episodes(catalogue, wanted, *frames[i])]

    def _frames(self, rows: list[int], wanted: dict[int, list[int]]) -> list[tuple[int, int]]:
        """(prompt, query) rows of a clip's frames."""
        first = next((place for place, row in enumerate(rows) if row in wanted), len(rows))
        later = rows[first + 1 : -1] if self.skip_last else rows[first + 1 :]
        return [(rows[first], row) for row in later]

    def _classes_of_rows(self, catalogue: Catalogue) -> dict[int, list[int]]:
        """Row -> the classes that it shows and that may be asked for."""
        shown: dict[int, list[int]] = {}
        for class_id in catalogue.classes:
            for row in catalogue.members(class_id).rows.tolist():
                shown.setdefault(row, []).append(class_id)
        return shown

    def _episodes(
        self, catalogue: Catalogue, wanted: dict[int, list[int]], clip: int, prompt: int, query: int
    ) -> Iterator[Episode]:
        classes = wanted[prompt]
        key = (EVALUATION, catalogue.source.seed, _CLIPS, clip, int(catalogue.index.frame[query]))
        seeds, draws = raw_bits((*key, 0), len(classes)) >> np.uint64(1), uniforms((*key, 1), len(classes))
        for class_id, seed, draw in zip(classes, seeds.tolist(), draws.tolist(), strict=True):
            shown = next(iter(catalogue.treatment.shown_classes(class_id, classes, draw)), None)
            if shown is None:
                raise UserError(
                    f"{catalogue.source.shards}: {catalogue.index.clip_names[clip]} shows one class alone, so the "
                    f"treatment {type(catalogue.treatment).__name__} has no other one to show."
                )
            yield Episode(query, (prompt,), class_id, seed, shown)


class DAVIS(FirstFramePrompt):
    """DAVIS, semi-supervised: J&F at the original size, the first and last frame of each clip left out.

    Args:
        skip_last: False predicts and scores the last frame too; for a server that wants a mask of every frame.
    """

    name = "davis"
    measure = JAndF()

    def __init__(self, skip_last: bool = True) -> None:
        self.skip_last = skip_last


class VSPW(FirstFramePrompt):
    """VSPW: every class of the first frame in all later ones, fused (eq. 7 of METHOD); mIoU at the original size."""

    name = "vspw"


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
        FSS1000,
        DAVIS,
        VSPW,
        Absence,
    )
}
"""The protocols by the names that rows and manifests give them."""


def _episode(
    catalogue: Catalogue, members: Callable[[int], Members], query: int, class_id: int, draws: Draws, i: int
) -> Episode:
    shown, rows = draw_references(catalogue, (members,), catalogue.frame(query), class_id, draws, i)
    return Episode(query, rows, class_id, int(draws.seed[i]), shown)


def _clips(index: ShardIndex) -> Iterator[tuple[int, list[int]]]:
    """The clips of a data set: number and rows in the order of their frames."""
    order = np.lexsort((index.frame, index.clip))
    order = order[index.clip[order] >= 0]
    starts = np.flatnonzero(np.diff(index.clip[order], prepend=-1))
    for rows in np.split(order, starts[1:]):
        if len(rows):
            yield int(index.clip[rows[0]]), rows.tolist()
