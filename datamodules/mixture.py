"""Several data sets in one training stream, each with its share, as deterministic as one alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldis_lightning.datamodules.plan import TrainingPlan
from ldis_lightning.datamodules.pools import Catalogue
from ldis_lightning.datamodules.source import MIXTURE, Episode, raw_bits, uniforms
from ldis_lightning.errors import UserError

BLOCK = 4096
"""Episodes after which the shares come out even. A share is met to 1 / BLOCK of the stream."""


class Mixing:
    """Says what share of the episodes each data set gets. Subclass it for a rule of your own."""

    def shares(self, weights: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """Shares of the data sets.

        Args:
            weights: (n,) the `weight` of each source, > 0.
            queries: (n,) int64, how many pictures of each can be a query.

        Returns:
            (n,) positive numbers, whose ratios count.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement shares(weights, queries)")


class PerSample(Mixing):
    """Weights count per sample, as in the paper: a data set is drawn in proportion to its weight times its size."""

    def shares(self, weights: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """See `Mixing`."""
        return weights * queries


class PerDataset(Mixing):
    """Weights count per data set, whatever its size."""

    def shares(self, weights: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """See `Mixing`."""
        return weights


class MixturePlan:
    """Which episodes global batch g of a mixture holds, for every g.

    The stream is cut into blocks. In each, every data set has the same number of places, in a seeded order, and fills
    them with the next episodes of its own plan, in which it goes through its own epochs. So position p of the stream
    follows from p alone, as it does without a mixture.

    Args:
        parts: name -> plan of one data set; every plan has a seed of its own (`part_seed`).
        shares: (n,) their shares, > 0, in any unit.
        seed: seed of the run.
        batch_size: episodes of a global batch, over all ranks.

    Raises:
        UserError: a share is not positive, or too small for a place in a block.
    """

    def __init__(self, parts: Mapping[str, TrainingPlan], shares: np.ndarray, seed: int, batch_size: int) -> None:
        self.parts, self.seed, self.batch_size = dict(parts), seed, batch_size
        self.places = places_of_shares(list(self.parts), np.asarray(shares, np.float64))
        self._plans = list(self.parts.values())
        self._block: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        """Queries of all data sets together: what counts as an epoch."""
        return sum(len(plan) for plan in self._plans)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as the arguments."""
        return MixturePlan, (self.parts, self.places, self.seed, self.batch_size)

    @property
    def catalogues(self) -> list[Catalogue]:
        """The data sets, in the order of `Episode.source`."""
        return [plan.catalogue for plan in self._plans]

    def identity(self) -> dict[str, Any]:
        """All that decides the episodes, as plain values."""
        identity: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size}
        for (name, plan), places in zip(self.parts.items(), self.places.tolist(), strict=True):
            identity[f"train.{name}.places"] = places
            identity |= {f"train.{name}.{key.removeprefix('train.')}": v for key, v in plan.identity().items()}
        return identity

    def batch(self, number: int, rank: int = 0, world: int = 1) -> list[Episode]:
        """Episodes `rank::world` of a global batch."""
        first = number * self.batch_size
        return [self.episode(position) for position in range(first, first + self.batch_size)[rank::world]]

    def episode(self, position: int) -> Episode:
        """The episode at a position of the endless stream."""
        source, turn = self._place(position)
        return self._plans[source].episode(turn)._replace(source=source)

    def substitute(self, position: int, attempt: int) -> Episode:
        """The episode that takes the place of a damaged one, from the same data set; see `TrainingPlan.substitute`."""
        source, turn = self._place(position)
        return self._plans[source].substitute(turn, attempt)._replace(source=source)

    def _place(self, position: int) -> tuple[int, int]:
        """The data set that a position of the stream belongs to, and the position in that one's plan."""
        block, offset = divmod(position, BLOCK)
        if self._block is None or self._block[0] != block:
            self._block = (block, *self._fill(block))
        _, sources, turns = self._block
        return int(sources[offset]), int(turns[offset])

    def _fill(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block its data set and the position in that one's plan, (BLOCK,) each."""
        order = np.argsort(uniforms((MIXTURE, self.seed, block), BLOCK), kind="stable")
        sources = np.empty(BLOCK, np.int64)
        sources[order] = np.repeat(np.arange(len(self.places)), self.places)
        turns = np.empty(BLOCK, np.int64)
        for source, places in enumerate(self.places.tolist()):
            turns[sources == source] = block * places + np.arange(places)
        return sources, turns


def part_seed(seed: int, number: int) -> int:
    """The seed of the plan of data set `number`: two of a mixture never draw the same numbers."""
    return int(raw_bits((MIXTURE, seed, number), 1)[0] >> np.uint64(1))


def places_of_shares(names: Sequence[str], shares: np.ndarray) -> np.ndarray:
    """Places of each data set in a block of `BLOCK`, by largest remainders.

    Args:
        names: of the data sets, for messages.
        shares: (n,) > 0.

    Returns:
        (n,) int64 that sum to BLOCK.

    Raises:
        UserError: a share is not positive, or not one place in a block.
    """
    for name, share in zip(names, shares.tolist(), strict=True):
        if not share > 0 or not np.isfinite(share):
            raise UserError(f"data.train.{name}.weight must be a positive number; leave the source out to drop it.")
    exact = shares / shares.sum() * BLOCK
    places = np.floor(exact + 1e-9).astype(np.int64)
    most_remaining = np.argsort(np.round(places - exact, 9), kind="stable")  # equal ones in order, whatever the unit
    places[most_remaining[: BLOCK - int(places.sum())]] += 1
    for name, count, share in zip(names, places.tolist(), (exact / BLOCK).tolist(), strict=True):
        if count == 0:
            raise UserError(
                f"data.train.{name} has a share of {share:.2e} of the mixture, less than one episode in {BLOCK}: "
                "raise its weight or leave it out."
            )
    return places
