"""Setting dotted keys in a nested config."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from ldis_lightning.errors import UserError
from ldis_lightning.parse_errors import import_object, parameters
from ldis_lightning.sweeps.labels import value_name

CLASS = "class_path"


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config with dotted keys set: those that change a class first, since the others are the new one's.

    Raises:
        UserError: a key leads through something that has no keys.
    """
    own = deepcopy(dict(config))
    for key in sorted(values, key=lambda key: (key.rpartition(".")[2] != CLASS, key.count("."))):
        set_key(own, key, deepcopy(values[key]))
    return own


def set_key(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in a nested config, in place; `init_args` of components on the way may be left out.

    Another `class_path` keeps of the old `init_args` what the new class takes.

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
            where = ".".join(parents[:depth])
            raise UserError(f"sweep: `{key}` leads nowhere, since `{where}` is {value_name(child)}")
        node = child
    if last == CLASS and isinstance(value, str):
        _change_class(node, value)
    else:
        _arguments_of(node, last)[last] = value


def _arguments_of(node: dict[str, Any], part: str) -> dict[str, Any]:
    """Where the keys of a node are: inside `init_args` if it is a component."""
    if CLASS not in node or part in (CLASS, "init_args", "dict_kwargs"):
        return node
    if node.get("init_args") is None:
        node["init_args"] = {}
    return node["init_args"]


def _change_class(node: dict[str, Any], name: str) -> None:
    """Give a component another class. One that cannot be found is left for the parser to name."""
    found = _find_class(node.get(CLASS), name)
    if found is not None and node.get("init_args"):
        taken = parameters(f"{found.__module__}.{found.__qualname__}")
        node["init_args"] = {key: value for key, value in node["init_args"].items() if key in taken}
    node[CLASS] = name


def _find_class(old: Any, name: str) -> type | None:
    """The class of a name: at an import path, or without one among the relatives of the class that it replaces."""
    if "." in name:
        found = import_object(name)
        return found if isinstance(found, type) else None
    known = import_object(old) if isinstance(old, str) else None
    ancestors = known.__mro__[:-1] if isinstance(known, type) else ()
    return next((kind for base in ancestors for kind in _family(base) if kind.__name__ == name), None)


def _family(kind: type) -> Iterator[type]:
    yield kind
    for child in type.__subclasses__(kind):
        yield from _family(child)
