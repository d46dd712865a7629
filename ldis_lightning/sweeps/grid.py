"""The grid of an ablation: axes over config keys, and the points that they span."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ldis_lightning.errors import UserError

CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass
class Sweep:
    """The `sweep:` block of a config. `ldis fit` ignores it; `ldis sweep` runs it.

    Attributes:
        grid: values by dotted config key; `init_args` may be left out of a key. All combinations are run. A component
        is
            given by its class name (then with its defaults) or as `{class_path: ..., init_args: ...}`.
        seeds: `seed_everything` of the runs at each point.
        metric: what the table compares, a key of the `metrics` in a run's `results.json`.
        mode: whether a larger or a smaller metric is better.
    """

    grid: dict[str, list] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    metric: str = "test/novel/miou"
    mode: Literal["max", "min"] = "max"


@dataclass(frozen=True)
class Point:
    """One combination of the grid's values.

    Attributes:
        values: value by config key.
        labels: the same for people, by column heading, e.g. `{"pre_mask": "AlphaChannel"}`.
    """

    values: dict[str, Any]
    labels: dict[str, str]

    @property
    def slug(self) -> str:
        """A folder name, e.g. `pre_mask=AlphaChannel,post_mask=NoPostMasking`."""
        return ",".join(f"{_plain(heading)}={_plain(label)}" for heading, label in self.labels.items())


def _plain(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", text).strip("_")


def expand(sweep: Sweep) -> list[Point]:
    """All points of a grid, the last axis fastest.

    Raises:
        UserError: there is nothing to run, an axis names a value twice, or two points would share a folder.
    """
    if not sweep.grid or not sweep.seeds:
        raise UserError(
            "nothing to sweep: the config needs a block `sweep:` with a `grid:` and at least one of `seeds:`"
        )
    for key, values in sweep.grid.items():
        if not values:
            raise UserError(f"sweep.grid: the axis `{key}` has no values")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise UserError(f"sweep.seeds: a seed is listed twice in {sweep.seeds}")
    headings = column_headings(list(sweep.grid))
    axes = [
        [(key, value, label) for value, label in zip(values, value_labels(values), strict=True)]
        for key, values in sweep.grid.items()
    ]
    points = [
        Point(
            values={key: value for key, value, _ in combination},
            labels={heading: label for heading, (_, _, label) in zip(headings, combination, strict=True)},
        )
        for combination in itertools.product(*axes)
    ]
    twice = [slug for slug, count in Counter(point.slug for point in points).items() if count > 1]
    if twice:
        raise UserError(f"sweep.grid: two points are the same: {twice[0]}")
    return points


def column_headings(keys: Sequence[str]) -> list[str]:
    """The shortest ends of dotted keys that tell them apart: `pre_mask`, or `train.shards` and `test.shards`."""
    parts = [[part for part in key.split(".") if part != "init_args"] for key in keys]
    headings = []
    for own in parts:
        others = [other for other in parts if other is not own]
        depth = next((d for d in range(1, len(own)) if all(other[-d:] != own[-d:] for other in others)), len(own))
        headings.append(".".join(own[-depth:]))
    return headings


def value_labels(values: Sequence[Any]) -> list[str]:
    """What the table calls an axis's values: a class name, with the arguments that differ where names repeat."""
    names = [_name(value) for value in values]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    labels = []
    for value, name in zip(values, names, strict=True):
        if name in repeated:
            group = [_arguments(other) for other, other_name in zip(values, names, strict=True) if other_name == name]
            own = {k: v for k, v in _arguments(value).items() if any(other.get(k, _ABSENT) != v for other in group)}
            name += f"({', '.join(f'{k}={_name(v)}' for k, v in own.items())})" if own else ""
        labels.append(name)
    return labels


_ABSENT = object()


def _name(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    if isinstance(value, str):
        return value.rpartition(".")[2] if CLASS_PATH.fullmatch(value) else value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, default=str)


def _arguments(value: Any) -> dict[str, Any]:
    return value.get("init_args") or {} if isinstance(value, dict) else {}


def set_key(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in a nested config, in place; `init_args` of components on the way may be left out.

    Raises:
        UserError: the key leads through something that has no keys.
    """
    node = config
    *parents, last = key.split(".")
    for depth, part in enumerate(parents, start=1):
        node = _arguments_of(node, part)
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise UserError(f"sweep.grid: `{key}` leads nowhere, since `{'.'.join(parents[:depth])}` is {_name(child)}")
        node = child
    _arguments_of(node, last)[last] = value


def _arguments_of(node: dict[str, Any], part: str) -> dict[str, Any]:
    """Where the keys of a node are: inside `init_args` if it is a component."""
    if "class_path" not in node or part in ("class_path", "init_args", "dict_kwargs"):
        return node
    if node.get("init_args") is None:
        node["init_args"] = {}
    return node["init_args"]
