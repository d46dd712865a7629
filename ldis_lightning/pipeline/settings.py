"""How queries are segmented."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ldis_lightning.errors import UserError
from ldis_lightning.pipeline.results import Segmentation
from ldis_lightning.suggestions import did_you_mean

SMALLEST_TILE = 16


@dataclass(frozen=True)
class Settings:
    """How queries are segmented: the keyword arguments of `InContextSegmentationPipeline.__call__`.

    Args:
        batch_size: masks (a query and a concept each) that are computed at once. Results do not depend on it.
        tile: side of the tiles, in pixels of the query, that a larger query is cut into; None for no tiles.
        threshold: logit above which a pixel is a concept's.
        seed: of what LDIS-n's sampler draws, the same for every query.
        steps: of LDIS-n's sampler; None for the model's own.
        guidance: LDIS-n's (g_q, g_tau) of eq. 10; None for the model's own.
        on_step: for LDIS-n, told after every step its number from 1 on, how many there are, and what the results of
            the queries in work would be by now. It is not called for tiles.

    Raises:
        UserError: a value is out of range.
    """

    batch_size: int = 8
    tile: int | None = None
    threshold: float = 0.0
    seed: int = 0
    steps: int | None = None
    guidance: tuple[float, float] | None = None
    on_step: Callable[[int, int, list[Segmentation]], object] | None = None

    def __post_init__(self) -> None:
        if not _whole(self.batch_size, 1):
            raise UserError(f"batch_size: a whole number from 1 on is needed, got {self.batch_size!r}.")
        if self.tile is not None and not _whole(self.tile, SMALLEST_TILE):
            raise UserError(f"tile: a whole number from {SMALLEST_TILE} on is needed, got {self.tile!r}.")
        if self.steps is not None and not _whole(self.steps, 1):
            raise UserError(f"steps: a whole number from 1 on is needed, got {self.steps!r}.")
        if not _whole(self.seed, 0) or self.seed >= 2**63:
            raise UserError(f"seed: a whole number from 0 on is needed, got {self.seed!r}.")
        if not _number(self.threshold) or not -1e6 < self.threshold < 1e6:
            raise UserError(f"threshold: a number is needed, got {self.threshold!r}.")
        if self.guidance is not None and not _two_numbers(self.guidance):
            raise UserError(f"guidance: two numbers are needed, for the query and the instruction: {self.guidance!r}.")


def chosen(given: Mapping[str, Any]) -> Settings:
    """Settings from keyword arguments.

    Raises:
        UserError: there is no such setting, or a value is out of range.
    """
    for name in given:
        if name not in Settings.__dataclass_fields__:
            known = Settings.__dataclass_fields__
            raise UserError(f"there is no setting `{name}`{did_you_mean(name, known)}; there are {', '.join(known)}.")
    return Settings(**given)


def _whole(value: object, least: int) -> bool:
    """A whole number of Python's or numpy's, from `least` on."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _number(value: object) -> bool:
    """A finite one, of Python's or numpy's."""
    number: Any = value  # `Real` has no order for type checkers
    return isinstance(value, Real) and not isinstance(value, bool) and abs(number) < math.inf


def _two_numbers(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(map(_number, value))
