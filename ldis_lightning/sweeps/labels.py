"""What people call the axes of a grid, their values and their points."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
LONGEST_SLUG = 180
"""Characters; file systems take names of 255 bytes."""


def slug_of(labels: Mapping[str, str]) -> str:
    """A folder's name for labels by heading: `pre_mask=AlphaChannel,lr=0.1`. A very long one ends in a hash instead."""
    slug = ",".join(f"{plain(heading)}={plain(label)}" for heading, label in labels.items())
    if len(slug) <= LONGEST_SLUG:
        return slug
    return f"{slug[: LONGEST_SLUG - 9]}~{hashlib.sha256(slug.encode()).hexdigest()[:8]}"


def plain(text: str) -> str:
    """Text as a part of a file's name."""
    return re.sub(r"[^\w.=+-]+", "_", text).strip("_")


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
    names = [value_name(value) for value in values]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    labels = []
    for value, name in zip(values, names, strict=True):
        if name in repeated:
            group = [arguments(other) for other, other_name in zip(values, names, strict=True) if other_name == name]
            own = {k: v for k, v in arguments(value).items() if any(other.get(k, _ABSENT) != v for other in group)}
            name += f"({', '.join(f'{k}={value_name(v)}' for k, v in own.items())})" if own else ""
        labels.append(name)
    return labels


_ABSENT = object()


def value_name(value: Any) -> str:
    """A value by itself: of a component the name of its class, else as JSON has it, without quotes."""
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    if isinstance(value, str):
        return value.rpartition(".")[2] if CLASS_PATH.fullmatch(value) else value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, default=str)


def arguments(value: Any) -> dict[str, Any]:
    """The `init_args` of a component in a config."""
    return value.get("init_args") or {} if isinstance(value, dict) else {}
