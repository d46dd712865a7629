"""The `sweep:` block of a config: axes over its keys, and the points that they span."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ldis_lightning.errors import UserError
from ldis_lightning.suggestions import did_you_mean, some
from ldis_lightning.sweeps.labels import column_headings, plain, slug_of, value_labels

NAMED = "point"
"""The heading of the column of named points."""
RESERVED = {
    "seed_everything": "is what `sweep.seeds` sets",
    "data.seed": "is what `sweep.seeds` sets",
    "score_after_fit": "is true in every run of a sweep",
    "trainer.logger": "is set by the sweep, so that each run has a folder of its own",
    "trainer.default_root_dir": "is set by the sweep, so that each run has a folder of its own",
    "ckpt_path": "is set by the sweep, which goes on from a run's own checkpoint",
    "sweep": "is the block itself",
    "extends": "belongs into a config file",
}
"""Keys that no axis can have, and why."""


@dataclass
class Sweep:
    """The `sweep:` block of a config. `ldis fit` ignores it; `ldis sweep` runs it.

    Its points are all combinations of one of `points`, a value of each axis of `grid` and a row of each group of `zip`;
    what is left out takes no part. Keys are dotted keys of the config, where `init_args` may be left out. A component
    is given by its class name (then with its defaults) or as `{class_path: ..., init_args: ...}`; the key
    `X.class_path` alone changes the class of X and keeps the arguments that the new class takes too.

    Attributes:
        grid: values by key; all combinations are run.
        zip: groups of axes that go together: of each group the first values, then the second ones, and so on.
        points: named points, each with its own values by key; `{}` is the config as it is.
        seeds: `seed_everything` of the runs at each point.
        metric: what the table compares, a key of the `metrics` in a run's `results.json`.
        mode: whether a larger or a smaller metric is better.
        baseline: the point that the others are compared with: its name or folder, or some of its values by column
            heading, e.g. `{pre_mask: NoPreMasking}`.
        budget: hours of running time of all runs together beyond which no further run is started.
        shared_training: the points differ only in what testing uses: train once for each seed, then test every point.
    """

    grid: dict[str, list] = field(default_factory=dict)
    zip: list[dict[str, list]] = field(default_factory=list)
    points: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    metric: str = "test/novel/miou"
    mode: Literal["max", "min"] = "max"
    baseline: str | dict[str, Any] | None = None
    budget: float | None = None
    shared_training: bool = False


@dataclass(frozen=True)
class Point:
    """One combination: a line of the table.

    Attributes:
        slug: its name, unique in the sweep, and a folder's: `pre_mask=AlphaChannel,post_mask=NoPostMasking`, or the
            name of a named point, which any further axes follow.
        labels: what makes it differ from the others, for people, by column heading, e.g.
            `{"pre_mask": "AlphaChannel"}`; of a named point `{"point": NAME}`.
        values: the same by dotted config key.
    """

    slug: str
    labels: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict, compare=False)


def expand(sweep: Sweep) -> list[Point]:
    """All points: named ones first, then the axes of the grid, then those of `zip`, the last one fastest.

    Raises:
        UserError: there is nothing to run, two axes collide, paired ones differ in length, or two points would share a
            folder.
    """
    _check(sweep)
    axes = _axes(sweep)
    points = []
    for combination in itertools.product(*axes):
        values = {key: value for choice in combination for key, value in choice.values.items()}
        labels = {heading: label for choice in combination for heading, label in choice.labels.items()}
        points.append(Point(_slug(labels), labels, values))
    folders = Counter(point.slug for point in points)
    if twice := [slug for slug, count in folders.items() if count > 1]:
        raise UserError(f"sweep: two points are the same, or would share a folder: {twice[0]}")
    return points


def baseline_of(sweep: Sweep, points: Sequence[Point]) -> Point | None:
    """The point that `sweep.baseline` names.

    Raises:
        UserError: it names none, or several.
    """
    wanted = sweep.baseline
    if wanted is None:
        return None
    if isinstance(wanted, str):
        found = [point for point in points if wanted in (point.slug, point.labels.get(NAMED))]
        found = [point for point in found if point.slug == wanted] or found
        shown, hint = wanted, did_you_mean(wanted, [point.slug for point in points])
    else:
        asked = dict(zip(wanted, (value_labels([value])[0] for value in wanted.values()), strict=True))
        _check_headings(asked, points)
        found = [point for point in points if asked.items() <= point.labels.items()]
        shown, hint = slug_of(asked), ""
    if len(found) == 1:
        return found[0]
    which = "no point" if not found else f"{len(found)} points"
    known = f"; there are {some((point.slug for point in found or points), 6)}"
    raise UserError(f"sweep.baseline: `{shown}` names {which}{known if found else hint or known}")


@dataclass(frozen=True)
class _Choice:
    """A place on an axis: of a group of paired axes it sets several keys."""

    values: dict[str, Any]
    labels: dict[str, str]


def _axes(sweep: Sweep) -> list[list[_Choice]]:
    groups = [{key: values} for key, values in sweep.grid.items()] + sweep.zip
    keys = [key for group in groups for key in group]
    headings = dict(zip(keys, column_headings([*keys, NAMED]), strict=False))
    named = [_Choice(values or {}, {NAMED: name}) for name, values in sweep.points.items()]
    axes = [named] if named else []
    for group in groups:
        labels = {headings[key]: value_labels(values) for key, values in group.items()}
        length = len(next(iter(group.values())))
        axes.append(
            [
                _Choice(
                    {key: values[i] for key, values in group.items()},
                    {heading: texts[i] for heading, texts in labels.items()},
                )
                for i in range(length)
            ]
        )
    return axes


def _slug(labels: Mapping[str, str]) -> str:
    others = {heading: label for heading, label in labels.items() if heading != NAMED}
    return ",".join(part for part in (plain(labels.get(NAMED, "")), slug_of(others)) if part)


# ---- What a block must be


def _check(sweep: Sweep) -> None:
    if not (sweep.grid or sweep.zip or sweep.points) or not sweep.seeds:
        raise UserError(
            "nothing to sweep: the config needs a block `sweep:` with `grid:`, `zip:` or `points:` and at least one of "
            "`seeds:`"
        )
    if twice := [seed for seed, count in Counter(sweep.seeds).items() if count > 1]:
        raise UserError(f"sweep.seeds: a seed is listed twice: {twice[0]} in {sweep.seeds}")
    if negative := [seed for seed in sweep.seeds if seed < 0]:
        raise UserError(f"sweep.seeds: {negative[0]} is negative; seeds are 0 or more")
    if sweep.budget is not None and not sweep.budget > 0:
        raise UserError(f"sweep.budget is {sweep.budget:g}, and must be hours, more than 0")
    _check_lengths(sweep)
    for name in sweep.points:
        if plain(name).strip(".") == "":
            raise UserError(f"sweep.points: `{name}` cannot be the name of a folder")
    _check_collisions(sweep)


def _check_lengths(sweep: Sweep) -> None:
    for key, values in sweep.grid.items():
        if not values:
            raise UserError(f"sweep.grid: the axis `{key}` has no values")
    for group in sweep.zip:
        lengths = {key: len(values) for key, values in group.items()}
        if not group or 0 in lengths.values():
            raise UserError("sweep.zip: a group needs at least one axis with values")
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"`{key}` has {length}" for key, length in lengths.items())
            raise UserError(f"sweep.zip: paired axes need equally many values, but {shown}")


def _check_collisions(sweep: Sweep) -> None:
    """No key may be set twice at a point, as a whole or in parts, nor one that the sweep itself sets."""
    axes = [(key, "grid") for key in sweep.grid]
    axes += [(key, f"zip group {n}") for n, group in enumerate(sweep.zip, start=1) for key in group]
    for name, values in sweep.points.items():
        _check_reserved(values or {})
        _check_pairs([*((key, f"point {name}") for key in values or {}), *axes])
    _check_reserved([key for key, _ in axes])
    _check_pairs(axes)


def _check_pairs(keys: Sequence[tuple[str, str]]) -> None:
    for (one, here), (other, there) in itertools.combinations(keys, 2):
        first, second = _parts(one), _parts(other)
        where = f"in {here}" if here == there else f"in {here} and {there}"
        if first == second:
            spelt = "" if one == other else f", as `{one}` and `{other}`"
            raise UserError(f"sweep: two axes collide: `{'.'.join(first)}` is set twice ({where}{spelt})")
        if first[: len(second)] == second or second[: len(first)] == first:
            raise UserError(f"sweep: two axes collide: `{one}` and `{other}` ({where}): one sets a part of the other")


def _check_reserved(keys: Mapping[str, Any] | Sequence[str]) -> None:
    for key in keys:
        for reserved, reason in RESERVED.items():
            if f"{key}.".startswith(f"{reserved}."):
                raise UserError(f"sweep: `{key}` cannot be an axis: it {reason}")


def _check_headings(asked: Mapping[str, str], points: Sequence[Point]) -> None:
    known = points[0].labels
    for heading, label in asked.items():
        if heading not in known:
            hint = did_you_mean(heading, known) or f"; there are {', '.join(known)}"
            raise UserError(f"sweep.baseline: no column is called `{heading}`{hint}")
        labels = list(dict.fromkeys(point.labels[heading] for point in points))
        if label not in labels:
            hint = did_you_mean(label, labels) or f"; there are {', '.join(labels)}"
            raise UserError(f"sweep.baseline: no point has {heading} `{label}`{hint}")


def _parts(key: str) -> tuple[str, ...]:
    return tuple(_without_init_args(key.split(".")))


def _without_init_args(parts: Sequence[str]) -> Iterator[str]:
    return (part for part in parts if part != "init_args")
