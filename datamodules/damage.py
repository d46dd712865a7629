"""Samples that cannot be read, and what a stream does about them."""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ldis_lightning.datamodules.source import Episode
from ldis_lightning.errors import UserError

ATTEMPTS = 10
"""Substitutes that are tried for one episode. Where all are damaged too, it is not single samples that are at fault."""

LEDGER = "quarantine.jsonl"
"""Name of the file in a run's folder that lists its damaged samples."""

log = logging.getLogger(__name__)

Content = TypeVar("Content")


class DamagedSample(UserError):
    """A sample whose bytes are not those that were indexed, or are no picture with a label map.

    Args:
        shard: the file that holds it.
        key: of the sample.
        reason: what is wrong, and what to do about it.
    """

    def __init__(self, shard: Path, key: str, reason: str) -> None:
        super().__init__(f"{key} in {shard}: {reason}")
        self.shard, self.key, self.reason = shard, key, reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the arguments."""
        return DamagedSample, (self.shard, self.key, self.reason)


class DamagePolicy:
    """What training does about a damaged sample; evaluation always stops with the error. Subclass it for a policy of
    your own and name it by `class_path`.

    A policy is asked in whatever process reads, so it must pickle. As long as its answer follows from the sample alone,
    batches follow from the plan and from what is damaged.

    Attributes:
        budget: different damaged samples, over all ranks and resumed runs, that training puts up with; None for any
            number.
    """

    budget: int | None = None

    def replaces(self, damage: DamagedSample) -> bool:
        """Whether an episode with this sample gives way to another one of the plan. If not, training stops."""
        raise NotImplementedError(f"{type(self).__name__} must implement replaces(damage)")


class Raise(DamagePolicy):
    """Training stops at the first damaged sample."""

    def replaces(self, damage: DamagedSample) -> bool:
        """Never."""
        return False


class Quarantine(DamagePolicy):
    """Training goes on without damaged samples, logs each of them, and stops when there are too many.

    Args:
        budget: different damaged samples, over all ranks and resumed runs, that training puts up with.

    Raises:
        UserError: the budget is negative.
    """

    def __init__(self, budget: int = 16) -> None:
        if budget < 0:
            raise UserError(f"data.damage.budget is {budget}, and must not be negative.")
        self.budget = budget

    def replaces(self, damage: DamagedSample) -> bool:
        """Always."""
        return True


class Plan(Protocol):
    """What is asked of a training plan here."""

    def substitute(self, position: int, attempt: int) -> Episode:
        """The episode that takes the place of the one at a position of the stream, at the attempt 1, 2, ..."""
        ...


@dataclass
class Substitutes:
    """The episodes that take the places of those with a damaged sample.

    Args:
        policy: says what damage is put up with.
        plan: says which episodes these are.
    """

    policy: DamagePolicy
    plan: Plan

    def read(
        self, episode: Episode, position: int, read: Callable[[Episode], Content]
    ) -> tuple[Episode, Content, list[DamagedSample]]:
        """Read an episode, or where that cannot be the first of its substitutes that can, with as many references.

        Args:
            episode: of the plan.
            position: its own in the stream.
            read: reads an episode, or raises `DamagedSample`.

        Returns:
            the episode that was read, its content, and the damaged samples of those before it.

        Raises:
            DamagedSample: the policy does not put up with it.
            UserError: all substitutes are damaged too, or something else is wrong.
        """
        candidate, found = episode, list[DamagedSample]()
        while True:
            try:
                return candidate, read(candidate), found
            except DamagedSample as damage:
                if not self.policy.replaces(damage):
                    raise
                found.append(DamagedSample(damage.shard, damage.key, damage.reason))  # without what it was raised from
            if len(found) > ATTEMPTS:
                raise UserError(
                    f"{found[0]} All {ATTEMPTS} episodes that could take its place are damaged too: run "
                    f"`ldis data verify {found[0].shard.parent}`, and fetch or pack the data again."
                )
            other = self.plan.substitute(position, len(found))
            candidate = other._replace(references=other.references[: len(episode.references)])


class Ledger:
    """The damaged samples of a run, each told once and counted against the budget.

    Its file is one JSON object a line, with `shard`, `key` and `reason`, to which all ranks append.

    Args:
        file: where to write; None to keep them in memory.
        budget: how many there may be; None for any number.
        earlier: entries that a resumed run's checkpoint names: the run may have been writing elsewhere.
        writes_earlier: this is the rank that writes them into the file where they are not in it.

    Raises:
        UserError: the file cannot be read or written.
    """

    def __init__(
        self, file: Path | None, budget: int | None, earlier: Iterable[Any] = (), writes_earlier: bool = True
    ) -> None:
        self.file, self.budget = file, budget
        self._reasons: dict[tuple[str, str], str] = {}  # (shard, key) -> what is wrong
        self._read()
        for place, reason in filter(None, map(_parsed, earlier)):
            if place not in self._reasons:
                self._reasons[place] = reason
                if writes_earlier:
                    self._append(place)

    def entries(self) -> list[dict[str, str]]:
        """All that this and other ranks have found by now, as plain values: what a checkpoint keeps."""
        self._read()
        return [self._entry(place) for place in self._reasons]

    def note(self, damage: DamagedSample) -> None:
        """Log and count a damaged sample, unless that was done before.

        Raises:
            UserError: there are more than the budget allows, also where all are old: a run that was stopped does not
                simply go on. Or the file cannot be read or written.
        """
        place = (str(damage.shard), damage.key)
        if place not in self._reasons:
            self._read()
        if place not in self._reasons:
            self._reasons[place] = damage.reason
            self._append(place)
            bound = "" if self.budget is None else f" of at most {self.budget}"
            log.warning("damaged sample %d%s, left out of training: %s", len(self._reasons), bound, damage)
        if self.budget is not None and len(self._reasons) > self.budget:
            listed = f"{self.file} lists them: " if self.file else ""
            raise UserError(
                f"{len(self._reasons)} samples are damaged, and data.damage.budget is {self.budget}. {listed}"
                f"run `ldis data verify {damage.shard.parent}` and fetch or pack the data again, or raise "
                "data.damage.budget."
            )

    def _entry(self, place: tuple[str, str]) -> dict[str, str]:
        return {"shard": place[0], "key": place[1], "reason": self._reasons[place]}

    def _read(self) -> None:
        """Take what the file holds by now. A line that is no entry is passed over: a kill may have cut it short."""
        if self.file is None or not self.file.exists():
            return
        try:
            lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise UserError(f"{self.file} cannot be read: {error.strerror}.") from error
        for place, reason in filter(None, map(_parsed, lines)):
            self._reasons.setdefault(place, reason)

    def _append(self, place: tuple[str, str]) -> None:
        if self.file is None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open(
                "a", encoding="utf-8"
            ) as stream:  # one write, so that lines of several ranks do not mix
                stream.write(f"{json.dumps(self._entry(place))}\n")
        except OSError as error:
            raise UserError(f"{self.file} cannot be written: {error.strerror}.") from error


def _parsed(entry: Any) -> tuple[tuple[str, str], str] | None:
    """(shard, key) and reason of an entry, as JSON or as an object; None for anything else."""
    try:
        found = json.loads(entry) if isinstance(entry, str) else entry
        return (str(found["shard"]), str(found["key"])), str(found["reason"])
    except (ValueError, TypeError, KeyError):
        return None
