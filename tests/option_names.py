"""The names of the options that a config file sets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Config = dict[str, Any]


def names_in(path: Path) -> set[str]:
    """The names of all options that a config sets.

    A parameter of a component is `Class.parameter`; other keys are dotted as in the file, without `init_args`, the
    names of data sets and the `+` of a list that is appended to.
    """
    content: Config = yaml.safe_load(path.read_text(encoding="utf-8"))
    sweep = content.get("sweep") or {}
    grid = [(key, value) for key, values in (sweep.get("grid") or {}).items() for value in values]
    points = [pair for point in (sweep.get("points") or {}).values() for pair in point.items()]
    swept = {name for key, value in [*grid, *points] if key != "model.class_path" for name in _names(value, key)}
    return swept | {name for key, value in content.items() for name in _names(value, key)}


def _names(value: Any, name: str) -> Iterator[str]:
    name = name.removesuffix("+")
    if name in ("sweep.grid", "sweep.points", "sweep.baseline"):
        yield name
    elif isinstance(value, list):
        yield name
        for item in value:
            if isinstance(item, dict):
                yield from _names(item, name)
    elif isinstance(value, dict) and "class_path" in value:
        yield name
        kind = "model" if name == "model" else value["class_path"].rpartition(".")[2]
        yield from _names_below(value.get("init_args") or {}, kind)
    elif isinstance(value, dict):
        if (name == "data.train" and "shards" not in value) or name == "data.evaluation":
            for source in value.values():
                yield from _names_below(source, name)
        else:
            yield from _names_below(value, name)
    else:
        yield name


def _names_below(mapping: Config, name: str) -> Iterator[str]:
    for key, value in mapping.items():
        yield from _names(value, name if key == "init_args" else f"{name}.{key}")
