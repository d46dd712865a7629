"""Few-shot folds: the classes of a data set are divided, and a fold's episodes ask for its classes only."""

from collections.abc import Iterator

import numpy as np

from ldis_lightning.datamodules.draws import Draws
from ldis_lightning.datamodules.pools import Catalogue, Pool, pick
from ldis_lightning.datamodules.protocol import FEW_SHOT, Protocol, make_episode
from ldis_lightning.datamodules.source import EVALUATION, Episode, uniforms
from ldis_lightning.errors import UserError


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
        self.episodes, self.runs, self.score_size = episodes, runs, score_size

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
        pool, first = catalogue.pool(), catalogue.source.seed
        seeds = range(first, first + self.runs)
        return [episode for seed in seeds for episode in self._run(catalogue, pool, references, seed)]

    def _run(self, catalogue: Catalogue, pool: Pool, references: int, seed: int) -> Iterator[Episode]:
        count = min(self.episodes, catalogue.source.episodes or self.episodes)
        draws = Draws.of((EVALUATION, seed, FEW_SHOT), count, references)
        queries, classes = self._listed(pool, count) if self.listed else self._drawn(pool, draws, seed)
        for i, (query, class_id) in enumerate(zip(queries.tolist(), classes.tolist(), strict=True)):
            yield make_episode(catalogue, pool.members.__getitem__, query, class_id, draws, i)

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
        within = pick(uniforms((EVALUATION, seed, FEW_SHOT + 1), len(chosen)), counts[chosen])
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
